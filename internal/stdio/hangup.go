package stdio

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Hangup notices that a client has closed its end of a stdin FIFO. The kernel would tell
// the process, if the keeper did not hold the FIFO open for writing too; so whoever has the
// keeper drops it then, and the process sees the end of its input as soon as no other
// client is left. A client that dies closes its end as well.
type Hangup struct {
	watch *os.File
	done  chan struct{}
	seen  bool  // set, as is err, before done is closed
	err   error // of the last look
}

// WatchStdin begins to watch the stdin FIFO of cfg; it must be called before Open, so that
// no client is missed. It returns nil if there is nothing to watch: with a terminal, or
// without a stdin that is a FIFO.
func WatchStdin(cfg Config) (*Hangup, error) {
	t, err := parseTarget(Stdin, cfg.Stdin)
	if err != nil || t.scheme == schemeNull || cfg.Terminal {
		return nil, err
	}
	f, kind, err := lookup(t.path)
	if err != nil {
		return nil, t.errorf(err)
	}
	defer f.Close() // O_PATH
	if kind != unix.S_IFIFO {
		return nil, nil
	}
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, t.errorf(fmt.Errorf("watch: %w", err))
	}
	err = withFD(f, func(old int) error {
		_, err := unix.InotifyAddWatch(fd, fmt.Sprintf("/proc/self/fd/%d", old), unix.IN_CLOSE_WRITE)
		return err
	})
	if err != nil {
		return nil, errors.Join(t.errorf(fmt.Errorf("watch: %w", err)), unix.Close(fd))
	}
	h := &Hangup{watch: os.NewFile(uintptr(fd), "inotify "+t.path), done: make(chan struct{})}
	go h.wait()
	return h, nil
}

// wait ends with the first close of a writer, or with Close. The event says all: what it
// carries is of no interest.
func (h *Hangup) wait() {
	defer h.watch.Close() //nolint:errcheck // only read from
	defer close(h.done)   // before the descriptor: see interrupt
	var event [unix.SizeofInotifyEvent + unix.NAME_MAX + 1]byte
	if _, err := h.watch.Read(event[:]); err == nil {
		h.seen = true
		return
	}
	h.seen, h.err = readable(h.watch) // interrupted
}

// interrupt lets reads of an inotify descriptor fail. Whoever reads closes it, and nobody
// waits for that: the kernel takes ten milliseconds for it.
func interrupt(watch *os.File) {
	_ = watch.SetReadDeadline(time.Unix(0, 1)) // fails only when it is closed
}

// Stop ends the watch as Close does, and tells whether a client has closed its end
// before.
func (h *Hangup) Stop() (bool, error) {
	h.Close()
	return h.seen, h.err
}

// readable looks whether there is something that was not read yet.
func readable(f *os.File) (bool, error) {
	conn, err := f.SyscallConn()
	if err != nil {
		return false, err
	}
	var n int
	var perr error
	if err := conn.Control(func(fd uintptr) {
		n, perr = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
	}); err != nil {
		return false, err
	}
	return n > 0, perr
}

// Done is closed when a client has closed its end, or by Close.
func (h *Hangup) Done() <-chan struct{} { return h.done }

// Close ends the watch. It may be repeated, and called where there was nothing to watch.
func (h *Hangup) Close() {
	if h == nil {
		return
	}
	interrupt(h.watch)
	<-h.done
}
