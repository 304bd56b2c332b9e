package integration

import (
	"strings"
	"testing"

	"caisson/test/daemon"
	"caisson/test/harness"
)

func TestCLIPause(t *testing.T) {
	h := harness.Start(t, daemon.Options{})
	defer h.Caisson("rm", "-f", "web")
	h.Caisson("run", "-d", "--name", "web", harness.Image, "sleep", "1000")
	status := func() string { return h.Caisson("inspect", "-f", "{{.status}}", "web") }
	if out := h.Caisson("pause", "web"); out != "web\n" || status() != "paused\n" {
		t.Errorf("pause: %q, then %s", out, status())
	}
	if out := h.Caisson("ps", "-q"); out != "web\n" {
		t.Errorf("ps of a paused container: %q", out)
	}
	for _, args := range [][]string{{"exec", "web", "true"}, {"exec", "-d", "web", "true"}} {
		if res := h.TryCaisson(args...); res.Code != 125 || !strings.Contains(res.Stderr, "caisson unpause web") {
			t.Errorf("%s in a paused container: %+v", args, res)
		}
	}
	if out := h.Caisson("unpause", "web"); out != "web\n" || status() != "running\n" {
		t.Errorf("unpause: %q, then %s", out, status())
	}
	if res := h.TryCaisson("unpause", "web"); res.Code != 1 || !strings.Contains(res.Stderr, "not paused") {
		t.Errorf("unpause twice: %+v", res)
	}
	h.Caisson("kill", "web")
	h.Caisson("wait", "web")
	if res := h.TryCaisson("pause", "web"); res.Code != 1 || !strings.Contains(res.Stderr, "not running") {
		t.Errorf("pause of one that ended: %+v", res)
	}
}
