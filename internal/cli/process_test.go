package cli

import (
	"bufio"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// fakeProcess tells what is done to it.
type fakeProcess struct {
	containerd.Process
	killed  chan syscall.Signal
	closed  chan struct{}
	waits   chan containerd.ExitStatus
	waiting int
}

func newFakeProcess() *fakeProcess {
	return &fakeProcess{killed: make(chan syscall.Signal, 10), closed: make(chan struct{}, 1), waits: make(chan containerd.ExitStatus, 10)}
}

func (p *fakeProcess) Kill(_ context.Context, s syscall.Signal, _ ...containerd.KillOpts) error {
	p.killed <- s
	return nil
}

func (p *fakeProcess) CloseIO(context.Context, ...containerd.IOCloserOpts) error {
	p.closed <- struct{}{}
	return nil
}

func (p *fakeProcess) Wait(context.Context) (<-chan containerd.ExitStatus, error) {
	p.waiting++
	return p.waits, nil
}

// fakeStreams end when told to.
type fakeStreams struct {
	cio.IO
	ended     chan struct{}
	cancelled bool
}

func (s *fakeStreams) Wait() { <-s.ended }
func (s *fakeStreams) Cancel() {
	s.cancelled = true
	close(s.ended)
}

func TestSignals(t *testing.T) {
	ctx, sig := catchSignals(t.Context())
	defer sig.close()
	p := newFakeProcess()
	sig.forwardTo(ctx, p)
	sig.ch <- syscall.SIGPIPE // not forwarded
	sig.ch <- syscall.SIGUSR1
	if got := <-p.killed; got != syscall.SIGUSR1 {
		t.Errorf("forwarded %v", got)
	}
	for _, want := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGKILL} {
		sent := want
		if want == syscall.SIGKILL {
			sent = syscall.SIGINT // the third time
		}
		sig.ch <- sent
		if got := <-p.killed; got != want {
			t.Errorf("forwarded %v, want %v", got, want)
		}
	}
	if ctx.Err() != nil {
		t.Error("a forwarded signal cancelled the command")
	}
}

func TestSignalsCancelUntilAProcessRuns(t *testing.T) {
	ctx, sig := catchSignals(t.Context())
	defer sig.close()
	sig.ch <- syscall.SIGPIPE
	sig.ch <- syscall.SIGUSR1
	sig.ch <- syscall.SIGINT
	<-ctx.Done()
	p := newFakeProcess()
	sig.forwardTo(ctx, p) // which was being started meanwhile
	if got := <-p.killed; got != syscall.SIGINT {
		t.Errorf("forwarded %v", got)
	}
}

// What does not heed its context is ended by the third interrupt.
func TestInterruptsEnd(t *testing.T) {
	const stubborn = "CAISSON_TEST_STUBBORN"
	if os.Getenv(stubborn) != "" {
		ctx, _ := catchSignals(t.Context())
		os.Stdout.WriteString("ready\n") //nolint:errcheck // the parent says so
		<-ctx.Done()
		os.Stdout.WriteString("interrupted\n") //nolint:errcheck
		<-make(chan int)
	}
	if signal.Ignored(os.Interrupt) { // by a shell in the background: the child would inherit it
		signal.Notify(make(chan os.Signal, 1), os.Interrupt)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Args[0], "-test.run=^TestInterruptsEnd$")
	cmd.Env = append(os.Environ(), stubborn+"=yes")
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	for _, want := range []string{"ready", "interrupted"} {
		if !lines.Scan() || lines.Text() != want {
			t.Fatalf("it says %q, want %q", lines.Text(), want)
		}
		if err := cmd.Process.Signal(os.Interrupt); err != nil {
			t.Fatal(err)
		}
	}
	// Two that come at once are one: more of them, until it has ended.
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	for len(ended) == 0 {
		_ = cmd.Process.Signal(os.Interrupt) // it may have ended
	}
	<-ended
	if status := cmd.ProcessState.Sys().(syscall.WaitStatus); !status.Signaled() || status.Signal() != syscall.SIGINT {
		t.Errorf("it ended with %v", cmd.ProcessState)
	}
}

