package integration

import (
	"os/exec"
	"strings"
	"testing"

	"caisson/test/daemon"
	"caisson/test/harness"
)

func TestCLICompletion(t *testing.T) {
	h := harness.Start(t, daemon.Options{})
	defer h.Caisson("rm", "-f", "web")
	h.Caisson("run", "-d", "--name", "web", harness.Image, "sleep", "1000")
	for _, command := range []string{"wait", "sandbox inspect", "stats", "run --sandbox"} {
		args := append(append([]string{"__complete"}, strings.Fields(command)...), "")
		if out := h.Caisson(args...); !strings.HasPrefix(out, "web\n") {
			t.Errorf("%s: %q", command, out)
		}
	}
	cmd := exec.Command("bash", "-n")
	cmd.Stdin = strings.NewReader(h.Caisson("completion", "bash"))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("the script for bash: %v\n%s", err, out)
	}
}
