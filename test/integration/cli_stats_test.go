package integration

import (
	"encoding/json"
	"strings"
	"testing"

	"caisson/test/daemon"
	"caisson/test/harness"
)

func TestCLIStats(t *testing.T) {
	h := harness.Start(t, daemon.Options{})
	defer h.Caisson("sandbox", "rm", "-f", "pod1")
	h.Caisson("sandbox", "create", "--net", "cni", "-m", "128m", "pod1")
	h.Caisson("sandbox", "start", "pod1")
	h.Caisson("run", "-d", "--name", "busy", "--sandbox", "pod1", harness.Image, "sh", "-c", "while :; do :; done")
	h.Caisson("run", "-d", "--name", "idle", "--sandbox", "pod1", "-m", "64m", harness.Image, "sleep", "1000")
	var rows []struct {
		Kind, ID, Sandbox string
		CPUPercent        float64
		MemoryLimitBytes  uint64
		PIDs              uint64

		NetworkReceivedBytes, NetworkSentBytes *uint64
	}
	if out := h.Caisson("stats", "--no-stream", "--format", "json"); json.Unmarshal([]byte(out), &rows) != nil || len(rows) != 3 {
		t.Fatalf("stats: %s", out)
	}
	if r := rows[0]; r.Kind != "sandbox" || r.ID != "pod1" || r.CPUPercent <= 0 || r.MemoryLimitBytes != 128<<20 || r.PIDs < 2 {
		t.Errorf("sandbox: %+v", r)
	}
	if r := rows[0]; r.NetworkReceivedBytes == nil || r.NetworkSentBytes == nil || *r.NetworkReceivedBytes+*r.NetworkSentBytes == 0 {
		t.Errorf("network of the sandbox: %+v", r) // its interface has greeted the network
	}
	if r := rows[1]; r.ID != "busy" || r.Sandbox != "pod1" || r.CPUPercent <= 0 {
		t.Errorf("busy container: %+v", r)
	}
	if r := rows[2]; r.ID != "idle" || r.MemoryLimitBytes != 64<<20 || r.PIDs != 1 {
		t.Errorf("idle container: %+v", r)
	}
	if out := h.Caisson("stats", "--no-stream", "--format", "{{.kind}} {{.id}}", "idle"); out != "container idle\n" {
		t.Errorf("stats of one container: %q", out)
	}
	if res := h.TryCaisson("stats", "nowhere"); res.Code != 1 || !strings.Contains(res.Stderr, "nowhere") {
		t.Errorf("stats of nothing: %+v", res)
	}
	if out := h.Caisson("top", "--sort", "memory", "--format", "{{.id}}", "pod1"); !strings.HasPrefix(out, "pod1\n") || len(out) != len("pod1\nbusy\nidle\n") {
		t.Errorf("top without a terminal: %q", out)
	}
	if res := h.TryCaisson("top", "nowhere"); res.Code != 1 || !strings.Contains(res.Stderr, "nowhere") {
		t.Errorf("top of nothing: %+v", res)
	}
	term := h.Terminal("caisson", "stats")
	term.Expect("\x1b[H")
	term.Expect("idle")
	term.Type("\x03")
	if code, out := term.Wait(); code != 0 {
		t.Errorf("stats after Ctrl-C: exit code %d:\n%s", code, out)
	}
}
