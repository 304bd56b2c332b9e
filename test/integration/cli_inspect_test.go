package integration

import (
	"encoding/json"
	"strings"
	"testing"

	"caisson/test/daemon"
	"caisson/test/harness"
)

func TestCLIInspect(t *testing.T) {
	h := harness.Start(t, daemon.Options{})
	defer h.Caisson("rm", "-f", "web")
	h.Caisson("run", "-d", "--name", "web", "--label", "tier=front", harness.Image, "sleep", "1000")
	var all []map[string]any
	if out := h.Caisson("inspect", "web"); json.Unmarshal([]byte(out), &all) != nil || len(all) != 1 || all[0]["snapshotKey"] != "web" {
		t.Errorf("inspect: %s", out)
	}
	if out := h.Caisson("inspect", "-f", `{{json .spec.process.args}} {{.status}} {{.labels.tier}}`, "web"); out != `["sleep","1000"] running front`+"\n" {
		t.Errorf("inspect by a template: %q", out)
	}
	if out := h.Caisson("sandbox", "inspect", "-f", "{{.state}} {{join .containers \",\"}}", "web"); out != "ready web\n" {
		t.Errorf("sandbox inspect by a template: %q", out)
	}
	if out := h.Caisson("ps", "--format", `table {{.id}}\t{{.status}}`); out != "ID    STATUS\nweb   running\n" {
		t.Errorf("ps by a template in columns: %q", out)
	}
	if out := h.Caisson("version", "--format", "{{.server.address}}") + h.Caisson("info", "--format", "{{.running}}"); out != h.Address+"\n1\n" {
		t.Errorf("version and info by a template: %q", out)
	}
	if out := h.TryCaisson("doctor", "--format", "{{.check}}").Stdout; !strings.Contains(out, "\ncgroups\n") {
		t.Errorf("doctor by a template: %q", out)
	}
	if res := h.TryCaisson("events", "--format", "table {{.action}}"); res.Code != 1 || !strings.Contains(res.Stderr, "no table") {
		t.Errorf("events in columns: %+v", res)
	}
	if res := h.TryCaisson("inspect", "-f", "{{.nope}}", "web"); res.Code != 1 || !strings.Contains(res.Stderr, "nope") {
		t.Errorf("a name that is not there: %+v", res)
	}
}
