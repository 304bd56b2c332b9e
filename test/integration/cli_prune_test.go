package integration

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/docker/go-units"

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
	h.Caisson("run", "-d", "--name", "two", harness.Image, "sh", "-c", "head -c 1000000 /dev/zero >/x; echo 16 bytes of log")
	h.Caisson("wait", "two")
	for args, want := range map[string]string{
		"ps --filter status=exited": "one\ntwo\n", "ps -f status=exited -f name=tw": "two\n", "ps -f image=" + harness.Image: "web\n",
		"sandbox ls -f state=notready -f name=pod": "pod1\n",
	} {
		if out := h.Caisson(append(strings.Fields(args), "-q")...); out != want {
			t.Errorf("%s: %q, want %q", args, out, want)
		}
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
	use := diskUse(t, h)
	if c, l := use["Containers"], use["Logs"]; c.Total != 3 || c.Active != 1 || c.Reclaimable < 1000000 || l.Total != 2 || l.Reclaimable != 16 {
		t.Errorf("system df: %+v", use)
	}
	if i, s := use["Images"], use["Snapshots"]; i.Total != 1 || i.Active != 1 || i.Size == 0 || i.Reclaimable != 0 || s.Total != 1 || s.Active != 1 || s.Size == 0 || s.Reclaimable != 0 {
		t.Errorf("system df: %+v", use)
	}
	if out := h.Caisson("system", "df", "-v"); !strings.Contains(out, "\ntwo ") || !strings.Contains(out, " 16B\n") {
		t.Errorf("system df -v:\n%s", out)
	}
	term := h.Terminal("caisson", "prune")
	term.Expect("[y/N]")
	term.Type("y\n")
	freed := "freed " + units.BytesSize(float64(use["Containers"].Reclaimable+use["Logs"].Reclaimable))
	if code, out := term.Wait(); code != 0 || !strings.Contains(out, freed) {
		t.Errorf("prune: exit code %d:\n%s", code, out)
	}
	if out := h.Caisson("ps", "-aq"); out != "web\n" {
		t.Errorf("containers after prune: %q", out)
	}
	if out := h.Caisson("sandbox", "ls", "-q"); out != "pod1\nweb\n" {
		t.Errorf("sandboxes after prune: %q", out)
	}
	if use := diskUse(t, h); use["Containers"].Reclaimable+use["Logs"].Reclaimable != 0 || use["Containers"].Total != 1 {
		t.Errorf("system df after prune: %+v", use)
	}
	if res := h.TryCaisson("prune", "-f"); res.Code != 0 || !strings.Contains(res.Stderr, "nothing to remove") {
		t.Errorf("prune of nothing: %+v", res)
	}
}

// use is a line of `caisson system df`.
type use struct {
	Type              string
	Total, Active     int
	Size, Reclaimable int64
}

func diskUse(t *testing.T, h *harness.Host) map[string]use {
	t.Helper()
	var rows []use
	if err := json.Unmarshal([]byte(h.Caisson("system", "df", "--format", "json")), &rows); err != nil {
		t.Fatal(err)
	}
	all := map[string]use{}
	for _, row := range rows {
		all[row.Type] = row
	}
	return all
}
