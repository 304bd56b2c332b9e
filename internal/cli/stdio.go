package cli

import (
	"context"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"golang.org/x/term"
)

func isTerminal(f *os.File) bool { return f != nil && term.IsTerminal(int(f.Fd())) }

// stdio connects a foreground process to caisson's own standard streams.
type stdio struct {
	create cio.Creator
	attach cio.Attach     // instead of create, to a process that has FIFOs
	stdin  *watchedReader // nil without --interactive
	leave  *detachReader  // nil without a terminal to leave
	errs   *heldWriter    // nil with --tty
	out    activity
}

func (a *app) foreground(f processFlags) (*stdio, error) {
	dir, err := a.fifoDir()
	if err != nil {
		return nil, err
	}
	s := &stdio{}
	s.out.broken = make(chan struct{})
	var in io.Reader
	if f.interactive {
		s.stdin = &watchedReader{Reader: a.sys.Stdin, done: make(chan struct{})}
		in = s.stdin
		if f.tty && len(f.leave) > 0 {
			s.leave = newDetachReader(s.stdin, f.leave)
			in = s.leave
		}
	}
	out := &watchedWriter{a.sys.Stdout, &s.out}
	opts := []cio.Opt{cio.WithFIFODir(dir)}
	if f.tty {
		opts = append(opts, cio.WithStreams(in, out, nil), cio.WithTerminal)
	} else {
		s.errs = &heldWriter{w: a.sys.Stderr}
		opts = append(opts, cio.WithStreams(in, out, &watchedWriter{s.errs, &s.out}))
	}
	s.create, s.attach = cio.NewCreator(opts...), cio.NewAttach(opts...)
	return s, nil
}

// toLog sends the output of a detached process to a file.
func toLog(path string, tty bool) (cio.Creator, error) {
	if !tty {
		return cio.LogFile(path), nil
	}
	uri, err := cio.LogURIGenerator("file", path, nil)
	if err != nil {
		return nil, err
	}
	return cio.TerminalLogURI(uri), nil
}

// closeStdinAtEOF tells the daemon when standard input has ended: it keeps the
// FIFO open for the process, so closing our end is not enough.
func (s *stdio) closeStdinAtEOF(ctx context.Context, p containerd.Process) {
	if s.stdin == nil {
		return
	}
	select {
	case <-s.stdin.done:
		_ = p.CloseIO(ctx, containerd.WithStdinCloser) // the process may be gone: then it reads no more
	case <-ctx.Done():
	}
}

// watchedReader tells when its end was reached.
type watchedReader struct {
	io.Reader
	once sync.Once
	done chan struct{}
}

func (r *watchedReader) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	if n > 0 {
		return n, nil // the end is told only once all before it was passed on
	}
	if err != nil {
		r.once.Do(func() { close(r.done) })
	}
	return n, err
}

// activity counts what output does, so that a slow reader of ours is told from
// a writer in the container that does not let go.
type activity struct {
	begun, ended atomic.Int64

	once   sync.Once
	broken chan struct{} // closed when nobody reads our output any more
}

type watchedWriter struct {
	io.Writer
	seen *activity
}

// Write never fails: output that nobody reads is thrown away, or the process
// would wait for room in its FIFO for ever.
func (w *watchedWriter) Write(p []byte) (int, error) {
	w.seen.begun.Add(1)
	defer w.seen.ended.Add(1)
	if _, err := w.Writer.Write(p); err != nil {
		w.seen.once.Do(func() { close(w.seen.broken) })
	}
	return len(p), nil
}

// heldWriter keeps what is written until the process has started. Until then it
// is the OCI runtime that writes, which shares the process's standard error: the
// same sentence that comes back as the error of the failed start.
type heldWriter struct {
	w io.Writer

	mu       sync.Mutex // guards all below, and w, for the order of its output
	held     []byte
	released bool
}

// maxHeld is more than a runtime says; a process that is faster than the answer
// to its start may say more.
const maxHeld = 64 << 10

func (h *heldWriter) Write(p []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.released && len(h.held)+len(p) <= maxHeld {
		h.held = append(h.held, p...)
		return len(p), nil
	}
	if err := h.flushLocked(); err != nil {
		return 0, err
	}
	return h.w.Write(p)
}

func (h *heldWriter) flushLocked() error {
	h.released = true
	held := h.held
	h.held = nil
	_, err := h.w.Write(held)
	return err
}

// started lets the output through.
func (s *stdio) started() {
	if s.errs == nil {
		return
	}
	s.errs.mu.Lock()
	defer s.errs.mu.Unlock()
	_ = s.errs.flushLocked() // a reader that is gone is noticed by the next write
}

// killWhenUnread kills a process whose output goes nowhere, as SIGPIPE would end
// it had it been started here. It is KILL, since PID 1 of a container does not
// die of SIGPIPE unless it asked to.
func (s *stdio) killWhenUnread(ctx context.Context, p containerd.Process) {
	select {
	case <-s.out.broken:
		_ = p.Kill(ctx, syscall.SIGKILL) // it may have ended by itself
	case <-ctx.Done():
	}
}

// left is closed when the detach keys were typed; nil if there are none.
func (s *stdio) left() <-chan struct{} {
	if s.leave == nil {
		return nil
	}
	return s.leave.pressed
}

// drainIdle is how long output may say nothing after its process has ended,
// until it counts as held open by a process left behind.
const drainIdle = time.Second

// drain waits for the rest of the output of a process that has ended. It ends
// with the streams, or when nothing has come for drainIdle: a process left in
// the background keeps them open for as long as it lives.
func (s *stdio) drain(streams cio.IO) {
	if streams == nil {
		return
	}
	done := make(chan struct{})
	go func() {
		streams.Wait()
		close(done)
	}()
	tick := time.NewTicker(drainIdle)
	defer tick.Stop()
	last := s.out.begun.Load()
	for {
		select {
		case <-done:
			return
		case <-tick.C:
		}
		now := s.out.begun.Load()
		if writing := now != s.out.ended.Load(); !writing && now == last {
			streams.Cancel()
			<-done
			return
		}
		last = now
	}
}
