package task

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"golang.org/x/sys/unix"

	"caisson/internal/isolation"
	"caisson/internal/monitor"
	"caisson/internal/stdio"
)

// processIO is what an OCI runtime is given as its own stdio, which becomes the
// container's.
type processIO struct {
	set     *stdio.Set
	files   []*os.File
	console *stdio.ConsoleSocket // nil without a terminal
}

func (io *processIO) consolePath() string {
	if io.console == nil {
		return ""
	}
	return io.console.Path()
}

// close closes what the runtime has inherited, or never needed.
func (io *processIO) close(ctx context.Context) {
	err := io.set.Close()
	if io.console != nil {
		err = errors.Join(err, io.console.Close())
	}
	if err != nil {
		log.G(ctx).WithError(err).Warn("close stdio")
	}
}

// openIO opens the process's stdio. What must outlive the daemon is in the
// monitor when it returns.
func (p *process) openIO(ctx context.Context, host isolation.Host) (_ *processIO, err error) {
	cfg := p.snapshot().Stdio
	identity := stdio.Identity{Namespace: p.c.set.cfg.Namespace, ContainerID: p.c.ID}
	if p.execID != "" {
		identity.ContainerID = p.execID
	}
	hangup, err := p.watchStdin(cfg)
	if err != nil {
		return nil, fmt.Errorf("%v: %w", p, err)
	}
	kept := map[string]bool{}
	set, err := stdio.Open(ctx, cfg, stdio.Owner{UID: p.c.IoUID, GID: p.c.IoGID}, identity, p.keepFIFO(ctx, host, kept))
	if err != nil {
		hangup.Close()
		return nil, fmt.Errorf("%v: %w", p, err)
	}
	io := &processIO{set: set}
	defer func() {
		if err != nil {
			io.close(ctx)
			hangup.Close()
			err = fmt.Errorf("%v: %w", p, err)
		}
	}()
	child := set.Child()
	io.files = child[:]
	for stream, keeper := range set.Keepers() {
		if kept[stream] {
			continue
		}
		if err := host.Keep(ctx, p.kept(stream), keeper); err != nil {
			return nil, fmt.Errorf("keep %s: %w", stream, err)
		}
	}
	if cfg.Terminal {
		if err := p.openConsole(ctx, host, io); err != nil {
			return nil, err
		}
	}
	if logger := set.Logger(); logger != nil {
		if err := p.startLogger(ctx, host, logger); err != nil {
			return nil, err
		}
	}
	// Only now that the keeper is kept can it be dropped.
	p.onHangup(hangup)
	return io, nil
}

// keepFIFO lets the monitor open FIFOs: if the daemon, which opened one first, were
// killed before the monitor has it, its reader would see an end that is none. kept
// are the streams for which this was done.
func (p *process) keepFIFO(ctx context.Context, host isolation.Host, kept map[string]bool) stdio.Keep {
	return func(stream string, fifo *os.File) (*os.File, error) {
		f, err := host.KeepFIFO(ctx, p.kept(stream), fifo)
		if errdefs.IsNotImplemented(err) { // a monitor of an earlier version
			return stdio.OpenHere(stream, fifo)
		}
		kept[stream] = err == nil
		return f, err
	}
}

// watchStdin waits for the client to close its end, if that means anything: CRI
// says itself when stdin is closed.
func (p *process) watchStdin(cfg stdio.Config) (*stdio.Hangup, error) {
	if p.execID == "" && p.c.set.cfg.StdinStays() {
		return nil, nil
	}
	return stdio.WatchStdin(cfg)
}

// settleStdin ends the watch of a container's stdin when it starts. A client that
// closed its end before has no more input; ctr may miss the moment to say so. One
// that closes it later says so with CloseIO, or has ended and opens it again when it
// is back, as an engine does after its restart. It never comes back for an exec's.
func (p *process) settleStdin(ctx context.Context) error {
	p.mu.Lock()
	h := p.hangup
	p.hangup = nil
	p.mu.Unlock()
	if h == nil {
		return nil
	}
	closed, err := h.Stop()
	if closed {
		err = errors.Join(err, p.closeStdin(ctx))
	}
	return err
}

