package stdio

import (
	"errors"
	"io"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// chunk is what one step moves at most: no more than a tty ever gives at once, and
	// what a pipe that poll calls writable takes whole (PIPE_BUF).
	chunk = 4096
	// wantPipe is the size that a FIFO of a terminal is grown to: each splice takes up a
	// page of the pipe, however few bytes it moved.
	wantPipe = 256 << 10
	// spaceEvents say that a write would not wait; POLLHUP, which a master shows while
	// nobody has the slave open, is not among them.
	spaceEvents = unix.POLLOUT | unix.POLLERR | unix.POLLNVAL
)

// outcome says what a pump has to wait for after a step.
type outcome int

const (
	moved     outcome = iota
	needInput         // nothing to read
	needSpace         // something to read, but no space to write it to
	failed
)

// pump moves bytes from one non-blocking descriptor to another until it is stopped. It
// parks its goroutine in Go's poller, so that it costs no thread while it waits. The
// poller is edge-triggered: a wait first looks at the descriptor's state and then sleeps
// until the next change, so that no change is missed, and a state that lasts, such as the
// hang-up of a pty, wakes it only once.
type pump struct {
	from, to *os.File
	// toFile: the destination is a regular file or /dev/null, which is always ready
	// and which splice cannot feed.
	toFile bool
	copied bool // not spliced: toFile, or (found by run) the kernel cannot

	stopping atomic.Bool
	// generation is odd while bytes may have left from and not yet arrived at to, and
	// never the same again after bytes were moved.
	generation atomic.Uint64
	// hungUp is called when from has given all its bytes and its other side is closed,
	// each time that this is found; never while bytes are carried.
	hungUp func()

	// The rest belongs to the goroutine of run.

	discard bool // to is broken: read on, but drop it
	buf     []byte
	pending []byte // read and not yet written; only where splice does not work
	idle    int    // steps in a row that should have moved something and did not
}

// stop makes run return soon; what it has not moved stays in from.
func (p *pump) stop() {
	p.stopping.Store(true)
	past := time.Unix(1, 0)
	// An error means that the file is closed or cannot wait at all: fine, too.
	_ = p.from.SetReadDeadline(past)
	if !p.toFile {
		_ = p.to.SetWriteDeadline(past)
	}
}

// run returns when the pump was stopped, or with the error that ended it.
func (p *pump) run() error {
	fromRaw, err := p.from.SyscallConn()
	if err != nil {
		return err
	}
	toRaw, err := p.to.SyscallConn()
	if err != nil {
		return err
	}
	var from, to int
	if err := fromRaw.Control(func(fd uintptr) { from = int(fd) }); err != nil {
		return err
	}
	if err := toRaw.Control(func(fd uintptr) { to = int(fd) }); err != nil {
		return err
	}
	// The descriptors stay valid: whoever stops the pump waits for it before closing them.
	for !p.stopping.Load() {
		result, err := p.step(from, to)
		switch result {
		case moved:
			continue
		case needInput:
			err = fromRaw.Read(p.readable)
			p.pause()
		case needSpace:
			err = toRaw.Write(p.writable)
			p.pause()
		}
		if err != nil && !p.stopping.Load() {
			return err
		}
	}
	return nil
}

// readable tells the poller whether to stop waiting for input.
func (p *pump) readable(fd uintptr) bool {
	events, err := poll1(int(fd), unix.POLLIN)
	switch {
	case err != nil || events&(unix.POLLIN|unix.POLLNVAL) != 0:
		return true
	case events&unix.POLLHUP != 0 && p.hungUp != nil:
		// A pty comes back to life when somebody opens its slave again.
		p.hungUp()
	}
	return false
}

func (p *pump) writable(fd uintptr) bool {
	events, err := poll1(int(fd), unix.POLLOUT)
	return err != nil || events&spaceEvents != 0
}

