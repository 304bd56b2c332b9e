package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// errUnread is what becomes of a command whose output nobody reads any more.
var errUnread = errors.New("nobody reads the output")

// outStream is standard output or standard error. A write to it ends with ctx, even if the
// reader has stopped to read. It remembers its first failure: a command must not seem to
// have succeeded when its output was lost.
type outStream struct {
	ctx context.Context
	w   io.Writer

	mu   sync.Mutex // guards lost
	lost error
}

func (o *outStream) Write(p []byte) (int, error) {
	n, err := o.write(p)
	if errors.Is(err, syscall.EPIPE) {
		err = fmt.Errorf("%w: %w", errUnread, err)
	}
	if err != nil {
		o.mu.Lock()
		defer o.mu.Unlock()
		if o.lost == nil {
			o.lost = err
		}
	}
	return n, err
}

// room is how much a pipe takes at once if it takes anything.
const room = 4096

func (o *outStream) write(p []byte) (n int, err error) {
	f := fileOf(o.w)
	if f == nil {
		return o.w.Write(p)
	}
	for n < len(p) && err == nil {
		if err = awaitFile(o.ctx, f, unix.POLLOUT); err == nil {
			var wrote int
			wrote, err = f.Write(p[n:min(n+room, len(p))])
			n += wrote
		}
	}
	return n, err
}

// verdict is the result of a command that wrote to it.
func (o *outStream) verdict(err error) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	var ran exitStatus
	if o.lost != nil && (err == nil || errors.As(err, &ran) || errors.Is(o.lost, errUnread)) {
		return o.lost
	}
	return err
}

// lossy never fails, for cobra's help, which takes a failure for no more than a reason to
// complain: the command's verdict tells it.
type lossy struct{ io.Writer }

func (l lossy) Write(p []byte) (int, error) {
	_, _ = l.Writer.Write(p)
	return len(p), nil
}

// fileOf is the file that w writes to, nil if it is none.
func fileOf(w io.Writer) *os.File {
	switch w := w.(type) {
	case *os.File:
		return w
	case *outStream:
		return fileOf(w.w)
	}
	return nil
}

// inStream reads a file that may keep one waiting, as standard input does, until ctx ends.
type inStream struct {
	ctx context.Context
	f   *os.File
}

func (i inStream) Read(p []byte) (int, error) {
	if err := awaitFile(i.ctx, i.f, unix.POLLIN); err != nil {
		return 0, err
	}
	return i.f.Read(p)
}

// openWaiting opens a file to read. If it is a FIFO that nobody writes to yet, it is the
// first read that waits.
func openWaiting(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
}

// awaitFile waits until a file can be read or written, or fails at once.
func awaitFile(ctx context.Context, f *os.File, events int16) error {
	const interval = 100 // milliseconds: how late the end of the context is noticed
	for {
		fds := []unix.PollFd{{Fd: int32(f.Fd()), Events: events}}
		n, err := unix.Poll(fds, interval)
		switch {
		case n > 0:
			return nil
		case err != nil && err != unix.EINTR:
			return os.NewSyscallError("poll", err)
		case ctx.Err() != nil:
			return ctx.Err()
		}
	}
}

// whileRead does something until nobody reads standard output any more: what shows things
// as they happen would learn of that only when the next one does.
func (a *app) whileRead(ctx context.Context, do func(context.Context) error) error {
	f := fileOf(a.sys.Stdout)
	if f == nil {
		return do(ctx)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	var wg sync.WaitGroup
	wg.Go(func() {
		// Without an event to wait for, only an error or the reader's end comes.
		if awaitFile(ctx, f, 0) == nil {
			cancel(errUnread)
		}
	})
	err := do(ctx)
	if errors.Is(context.Cause(ctx), errUnread) {
		err = errUnread
	}
	cancel(nil)
	wg.Wait()
	return err
}
