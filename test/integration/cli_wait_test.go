package integration

import (
	"strings"
	"testing"

	"caisson/test/daemon"
	"caisson/test/harness"
)

func TestCLIWait(t *testing.T) {
	h := harness.Start(t, daemon.Options{})
	defer h.Caisson("rm", "-f", "job", "idle")
	h.Caisson("run", "-d", "--name", "job", harness.Image, "sh", "-c", "until test -e /go; do usleep 20000; done; exit 9")
	h.Caisson("run", "-d", "--name", "idle", harness.Image, "sleep", "1000")
	waiting := make(chan harness.Result, 1)
	go func() { waiting <- h.TryCaisson("wait", "job", "idle") }()
	h.Caisson("exec", "job", "touch", "/go")
	if out := h.Caisson("wait", "job"); out != "9\n" {
		t.Errorf("wait: %q", out)
	}
	h.Caisson("kill", "idle")
	if res := <-waiting; res.Code != 0 || res.Stdout != "9\n137\n" {
		t.Errorf("wait for two: %+v", res)
	}
	if res := h.TryCaisson("wait", "nowhere"); res.Code != 1 || !strings.Contains(res.Stderr, "nowhere") {
		t.Errorf("wait for nothing: %+v", res)
	}
}