// onHangup closes the process's input when its client closes it. h may be nil.
func (p *process) onHangup(h *stdio.Hangup) {
	if h == nil {
		return
	}
	p.mu.Lock()
	p.hangup = h
	p.mu.Unlock()
	p.c.set.background(func() {
		select {
		case <-h.Done():
		case <-p.c.set.closing:
			return
		}
		p.mu.Lock()
		noticed := p.hangup == h
		p.mu.Unlock()
		if !noticed {
			return // Nobody waits for input any more.
		}
		ctx := p.context()
		if err := p.closeStdin(ctx); err != nil {
			log.G(ctx).WithError(err).Warn("close stdin")
		}
	})
}

// unwatchStdin ends the watch. It may be repeated.
func (p *process) unwatchStdin() {
	p.mu.Lock()
	h := p.hangup
	p.hangup = nil
	p.mu.Unlock()
	if h != nil {
		h.Close()
	}
}

// closeStdin lets the process see the end of its input once no client is left.
func (p *process) closeStdin(ctx context.Context) error { return p.dropStream(ctx, stdio.Stdin) }

// startLogger runs a binary:// logger beside the container: it outlives the
// daemon, and ends when the container's output does.
func (p *process) startLogger(ctx context.Context, host isolation.Host, l *stdio.Logger) error {
	logger, err := host.Spawn(ctx, monitor.SpawnRequest{
		Tag:   loggerTag + p.tag(),
		Dir:   "/",
		Args:  l.Args,
		Env:   l.Env,
		Files: l.Files,
	})
	if err != nil {
		return fmt.Errorf("start logger: %w", err)
	}
	if err := l.WaitReady(ctx); err != nil {
		if e := host.Signal(context.WithoutCancel(ctx), logger.Serial, unix.SIGKILL); e != nil && !errdefs.IsNotFound(e) {
			err = errors.Join(err, e)
		}
		return err
	}
	return nil
}

// loggerTag begins the tags of loggers, and of nothing else: no ID has a colon.
const loggerTag = "logger:"

// The names under which the monitor keeps a terminal, and before it has that, the
// console socket and the connection that it comes through.
const (
	masterStream   = "master"
	consoleStream  = "console"
	acceptedStream = "console-accepted"
)

// openConsole makes the socket that the runtime sends the terminal to. The monitor has
// it, too: what is sent when the daemon is killed waits there for the next one.
func (p *process) openConsole(ctx context.Context, host isolation.Host, io *processIO) (err error) {
	if io.console, err = stdio.Listen(p.c.set.cfg.Dir); err != nil {
		return err
	}
	// A creation that comes again finds what the first one was sent.
	err = host.Drop(ctx, p.kept(acceptedStream))
	if err == nil {
		err = host.Keep(ctx, p.kept(consoleStream), io.console.File())
	}
	if err != nil {
		return fmt.Errorf("keep console socket: %w", err)
	}
	return nil
}

// takeTerminal receives the terminal that the runtime made, and starts to copy.
func (p *process) takeTerminal(ctx context.Context, host isolation.Host, io *processIO) error {
	master, err := p.awaitTerminal(ctx, host, io.console)
	if err == nil {
		err = p.keepTerminal(ctx, host, master)
	}
	if err != nil {
		return fmt.Errorf("%v: terminal: %w", p, err)
	}
	return p.copyTerminal(master, io.set.Keepers())
}

