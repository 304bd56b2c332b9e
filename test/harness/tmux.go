package harness

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"caisson/test/daemon"
)

// Prompt is what the shell in a Tmux shows when it waits.
const Prompt = "READY>"

// Tmux is a terminal that draws what programs print, so that a test sees what a person
// would: a shell in a tmux with a server of its own.
type Tmux struct {
	t      testing.TB
	h      *Host
	socket string
}

// Tmux starts it, with caisson in the shell's PATH and the daemon in its environment.
func (h *Host) Tmux(width, height int) *Tmux {
	h.t.Helper()
	caisson, err := h.Binary("caisson")
	if err != nil {
		h.t.Fatal(err)
	}
	tm := &Tmux{t: h.t, h: h, socket: filepath.Join(h.Dir, "tmux")}
	h.t.Cleanup(func() {
		if out, err := tm.command("kill-server"); err != nil {
			tm.t.Errorf("tmux kill-server: %v: %s", err, out)
		}
	})
	tm.must("-f", "/dev/null", "new-session", "-d", "-x", strconv.Itoa(width), "-y", strconv.Itoa(height), "-c", h.Dir,
		"env", "-i", "TERM=tmux-256color", "LC_ALL=C.UTF-8", "PS1="+Prompt+" ", "HOME="+h.Dir, "PATH="+filepath.Dir(caisson)+":/usr/bin:/bin",
		"CAISSON_ADDRESS="+h.Address, "CAISSON_NAMESPACE="+h.Token, "CAISSON_ROOT="+h.Root, "sh")
	tm.Expect(Prompt)
	return tm
}

func (tm *Tmux) command(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), scale(10*time.Second))
	defer cancel()
	out, err := exec.CommandContext(ctx, "tmux", append([]string{"-u", "-S", tm.socket}, args...)...).CombinedOutput()
	return string(out), err
}

func (tm *Tmux) must(args ...string) string {
	tm.t.Helper()
	out, err := tm.command(args...)
	if err != nil {
		tm.t.Fatalf("tmux %s: %v: %s", strings.Join(args, " "), err, out)
	}
	return out
}

// Run types a command line.
func (tm *Tmux) Run(line string) {
	tm.t.Helper()
	tm.must("send-keys", "-l", line)
	tm.Keys("Enter")
}

// Keys presses keys, by the names that tmux gives them.
func (tm *Tmux) Keys(names ...string) {
	tm.t.Helper()
	tm.must(append([]string{"send-keys"}, names...)...)
}

// Resize changes the size of the terminal.
func (tm *Tmux) Resize(width, height int) {
	tm.t.Helper()
	tm.must("resize-window", "-x", strconv.Itoa(width), "-y", strconv.Itoa(height))
}

// Screen is what the terminal shows, line by line.
func (tm *Tmux) Screen() []string {
	tm.t.Helper()
	return strings.Split(strings.TrimSuffix(tm.must("capture-pane", "-p"), "\n"), "\n")
}

// Expect waits until the screen shows a text, and returns all of it.
func (tm *Tmux) Expect(text string) []string {
	tm.t.Helper()
	return tm.Until(fmt.Sprintf("shows %q", text), func(lines []string) bool {
		return strings.Contains(strings.Join(lines, "\n"), text)
	})
}

// Until waits until the screen is as it should be, and returns it.
func (tm *Tmux) Until(what string, is func(lines []string) bool) []string {
	tm.t.Helper()
	var lines []string
	err := daemon.Poll(tm.t.Context(), scale(30*time.Second), func() error {
		if lines = tm.Screen(); !is(lines) {
			return fmt.Errorf("it does not")
		}
		return nil
	})
	if err != nil {
		var buf bytes.Buffer
		for _, l := range lines {
			fmt.Fprintf(&buf, "|%s\n", l)
		}
		tm.t.Fatalf("the screen never %s:\n%s", what, buf.String())
	}
	return lines
}
