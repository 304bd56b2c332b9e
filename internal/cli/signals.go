package cli

import (
	"context"
	"os"
	"os/signal"
	"slices"
	"sync"
	"syscall"

	containerd "github.com/containerd/containerd/v2/client"
	"golang.org/x/sys/unix"
)

// signals catches what would end caisson. A signal cancels the command, so that it takes
// back what it has begun; while a process runs in the foreground, signals are passed to it.
type signals struct {
	ch     chan os.Signal
	cancel context.CancelFunc
	stop   chan struct{}
	wg     sync.WaitGroup

	mu         sync.Mutex           // guards all below
	target     func(syscall.Signal) // nil to cancel the command
	interrupts int                  // that it has had
	early      syscall.Signal       // the one that has cancelled the command; 0 for none
}

// impatience is how many interrupts a process may ignore before it is killed, and the
// command before caisson ends with whatever it was doing.
const impatience = 3

func catchSignals(ctx context.Context) (context.Context, *signals) {
	ctx, cancel := context.WithCancel(ctx)
	s := &signals{ch: make(chan os.Signal, 64), cancel: cancel, stop: make(chan struct{})}
	caught := []os.Signal{unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGTERM, unix.SIGUSR1, unix.SIGUSR2, unix.SIGPIPE}
	// What nohup, or a shell for what it runs in the background, has us ignore stays ignored.
	signal.Notify(s.ch, slices.DeleteFunc(caught, signal.Ignored)...)
	s.wg.Go(s.run)
	return ctx, s
}

func (s *signals) run() {
	for {
		select {
		case <-s.stop:
			return
		case got := <-s.ch:
			s.handle(got.(syscall.Signal))
		}
	}
}

func (s *signals) handle(sig syscall.Signal) {
	if sig == unix.SIGPIPE {
		return // caught so that it kills nobody: the writer gets an error
	}
	s.mu.Lock()
	interrupt := sig == unix.SIGINT || sig == unix.SIGTERM
	if interrupt {
		s.interrupts++
	}
	enough := interrupt && s.interrupts >= impatience
	target, ends := s.target, interrupt || sig == unix.SIGHUP || sig == unix.SIGQUIT
	if target == nil && ends {
		s.early = sig
	}
	s.mu.Unlock()
	switch {
	case target != nil && enough:
		target(unix.SIGKILL)
	case target != nil:
		target(sig)
	case enough:
		signal.Reset(sig)
		_ = unix.Kill(unix.Getpid(), sig) // cannot fail
	case ends:
		s.cancel()
	}
}

// forwardTo passes signals to a process from now on, and the one that came while it was
// being started.
func (s *signals) forwardTo(ctx context.Context, p containerd.Process) {
	target := func(sig syscall.Signal) {
		// NotFound: it has just ended, which the waiter learns.
		_ = p.Kill(ctx, sig)
	}
	if early := s.aim(target); early != 0 {
		target(early)
	}
}

// cancelAgain is for when that process has ended, or is left.
func (s *signals) cancelAgain() { s.aim(nil) }

func (s *signals) aim(target func(syscall.Signal)) (early syscall.Signal) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.target, s.interrupts = target, 0
	return s.early
}

func (s *signals) close() {
	signal.Stop(s.ch)
	close(s.stop)
	s.wg.Wait()
	s.cancel()
}
