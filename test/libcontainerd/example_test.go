package libcontainerd

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"caisson/test/harness"
)

// TestExample runs the example of the package's documentation.
func TestExample(t *testing.T) {
	eachAlone(t, func(t *testing.T, s *server) {
		if s.place.sandbox {
			t.Skip("left out: the example has no sandbox")
		}
		dir := t.TempDir()
		ctx := harness.Context(t, 5*limit) // it is built first
		cmd := exec.CommandContext(ctx, "go", "test", "-count=1", "-v", "-run", "^TestExample$", "caisson/libcontainerd")
		cmd.Env = append(os.Environ(), "CAISSON_TEST_EXAMPLE="+strings.Join([]string{s.Address, s.Token, dir, harness.Image, s.runtime}, " "))
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v:\n%s", err, out)
		}
		for _, want := range []string{"the container says hello\n", "job ended with 3\n", "bye\n", "web ended with 7\n"} {
			if !strings.Contains(string(out), want) {
				t.Errorf("no %q in:\n%s", want, out)
			}
		}
		for _, left := range []string{"c", "s"} {
			if entries, err := os.ReadDir(dir + "/" + left); err == nil && len(entries) > 0 {
				t.Errorf("left in the engine's directory: %v", entries)
			}
		}
	})
}