// pause keeps a pump from spinning if a descriptor should claim again and again to be
// ready when it is not.
func (p *pump) pause() {
	if p.idle++; p.idle > 8 {
		time.Sleep(2 * time.Millisecond)
	}
}

func (p *pump) step(from, to int) (outcome, error) {
	if len(p.pending) > 0 {
		return p.flush(to)
	}
	// Both are asked before anything is read. The flag O_NONBLOCK alone would not do: it
	// belongs to the open file that we share with the monitor and its other clients, and
	// EAGAIN would not say which of the two is not ready.
	fds := []unix.PollFd{{Fd: int32(from), Events: unix.POLLIN}, {Fd: int32(to), Events: unix.POLLOUT}}
	if err := poll(fds); err != nil {
		return failed, err
	}
	if fds[0].Revents&unix.POLLIN == 0 {
		return needInput, nil
	}
	if !p.toFile && !p.discard && fds[1].Revents&spaceEvents == 0 {
		return needSpace, nil
	}
	p.generation.Add(1)
	defer p.settle()
	if p.copied || p.discard {
		return p.copy(from, to)
	}
	n, err := unix.Splice(from, nil, to, nil, chunk, unix.SPLICE_F_NONBLOCK)
	if errors.Is(err, syscall.EINVAL) {
		p.copied = true
		return p.copy(from, to)
	}
	return p.result(int(n), err)
}

// settle ends a generation once all that was read is written.
func (p *pump) settle() {
	if len(p.pending) == 0 && p.generation.Load()%2 == 1 {
		p.generation.Add(1)
	}
}

// result judges a read or splice. From a pty neither no bytes nor EIO is an end: nobody has
// its slave open at present, of which waiting for input takes care.
func (p *pump) result(n int, err error) (outcome, error) {
	switch {
	case n > 0:
		p.idle = 0
		return moved, nil
	case errors.Is(err, syscall.EINTR):
		return moved, nil
	case errors.Is(err, syscall.EAGAIN):
		return needSpace, nil // from has something
	case p.hungUp != nil && (err == nil || errors.Is(err, syscall.EIO)):
		return needInput, nil
	case err == nil:
		err = io.ErrUnexpectedEOF // our own writer keeps a FIFO from ending
	}
	return failed, err
}

// copy does what splice does where splice does not work. The destination was found
// writable, so the write follows the read at once.
func (p *pump) copy(from, to int) (outcome, error) {
	if p.buf == nil {
		p.buf = make([]byte, chunk)
	}
	n, err := unix.Read(from, p.buf)
	if n <= 0 {
		return p.result(n, err)
	}
	if p.discard {
		return p.result(n, nil)
	}
	p.pending = p.buf[:n]
	return p.flush(to)
}

func (p *pump) flush(to int) (outcome, error) {
	defer p.settle()
	for len(p.pending) > 0 {
		n, err := unix.Write(to, p.pending)
		switch {
		case n > 0:
			p.pending = p.pending[n:]
			p.idle = 0
		case errors.Is(err, syscall.EINTR):
		case errors.Is(err, syscall.EAGAIN):
			return needSpace, nil
		default:
			p.pending = nil
			return failed, err
		}
	}
	return moved, nil
}

func poll1(fd int, events int16) (int16, error) {
	fds := []unix.PollFd{{Fd: int32(fd), Events: events}}
	err := poll(fds)
	return fds[0].Revents, err
}

// poll looks at descriptors without waiting.
func poll(fds []unix.PollFd) error {
	for {
		_, err := unix.Poll(fds, 0)
		if !errors.Is(err, syscall.EINTR) {
			return err
		}
	}
}

// growPipe makes room in a FIFO. It is no error if it cannot be had.
func growPipe(fd int) error {
	size, err := unix.FcntlInt(uintptr(fd), unix.F_GETPIPE_SZ, 0)
	if err == nil && size < wantPipe {
		_, _ = unix.FcntlInt(uintptr(fd), unix.F_SETPIPE_SZ, wantPipe)
	}
	return nil
}
