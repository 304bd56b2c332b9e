package docs

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"caisson/test/daemon"
	"caisson/test/harness"
)

// TestOperations does what docs/operations.md says.
func TestOperations(t *testing.T) {
	traced := regexp.MustCompile(`(?m)^    (OTEL_\w+=\S+ caissond)$`).FindStringSubmatch(read(t, "operations.md"))
	var lines []string // beside the blocks of shell, which another test runs
	for _, m := range regexp.MustCompile(`(?m)^((?:curl .*debug\.sock|caisson (?:info|debug dump)$|kill -USR1).*)$`).FindAllStringSubmatch(read(t, "operations.md"), -1) {
		lines = append(lines, m[1])
	}
	if traced == nil || len(lines) != 5 {
		t.Fatalf("commands %q and %q", traced, lines)
	}
	n := newNode(t)
	n.write("/etc/caisson/config.toml", "") // another test may have left one
	n.serve("env "+traced[1], "/run/caisson/caissond.sock")
	for line, want := range map[string]string{
		lines[0]: "caisson_build_info{", lines[1]: "ok\n", lines[2]: "sandboxers", lines[3]: "caisson-dump-", lines[4]: "",
	} {
		if line == lines[1] {
			// The socket is there a moment before the daemon is ready.
			if err := daemon.Poll(harness.Context(t, time.Minute), time.Minute, func() error { return n.command(line).Run() }); err != nil {
				t.Fatalf("%s: %v", line, err)
			}
		}
		if out := n.run(line); !strings.Contains(out, want) {
			t.Errorf("%s: no %q in\n%s", line, want, out)
		}
	}
	var stacks []string
	if err := daemon.Poll(harness.Context(t, time.Minute), time.Minute, func() (err error) {
		if stacks, err = filepath.Glob("/run/caisson/goroutine-stacks-*.log"); err == nil && len(stacks) != 1 {
			err = os.ErrNotExist
		}
		return err
	}); err != nil {
		t.Errorf("stacks %q: %v", stacks, err)
	}
}