// awaitTerminal waits until the runtime has sent the terminal.
func (p *process) awaitTerminal(ctx context.Context, host isolation.Host, console *stdio.ConsoleSocket) (*os.File, error) {
	for {
		if err := console.Await(ctx); err != nil {
			return nil, err
		}
		master, err := p.sentTerminal(ctx, host)
		switch {
		case errdefs.IsNotImplemented(err): // a monitor of an earlier version
			return console.Accept(ctx)
		case !errdefs.IsPermissionDenied(err) && !errors.Is(err, unix.EAGAIN):
			return master, err
		}
	}
}

// sentTerminal is the terminal that was sent. It is still in the connection, which the
// monitor has, until keepTerminal.
func (p *process) sentTerminal(ctx context.Context, host isolation.Host) (*os.File, error) {
	files, err := host.Fetch(ctx, p.kept(acceptedStream))
	if errdefs.IsNotFound(err) {
		var conn *os.File
		conn, err = host.Accept(ctx, p.kept(consoleStream), p.kept(acceptedStream))
		files = []*os.File{conn}
	}
	if err != nil {
		return nil, err
	}
	defer files[0].Close() // a duplicate
	master, err := stdio.SentTerminal(ctx, files[0])
	if errdefs.IsPermissionDenied(err) {
		err = errors.Join(err, host.Drop(ctx, p.kept(acceptedStream)))
	}
	return master, err
}

// keepTerminal hands the terminal to the monitor. On an error it is closed.
func (p *process) keepTerminal(ctx context.Context, host isolation.Host, master *os.File) error {
	err := host.Keep(ctx, p.kept(masterStream), master)
	if err == nil {
		err = host.DropPrefix(ctx, p.kept(consoleStream))
	}
	if err != nil {
		return errors.Join(fmt.Errorf("keep: %w", err), master.Close())
	}
	return nil
}

func (p *process) copyTerminal(master *os.File, kept map[string]*os.File) error {
	term, err := stdio.NewTerminal(p.context(), master, p.snapshot().Stdio, kept)
	if err != nil {
		return errors.Join(fmt.Errorf("%v: %w", p, err), master.Close())
	}
	p.setTerminal(term)
	return nil
}

// ResizePty changes the size of a process's terminal, in characters. It may be
// repeated. FailedPrecondition: the process has no terminal.
func (s *Set) ResizePty(_ context.Context, id, execID string, width, height uint32) error {
	p, err := s.process(id, execID)
	if err != nil {
		return err
	}
	if !p.snapshot().Stdio.Terminal {
		return fmt.Errorf("%v: resize: it has no terminal: %w", p, errdefs.ErrFailedPrecondition)
	}
	term := p.terminal()
	if term == nil {
		return nil // Not started yet, or ended: there is nothing to resize.
	}
	if err := term.Resize(width, height); err != nil {
		return fmt.Errorf("%v: resize: %w", p, err)
	}
	return nil
}

// CloseIO closes a process's standard input: it reads to the end of what was
// written, then sees the end. It may be repeated.
func (s *Set) CloseIO(ctx context.Context, id, execID string) error {
	p, err := s.process(id, execID)
	if err != nil {
		return err
	}
	if term := p.terminal(); term != nil {
		term.CloseStdin()
		return nil
	}
	return p.closeStdin(ctx)
}

// drainTimeout is how long the end of a terminal waits for somebody to read the
// last output.
const drainTimeout = 2 * time.Second

// drain waits until the output of a process that has ended has reached its
// reader, and ends the copying, so that the reader sees the end. Every caller
// returns when that is done.
func (p *process) drain(ctx context.Context) {
	p.drained.Do(func() {
		term := p.terminal()
		if term == nil {
			return
		}
		dctx, cancel := context.WithTimeout(ctx, drainTimeout)
		defer cancel()
		if err := term.Wait(dctx); err != nil {
			log.G(ctx).WithError(err).Warn("terminal closed with output that nobody read")
		}
		if err := term.Close(); err != nil {
			log.G(ctx).WithError(err).Warn("close terminal")
		}
	})
}
