package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"sync"
	"time"

	"github.com/containerd/console"
	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"golang.org/x/sys/unix"
)

// runProcess starts a process in the foreground, or connects to one that runs if
// there is no start, and waits for its end and its output. The error is an exitStatus
// if the process ran, and errDetached if it goes on.
func (a *app) runProcess(ctx context.Context, p containerd.Process, io *stdio, f processFlags, start func(context.Context) error) error {
	// From here on the process decides when this ends, not the command's context.
	ctx = context.WithoutCancel(ctx)
	watchCtx, stop := context.WithCancel(ctx)
	defer stop()
	exited, err := p.Wait(watchCtx) // before Start, so that no exit is missed
	if err != nil {
		return fmt.Errorf("wait: %w", err)
	}
	restore, err := a.rawTerminal(f)
	if err != nil {
		return err
	}
	defer restore()
	if start != nil {
		if err := start(ctx); err != nil {
			return newStartError(err)
		}
	}
	a.signals.forwardTo(ctx, p)
	io.started()

	var wg sync.WaitGroup
	defer wg.Wait()
	defer stop()
	wg.Go(func() { io.closeStdinAtEOF(watchCtx, p) })
	var unread <-chan struct{}
	if start != nil {
		wg.Go(func() { io.killWhenUnread(watchCtx, p) })
	} else {
		unread = io.out.broken // the process was there before us, and stays
	}
	if f.tty {
		wg.Go(func() { a.followSize(watchCtx, p, start == nil) })
	}
	ended := make(chan exitResult, 1)
	wg.Go(func() {
		status, err := awaitExit(watchCtx, p, exited)
		ended <- exitResult{status, err}
	})
	var end exitResult
	select {
	case end = <-ended:
	case <-io.left():
		p.IO().Cancel() // and not Close: the FIFOs stay
		return errDetached
	case <-unread:
		p.IO().Cancel() // and not Close: the FIFOs stay
		return errDetached
	}
	a.signals.cancelAgain() // which is what ends the rest, if nobody reads it
	io.drain(p.IO())
	if end.err != nil {
		return fmt.Errorf("wait: %w", end.err)
	}
	closeStreams(p.IO())
	if end.status != 0 {
		return exitStatus(end.status)
	}
	return nil
}

type exitResult struct {
	status uint32
	err    error
}

// closeStreams removes the FIFOs of a process that has ended.
func closeStreams(streams cio.IO) {
	if streams != nil {
		streams.Cancel()
		_ = streams.Close() // the FIFOs are in a directory that is ours alone
	}
}

// rawTerminal hands the terminal to the process; the answer gives it back.
func (a *app) rawTerminal(f processFlags) (func(), error) {
	if !f.tty || !f.interactive || !isTerminal(a.sys.Stdin) {
		return func() {}, nil
	}
	con, err := console.ConsoleFromFile(a.sys.Stdin)
	if err != nil {
		return nil, fmt.Errorf("terminal: %w", err)
	}
	if err := con.SetRaw(); err != nil {
		return nil, fmt.Errorf("terminal: %w", err)
	}
	return func() { _ = con.Reset() }, nil // a terminal that is gone needs no reset
}

// followSize keeps the process's terminal as large as ours. With redraw it changes
// once more than needed, for the process to draw what it drew before we came.
func (a *app) followSize(ctx context.Context, p containerd.Process, redraw bool) {
	out := fileOf(a.sys.Stdout)
	if !isTerminal(out) {
		return
	}
	changed := make(chan os.Signal, 1)
	signal.Notify(changed, unix.SIGWINCH)
	defer signal.Stop(changed)
	for {
		if size, err := unix.IoctlGetWinsize(int(out.Fd()), unix.TIOCGWINSZ); err == nil {
			if redraw {
				_ = p.Resize(ctx, uint32(size.Col)+1, uint32(size.Row)+1)
				redraw = false
			}
			_ = p.Resize(ctx, uint32(size.Col), uint32(size.Row)) // the next change tries again
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

// awaitExit waits for the exit of a process, beyond a restart of the daemon:
// containers outlive it.
func awaitExit(ctx context.Context, p containerd.Process, exited <-chan containerd.ExitStatus) (uint32, error) {
	const longest = 2 * time.Second
	pause := 50 * time.Millisecond
	for {
		status := <-exited
		code, _, err := status.Result()
		if err == nil {
			return code, nil
		}
		if err = errgrpc.ToNative(err); !errdefs.IsUnavailable(err) {
			return 0, err
		}
		select {
		case <-time.After(pause): // back-off between tries, not a wait for an event
		case <-ctx.Done():
			return 0, errors.Join(err, ctx.Err())
		}
		pause = min(2*pause, longest)
		if exited, err = p.Wait(ctx); err != nil {
			return 0, err
		}
	}
}