func TestAwaitExitOutlivesTheDaemon(t *testing.T) {
	p := newFakeProcess()
	away := containerd.NewExitStatus(containerd.UnknownExitStatus, time.Time{}, status.Error(codes.Unavailable, "gone"))
	p.waits <- *away
	p.waits <- *away
	p.waits <- *containerd.NewExitStatus(7, time.Now(), nil)
	code, err := awaitExit(t.Context(), p, p.waits)
	if code != 7 || err != nil || p.waiting != 2 {
		t.Errorf("code %d, %v, after %d waits", code, err, p.waiting)
	}
	p.waits <- *containerd.NewExitStatus(255, time.Time{}, status.Error(codes.NotFound, "gone"))
	if _, err := awaitExit(t.Context(), p, p.waits); err == nil {
		t.Error("a lost process has no error")
	}
}

func TestStdinEnd(t *testing.T) {
	p := newFakeProcess()
	s := &stdio{stdin: &watchedReader{Reader: strings.NewReader("abc"), done: make(chan struct{})}}
	if got, err := io.ReadAll(s.stdin); string(got) != "abc" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	s.closeStdinAtEOF(t.Context(), p)
	<-p.closed
	// Without an end of the input the end of the process is enough.
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	s.stdin = &watchedReader{Reader: strings.NewReader(""), done: make(chan struct{})}
	s.closeStdinAtEOF(ctx, p)
	if len(p.closed) != 0 {
		t.Error("stdin closed without an end")
	}
}

type brokenWriter struct{}

func (brokenWriter) Write([]byte) (int, error) { return 0, os.ErrClosed }

func TestUnreadOutputKills(t *testing.T) {
	p := newFakeProcess()
	s := &stdio{}
	s.out.broken = make(chan struct{})
	w := &watchedWriter{brokenWriter{}, &s.out}
	for range 3 {
		if n, err := w.Write([]byte("abc")); n != 3 || err != nil {
			t.Errorf("write: %d, %v", n, err)
		}
	}
	s.killWhenUnread(t.Context(), p)
	if got := <-p.killed; got != syscall.SIGKILL {
		t.Errorf("sent %v", got)
	}
}

func TestHeldOutput(t *testing.T) {
	var out strings.Builder
	s := &stdio{errs: &heldWriter{w: &out}}
	write := func(text string) {
		if n, err := s.errs.Write([]byte(text)); n != len(text) || err != nil {
			t.Errorf("write: %d, %v", n, err)
		}
	}
	write("runtime: ")
	if out.String() != "" {
		t.Errorf("shown before the start: %q", out.String())
	}
	s.started()
	write("process")
	if out.String() != "runtime: process" {
		t.Errorf("after the start: %q", out.String())
	}
	out.Reset()
	s.errs = &heldWriter{w: &out}
	write("a")
	write(strings.Repeat("b", maxHeld))
	if out.Len() != maxHeld+1 {
		t.Errorf("%d bytes shown of more than can be held", out.Len())
	}
	(&stdio{}).started() // with a terminal there is nothing to hold
}

func TestDrain(t *testing.T) {
	s := &stdio{}
	streams := &fakeStreams{ended: make(chan struct{})}
	close(streams.ended)
	s.drain(streams)
	if streams.cancelled {
		t.Error("cancelled streams that had ended")
	}
	streams = &fakeStreams{ended: make(chan struct{})} // held open by a process left behind
	s.drain(streams)
	if !streams.cancelled {
		t.Error("waited for streams that never end")
	}
	s.drain(nil)
}

func TestNoDaemon(t *testing.T) {
	if err := (&app{address: "unix:///run/x.sock"}).noDaemon(os.ErrNotExist); !strings.Contains(err.Error(), "no caissond at unix:///run/x.sock") {
		t.Error(err)
	}
	if err := (&app{}).noDaemon(context.Canceled); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if err := (&app{address: "/x"}).noDaemon(os.ErrPermission); !strings.Contains(err.Error(), "no permission") {
		t.Error(err)
	}
}

func TestRelativeAddress(t *testing.T) {
	d := startFake(t)
	t.Chdir(filepath.Dir(d.address))
	if code, _, stderr := runCLI(t, "--address", filepath.Base(d.address), "sandbox", "ls"); code != 0 {
		t.Errorf("code %d: %s", code, stderr)
	}
}
