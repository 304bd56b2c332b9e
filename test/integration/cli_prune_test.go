package integration

import (
	"strings"
	"testing"

	"caisson/test/daemon"
	"caisson/test/harness"
)

func TestCLIPrune(t *testing.T) {
	h := harness.Start(t, daemon.Options{})
	defer h.Caisson("rm", "-f", "web")
	defer h.Caisson("sandbox", "rm", "-f", "pod1")
	h.Caisson("sandbox", "create", "pod1")
	h.Caisson("run", "-d", "--name", "web", harness.Image, "sleep", "1000")
	h.Caisson("run", "--name", "one", harness.Image, "true")
	h.Caisson("run", "--name", "two", harness.Image, "true")
	if res := h.TryCaisson("prune"); res.Code != 1 || !strings.Contains(res.Stderr, "--force") {
		t.Errorf("prune without a terminal: %+v", res)
	}
	for answer, want := range map[string]string{"n\n": "web\none\ntwo\n", "\x03": "web\none\ntwo\n"} {
		term := h.Terminal("caisson", "prune")
		term.Expect("Remove containers one two? [y/N]")
		term.Type(answer)
		term.Wait()
		if out := h.Caisson("ps", "-aq"); out != want {
			t.Errorf("after %q: %q", answer, out)
		}
	}
	term := h.Terminal("caisson", "prune")
	term.Expect("[y/N]")
	term.Type("y\n")
	if code, out := term.Wait(); code != 0 {
		t.Errorf("prune: exit code %d:\n%s", code, out)
	}
	if out := h.Caisson("ps", "-aq"); out != "web\n" {
		t.Errorf("containers after prune: %q", out)
	}
	if out := h.Caisson("sandbox", "ls", "-q"); out != "pod1\nweb\n" {
		t.Errorf("sandboxes after prune: %q", out)
	}
	if res := h.TryCaisson("prune", "-f"); res.Code != 0 || !strings.Contains(res.Stderr, "nothing to remove") {
		t.Errorf("prune of nothing: %+v", res)
	}
}
