package harness

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/console"
)

// Result is how a program ended and what it wrote.
type Result struct {
	Code           int
	Stdout, Stderr string
}

// Ctr runs ctr, and fails the test unless it exits with 0.
func (h *Host) Ctr(args ...string) string {
	h.t.Helper()
	return h.must("ctr", args)
}

// TryCtr runs ctr, whatever it exits with.
func (h *Host) TryCtr(args ...string) Result {
	h.t.Helper()
	return h.Try("ctr", args...)
}

// Caisson runs caisson, and fails the test unless it exits with 0.
func (h *Host) Caisson(args ...string) string {
	h.t.Helper()
	return h.must("caisson", args)
}

// TryCaisson runs caisson, whatever it exits with.
func (h *Host) TryCaisson(args ...string) Result {
	h.t.Helper()
	return h.Try("caisson", args...)
}

func (h *Host) must(name string, args []string) string {
	h.t.Helper()
	res := h.Try(name, args...)
	if res.Code != 0 {
		h.t.Fatalf("%s %s: exit code %d\nstdout: %s\nstderr: %s", name, strings.Join(args, " "), res.Code, res.Stdout, res.Stderr)
	}
	return res.Stdout
}

// Try runs a client program without input.
func (h *Host) Try(name string, args ...string) Result {
	h.t.Helper()
	return h.TryInput(nil, name, args...)
}

// TryInput runs a client program with input.
func (h *Host) TryInput(stdin io.Reader, name string, args ...string) Result {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(h.t.Context(), scale(time.Minute))
	defer cancel()
	cmd, err := h.Command(ctx, name, args...)
	if err != nil {
		h.t.Fatal(err)
	}
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, &stdout, &stderr
	err = cmd.Run()
	if ctx.Err() != nil {
		h.t.Fatalf("%s %s does not end\nstdout: %s\nstderr: %s", name, strings.Join(args, " "), stdout.String(), stderr.String())
	}
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		h.t.Fatalf("%s: %v", name, err)
	}
	return Result{Code: cmd.ProcessState.ExitCode(), Stdout: stdout.String(), Stderr: stderr.String()}
}

// Terminal is a client program that runs on a pty.
type Terminal struct {
	t      testing.TB
	pty    console.Console
	cmd    *exec.Cmd
	copied chan struct{}

	mu   sync.Mutex // guards seen and more
	seen bytes.Buffer
	more chan struct{} // closed and replaced when seen grows
}

// Terminal starts a client program with a pty of its own as controlling terminal.
func (h *Host) Terminal(name string, args ...string) *Terminal {
	h.t.Helper()
	cmd, err := h.Command(h.Context(time.Minute), name, args...)
	if err != nil {
		h.t.Fatal(err)
	}
	pty, path, err := console.NewPty()
	if err != nil {
		h.t.Fatal(err)
	}
	if err := pty.Resize(console.WinSize{Width: 120, Height: 40}); err != nil {
		h.t.Fatal(err)
	}
	slave, err := os.OpenFile(path, os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		h.t.Fatal(err)
	}
	defer slave.Close()
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Start(); err != nil {
		h.t.Fatal(err)
	}
	term := &Terminal{t: h.t, pty: pty, cmd: cmd, copied: make(chan struct{}), more: make(chan struct{})}
	go term.copy()
	h.t.Cleanup(func() {
		if cmd.ProcessState == nil { // the test failed before Wait
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
		_ = pty.Close()
		<-term.copied
	})
	return term
}

// copy collects the output until the program closes the pty (EIO).
func (term *Terminal) copy() {
	defer close(term.copied)
	buf := make([]byte, 4096)
	for {
		n, err := term.pty.Read(buf)
		term.mu.Lock()
		term.seen.Write(buf[:n])
		close(term.more)
		term.more = make(chan struct{})
		term.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// Type writes to the terminal as a keyboard does.
func (term *Terminal) Type(text string) {
	term.t.Helper()
	if _, err := io.WriteString(term.pty, text); err != nil {
		term.t.Fatal(err)
	}
}

// Resize changes the terminal's size, which its program is told by SIGWINCH.
func (term *Terminal) Resize(width, height uint16) {
	term.t.Helper()
	if err := term.pty.Resize(console.WinSize{Width: width, Height: height}); err != nil {
		term.t.Fatal(err)
	}
}

// Expect waits until text has been printed, and returns all that was.
func (term *Terminal) Expect(text string) string {
	term.t.Helper()
	limit := time.NewTimer(scale(30 * time.Second))
	defer limit.Stop()
	for {
		term.mu.Lock()
		seen, more := term.seen.String(), term.more
		term.mu.Unlock()
		if strings.Contains(seen, text) {
			return seen
		}
		select {
		case <-more:
		case <-term.copied:
			if seen = term.all(); !strings.Contains(seen, text) {
				term.t.Fatalf("the program ended without printing %q:\n%s", text, seen)
			}
			return seen
		case <-limit.C:
			term.t.Fatalf("the terminal does not show %q:\n%s", text, seen)
		}
	}
}

// Wait waits for the program's end and returns its exit code and its output.
func (term *Terminal) Wait() (int, string) {
	term.t.Helper()
	err := term.cmd.Wait()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		term.t.Fatalf("%v\n%s", err, term.all())
	}
	<-term.copied
	return term.cmd.ProcessState.ExitCode(), term.all()
}

func (term *Terminal) all() string {
	term.mu.Lock()
	defer term.mu.Unlock()
	return term.seen.String()
}
