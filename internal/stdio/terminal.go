package stdio

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"golang.org/x/sys/unix"
)

// Terminal moves a process's terminal input and output between the master of its pty and
// the client's FIFOs. Resize, CloseStdin, Wait and Close may be called concurrently.
type Terminal struct {
	master *os.File // non-blocking
	name   string   // of stdout, for messages
	log    *log.Entry
	input  *pump // nil without stdin
	output *pump
	files  []*os.File // closed by Close, last
	pumps  sync.WaitGroup
	closed chan struct{} // closed when Close begins
	close  func() error

	mu        sync.Mutex
	quiet     chan struct{} // closed and replaced whenever the output is found drained
	outputErr error         // why output was lost
}

// NewTerminal begins to copy. The master comes from a ConsoleSocket, or after a daemon
// restart from the monitor; kept are the keepers that Open returned (or the monitor did),
// and may lack those of streams that cfg names by path. A logger's pipe must be among them.
// The caller keeps his keepers; the master is the Terminal's once there is no error. ctx
// is for the log alone: it says whose terminal this is.
func NewTerminal(ctx context.Context, master *os.File, cfg Config, kept map[string]*os.File) (*Terminal, error) {
	t, err := prepareTerminal(ctx, master, cfg, kept)
	if err != nil {
		return nil, fmt.Errorf("terminal: %w", err)
	}
	t.begin()
	return t, nil
}

// prepareTerminal opens all that is needed and takes the master over.
func prepareTerminal(ctx context.Context, master *os.File, cfg Config, kept map[string]*os.File) (*Terminal, error) {
	ts, err := cfg.targets()
	if err != nil {
		return nil, err
	}
	t := &Terminal{name: ts.stdout.path, log: log.G(ctx).WithField("stdout", ts.stdout.path), closed: make(chan struct{}), quiet: make(chan struct{})}
	t.close = sync.OnceValue(t.shutdown)
	if err := t.open(master, ts, kept); err != nil {
		return nil, errors.Join(err, t.closeFiles())
	}
	if err := master.Close(); err != nil {
		return nil, errors.Join(fmt.Errorf("close original master: %w", err), t.closeFiles())
	}
	return t, nil
}

func (t *Terminal) begin() {
	t.pumps.Go(t.copyOutput)
	if t.input != nil {
		t.pumps.Go(t.copyInput)
	}
}

func (t *Terminal) open(master *os.File, ts targets, kept map[string]*os.File) error {
	var err error
	if t.master, err = t.add(duplicate(master)); err != nil {
		return err
	}
	out, err := t.openOutput(ts.stdout, kept[Stdout])
	if err != nil {
		return ts.stdout.errorf(err)
	}
	kind, err := fileType(out)
	if err != nil {
		return ts.stdout.errorf(err)
	}
	toFile := kind != unix.S_IFIFO
	t.output = &pump{from: t.master, to: out, toFile: toFile, copied: toFile, hungUp: t.drainedOnce}
	if ts.stdin.scheme == schemeNull {
		return nil
	}
	in, err := t.openInput(ts.stdin, kept[Stdin])
	if err != nil {
		return ts.stdin.errorf(err)
	}
	t.input = &pump{from: in, to: t.master}
	return nil
}

func (t *Terminal) add(f *os.File, err error) (*os.File, error) {
	if f != nil {
		t.files = append(t.files, f)
	}
	return f, err
}

