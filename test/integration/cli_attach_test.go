package integration

import (
	"strings"
	"testing"

	"caisson/test/daemon"
	"caisson/test/harness"
)

func TestCLIAttachTerminal(t *testing.T) {
	h := harness.Start(t, daemon.Options{})
	defer h.Caisson("rm", "-f", "box")
	run := h.Terminal("caisson", "run", "-it", "--name", "box", harness.Image, "sh")
	run.Type("echo first $((40+2))\n")
	run.Expect("first 42")
	run.Type("\x10\x11")
	if code, out := run.Wait(); code != 0 || !strings.Contains(out, "caisson attach box") {
		t.Errorf("detach: exit code %d:\n%s", code, out)
	}
	if out := h.Caisson("ps", "-q"); out != "box\n" {
		t.Errorf("ps after detaching: %q", out)
	}
	if res := h.TryCaisson("run", "--name", "box", harness.Image, "true"); res.Code != 125 {
		t.Errorf("run with the name of the detached: %+v", res)
	}

	attach := h.Terminal("caisson", "attach", "--detach-keys", "ctrl-x,x", "box")
	attach.Resize(90, 20)
	attach.Type("until stty size | grep '20 90'; do usleep 20000; done; echo second $((40+3))\n")
	attach.Expect("\n20 90")
	attach.Expect("second 43")
	attach.Type("\x18x")
	if code, out := attach.Wait(); code != 0 || !strings.Contains(out, "goes on") {
		t.Errorf("detach with other keys: exit code %d:\n%s", code, out)
	}

	h.Caisson("pause", "box")
	if res := h.TryCaisson("attach", "box"); res.Code != 1 || !strings.Contains(res.Stderr, "caisson unpause box") {
		t.Errorf("attach to a paused container: %+v", res)
	}
	h.Caisson("unpause", "box")
	attach = h.Terminal("caisson", "attach", "box")
	attach.Type("exit 3\n")
	if code, out := attach.Wait(); code != 3 {
		t.Errorf("exit code %d:\n%s", code, out)
	}
	if res := h.TryCaisson("attach", "box"); res.Code != 1 || !strings.Contains(res.Stderr, "not running") {
		t.Errorf("attach to a container that ended: %+v", res)
	}
}

// The FIFOs of a container that nobody came back to go with it, which the harness checks.
func TestCLIDetachAndRemove(t *testing.T) {
	h := harness.Start(t, daemon.Options{})
	run := h.Terminal("caisson", "run", "-it", "--rm", "--name", "box", harness.Image, "sh")
	run.Type("echo first $((40+2))\n")
	run.Expect("first 42")
	run.Type("\x10\x11")
	if code, out := run.Wait(); code != 0 || !strings.Contains(out, "will not be removed") {
		t.Errorf("detach: exit code %d:\n%s", code, out)
	}
	h.Caisson("rm", "-f", "box")
}

func TestCLIAttachLog(t *testing.T) {
	h := harness.Start(t, daemon.Options{})
	defer h.Caisson("rm", "-f", "job")
	h.Caisson("run", "-d", "--name", "job", harness.Image, "sh", "-c", "echo before; until test -e /go; do usleep 20000; done; echo after; exit 5")
	term := h.Terminal("caisson", "attach", "job")
	// Nothing tells that it has begun but what it shows, so it may begin late.
	h.Caisson("exec", "job", "sh", "-c", "usleep 1500000; touch /go")
	term.Expect("after")
	if code, out := term.Wait(); code != 5 || strings.Contains(out, "before") {
		t.Errorf("exit code %d:\n%s", code, out)
	}
	if res := h.TryCaisson("attach", "nowhere"); res.Code != 1 || !strings.Contains(res.Stderr, "nowhere") {
		t.Errorf("attach to nothing: %+v", res)
	}
}
