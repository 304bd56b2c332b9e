package integration

import (
	"fmt"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"caisson/test/daemon"
	"caisson/test/harness"
	"caisson/test/image"
)

// TestCLIScreen looks at a terminal as a person does: how far an import is, the prompt of
// a shell in a container, its size, the keys that leave it, and `caisson top`.
func TestCLIScreen(t *testing.T) {
	h := harness.Start(t, daemon.Options{})
	defer h.Caisson("rm", "-f", "box")
	tm := h.Tmux(110, 24)
	if err := image.WriteFile(filepath.Join(h.Dir, "image.tar"), image.Options{Ref: "docker.io/library/screen:latest"}); err != nil {
		t.Fatal(err)
	}
	tm.Run("caisson image import image.tar")
	tm.Until("shows how far the import is", func(lines []string) bool {
		return regexp.MustCompile(`(?m)^(\d+) of \d+ done in `).MatchString(strings.Join(lines, "\n"))
	})
	tm.Run("clear")
	tm.Run("caisson run -it --name box " + harness.Image + " sh")
	tm.Expect("/ #")
	// The size arrives after the start.
	tm.Run("until stty size | grep '24 110'; do usleep 20000; done")
	tm.Expect("\n24 110\n/ #")
	tm.Resize(90, 20)
	tm.Run("until stty size | grep '20 90'; do usleep 20000; done")
	tm.Expect("\n20 90\n/ #")
	tm.Keys("C-p", "C-q")
	tm.Expect("caisson attach box")
	tm.Run("code=$?; clear; echo code $code")
	tm.Expect("code 0\n" + harness.Prompt)

	tm.Run("caisson top")
	lines := tm.Until("shows the container", func(lines []string) bool {
		return strings.HasPrefix(lines[1], "SANDBOX▼ ") && strings.Contains(lines[3], "box") && strings.HasPrefix(lines[19], "q quit")
	})
	if lines[0] != "Sandboxes: 1  Containers: 1" || strings.Contains(strings.Join(lines, "\n"), harness.Prompt) {
		t.Errorf("top:\n%s", strings.Join(lines, "\n"))
	}
	tm.Keys("c")
	tm.Expect("CPU %▼")
	tm.Keys("r")
	tm.Expect("CPU %▲")
	// More sandboxes than fit: they appear by themselves, and can be scrolled to.
	for i := range 3 {
		id := fmt.Sprintf("pod%d", i)
		defer h.Caisson("sandbox", "rm", "-f", id)
		h.Caisson("sandbox", "create", id)
		h.Caisson("sandbox", "start", id)
	}
	tm.Expect("Sandboxes: 4")
	tm.Keys("s")
	tm.Resize(60, 6)
	tm.Until("shows three lines of five", func(lines []string) bool {
		return strings.HasSuffix(lines[0], "(line 1 of 5)") && strings.HasPrefix(lines[5], "q quit") && len(lines) == 6
	})
	tm.Keys("End")
	tm.Until("shows the last lines", func(lines []string) bool {
		return strings.HasSuffix(lines[0], "(line 3 of 5)")
	})
	tm.Resize(100, 24)
	tm.Until("has room again", func(lines []string) bool { return lines[0] == "Sandboxes: 4  Containers: 1" })
	tm.Keys("q")
	// The terminal is as it was before, and echoes.
	tm.Until("shows the shell again", func(lines []string) bool {
		return strings.HasPrefix(lines[0], "code 0") && strings.HasPrefix(lines[1], harness.Prompt)
	})
	tm.Run("stty | grep -c -e -echo -e -icanon; caisson top")
	tm.Expect("Sandboxes: 4")
	tm.Keys("C-c")
	tm.Until("ends with Ctrl-C", func(lines []string) bool { return strings.HasPrefix(lines[0], "code 0") })
	tm.Run("echo then $?")
	tm.Expect("then 0\n")
	tm.Expect("\n0\n")
}