// duplicate returns the master as a file that Go's poller handles, with the original left
// untouched.
func duplicate(master *os.File) (*os.File, error) {
	var fd int
	err := withFD(master, func(old int) (err error) {
		if err = isMaster(old); err != nil {
			return err
		}
		fd, err = unix.FcntlInt(uintptr(old), unix.F_DUPFD_CLOEXEC, 0)
		return err
	})
	if err != nil {
		return nil, err
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	f := os.NewFile(uintptr(fd), "ptmx")
	return f, waitable(f)
}

// waitable checks that Go's poller took a non-blocking file; else its waits would fail.
func waitable(f *os.File) error {
	if err := f.SetDeadline(time.Time{}); err != nil {
		return fmt.Errorf("cannot be waited for: %w", err)
	}
	return nil
}

// openOutput opens where the output goes.
func (t *Terminal) openOutput(to target, keeper *os.File) (*os.File, error) {
	switch {
	case to.scheme == schemeNull:
		return t.add(os.OpenFile(os.DevNull, os.O_WRONLY, 0))
	case to.scheme == schemeFile:
		return t.add(openLog(to.path))
	case to.isBinary() && keeper == nil:
		return nil, fmt.Errorf("no pipe to the logger: %w", errdefs.ErrFailedPrecondition)
	case to.isBinary():
		// Without a read-write descriptor: the pipe shall break if the logger does.
		return t.openPipe(keeper, unix.O_WRONLY)
	case keeper != nil:
		return t.openFIFO(keeper, unix.O_WRONLY)
	}
	f, kind, err := lookup(to.path)
	if err != nil {
		return nil, err
	}
	defer f.Close() // O_PATH
	if kind == unix.S_IFIFO {
		return t.openFIFO(f, unix.O_WRONLY)
	}
	if to.scheme == schemeFIFO {
		return nil, fmt.Errorf("not a FIFO: %w", errdefs.ErrInvalidArgument)
	}
	return t.add(reopen(f, unix.O_WRONLY|unix.O_APPEND))
}

func (t *Terminal) openInput(from target, keeper *os.File) (*os.File, error) {
	if keeper != nil {
		return t.openFIFO(keeper, unix.O_RDONLY)
	}
	f, kind, err := lookup(from.path)
	if err != nil {
		return nil, err
	}
	defer f.Close() // O_PATH
	if kind != unix.S_IFIFO {
		return nil, fmt.Errorf("not a FIFO: %w", errdefs.ErrInvalidArgument)
	}
	return t.openFIFO(f, unix.O_RDONLY)
}

// openFIFO opens an end of a FIFO, and its other end too, so that the client may come and
// go. The two are apart because a read-write descriptor in the poller would be woken by
// what it writes itself.
func (t *Terminal) openFIFO(f *os.File, flags int) (*os.File, error) {
	keeper, err := t.add(reopen(f, unix.O_RDWR))
	if err != nil {
		return nil, err
	}
	return t.openPipe(keeper, flags)
}

func (t *Terminal) openPipe(f *os.File, flags int) (*os.File, error) {
	end, err := t.add(reopen(f, flags|unix.O_NONBLOCK))
	if err != nil {
		return nil, err
	}
	if err := waitable(end); err != nil {
		return nil, err
	}
	return end, withFD(end, growPipe)
}

// copyOutput goes on when the output cannot be delivered: a process must not hang because
// its log's disk is full or its logger has died. What is lost is reported by Wait.
func (t *Terminal) copyOutput() {
	for !t.output.stopping.Load() {
		err := t.output.run()
		if err == nil {
			return
		}
		t.mu.Lock()
		first := t.outputErr == nil
		t.outputErr = err
		t.mu.Unlock()
		if first {
			t.log.WithError(err).Error("terminal: output cannot be delivered and is lost")
		}
		if t.output.toFile {
			continue // the chunk is lost; there may be space for the next
		}
		t.output.discard = true
	}
}

func (t *Terminal) copyInput() {
	if err := t.input.run(); err != nil {
		t.log.WithError(err).Warn("terminal: input stopped")
	}
}

// drainedOnce wakes Wait.
func (t *Terminal) drainedOnce() {
	t.mu.Lock()
	close(t.quiet)
	t.quiet = make(chan struct{})
	t.mu.Unlock()
}

// Resize sets the terminal's size in characters; the process gets SIGWINCH if it changed.
func (t *Terminal) Resize(width, height uint32) error {
	if width > math.MaxUint16 || height > math.MaxUint16 {
		return fmt.Errorf("terminal: resize to %d×%d: %w", width, height, errdefs.ErrInvalidArgument)
	}
	size := &unix.Winsize{Col: uint16(width), Row: uint16(height)}
	err := withFD(t.master, func(fd int) error { return unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, size) })
	if err != nil {
		return fmt.Errorf("terminal: resize to %d×%d: %w", width, height, err)
	}
	return nil
}

// CloseStdin stops copying input; what the client wrote and was not copied stays in its
// FIFO. The process sees no end of file, which on a terminal is a character (^D) that the
// client sends. It may be repeated.
func (t *Terminal) CloseStdin() {
	if t.input != nil {
		t.input.stop()
	}
}

// Wait returns when the process's side of the pty is closed and all output delivered to
// the FIFO (the client may yet have to read it). It is called when the process has ended;
// ctx bounds the wait for processes that it left behind with the terminal, and for a
// client that does not read. An error is returned too if output was lost.
func (t *Terminal) Wait(ctx context.Context) error {
	for {
		t.mu.Lock()
		quiet := t.quiet
		t.mu.Unlock()
		drained, err := t.drained()
		if err != nil {
			return fmt.Errorf("terminal: wait for output: %w", err)
		}
		if drained {
			return t.lost()
		}
		select {
		case <-quiet:
		case <-t.closed:
			return fmt.Errorf("terminal: wait for output: closed: %w", errdefs.ErrUnavailable)
		case <-ctx.Done():
			return fmt.Errorf("terminal: wait for output: %w", ctx.Err())
		}
	}
}

// drained looks whether nothing more can come.
//
// A look at the pty counts only if the pump did not read meanwhile: in the middle of a read
// the tty seems empty although more waits in the buffers behind it. And one look is not
// enough: the kernel looks for bytes first and for the hang-up second, so that a process
// may have written and closed in between; after a hang-up that was seen, nobody writes.
func (t *Terminal) drained() (bool, error) {
	generation := t.output.generation.Load()
	if generation%2 == 1 {
		return false, nil
	}
	for range 2 {
		var events int16
		err := withFD(t.master, func(fd int) (err error) {
			events, err = poll1(fd, unix.POLLIN)
			return err
		})
		if err != nil || events&(unix.POLLHUP|unix.POLLIN) != unix.POLLHUP {
			return false, err
		}
	}
	return t.output.generation.Load() == generation, nil
}

func (t *Terminal) lost() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.outputErr != nil {
		return fmt.Errorf("terminal: output to %q was lost: %w", t.name, t.outputErr)
	}
	return nil
}

// Close ends the copies and closes all files; it waits for both. Output not copied yet
// stays in the pty for whoever else holds the master. It may be repeated.
func (t *Terminal) Close() error { return t.close() }

func (t *Terminal) shutdown() error {
	close(t.closed)
	t.CloseStdin()
	t.output.stop()
	t.pumps.Wait()
	return t.closeFiles()
}

func (t *Terminal) closeFiles() error {
	var errs []error
	for _, f := range t.files {
		errs = append(errs, f.Close())
	}
	return errors.Join(errs...)
}
