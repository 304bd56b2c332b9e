package stdio

import (
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// Unread waits until all that a process has written to its FIFOs is read. Whoever has
// their keepers holds them until then: the client that reads may be away, and what is in
// a FIFO is gone when nobody has it open.
type Unread struct {
	fifos  []*os.File
	watch  *os.File
	opened chan struct{}
	done   chan struct{}
}

// WatchUnread begins to watch the output FIFOs of cfg, whose process has ended. It returns
// nil if nothing is unread, or there is no FIFO. With a terminal it is the Terminal that
// waits.
func WatchUnread(cfg Config) (_ *Unread, err error) {
	if cfg.Terminal {
		return nil, nil
	}
	u := &Unread{opened: make(chan struct{}), done: make(chan struct{})}
	for stream, value := range map[string]string{Stdout: cfg.Stdout, Stderr: cfg.Stderr} {
		err = errors.Join(err, u.add(stream, value))
	}
	unread := false
	if err == nil {
		unread, err = u.pending()
	}
	// Only now: a watch is dear, and mostly all is read.
	if err == nil && unread {
		err = u.observe()
	}
	if err != nil || !unread {
		return nil, errors.Join(err, u.closeFIFOs())
	}
	go u.wait()
	return u, nil
}

// add opens a FIFO. One that is not there any more has no reader to wait for.
func (u *Unread) add(stream, value string) error {
	t, err := parseTarget(stream, value)
	if err != nil || t.scheme != schemePath && t.scheme != schemeFIFO {
		return err
	}
	f, kind, err := lookup(t.path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return t.errorf(err)
	}
	defer f.Close() // O_PATH
	if kind != unix.S_IFIFO {
		return nil
	}
	fifo, err := reopen(f, unix.O_RDONLY|unix.O_NONBLOCK)
	if err != nil {
		return t.errorf(err)
	}
	u.fifos = append(u.fifos, fifo)
	return nil
}

// observe begins to watch who opens the FIFOs and reads from them.
func (u *Unread) observe() error {
	watch, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return fmt.Errorf("watch output: %w", err)
	}
	u.watch = os.NewFile(uintptr(watch), "inotify")
	for _, f := range u.fifos {
		err = errors.Join(err, withFD(f, func(fd int) error {
			_, err := unix.InotifyAddWatch(watch, fmt.Sprintf("/proc/self/fd/%d", fd), unix.IN_ACCESS|unix.IN_OPEN)
			return err
		}))
	}
	if err != nil {
		return errors.Join(fmt.Errorf("watch output: %w", err), u.watch.Close())
	}
	return nil
}

func (u *Unread) pending() (bool, error) {
	for _, f := range u.fifos {
		var n int
		err := withFD(f, func(fd int) (err error) {
			n, err = unix.IoctlGetInt(fd, unix.TIOCINQ)
			return err
		})
		if err != nil || n > 0 {
			return n > 0, err
		}
	}
	return false, nil
}

// wait looks again whenever somebody has read.
func (u *Unread) wait() {
	defer u.watch.Close() //nolint:errcheck // only read from
	defer close(u.done)   // before the descriptor: see interrupt
	defer u.closeFIFOs()  //nolint:errcheck // only looked at
	opened := sync.OnceFunc(func() { close(u.opened) })
	var events [64 * (unix.SizeofInotifyEvent + unix.NAME_MAX + 1)]byte
	for {
		if unread, err := u.pending(); err != nil || !unread {
			return
		}
		if _, err := u.watch.Read(events[:]); err != nil {
			return // Close
		}
		opened() // or even read
	}
}

func (u *Unread) closeFIFOs() error {
	var errs []error
	for _, f := range u.fifos {
		errs = append(errs, f.Close())
	}
	return errors.Join(errs...)
}

// Opened is closed when somebody has come to read, or not at all.
func (u *Unread) Opened() <-chan struct{} { return u.opened }

// Done is closed when all is read, or by Close.
func (u *Unread) Done() <-chan struct{} { return u.done }

// Close ends the watch. It may be repeated.
func (u *Unread) Close() {
	interrupt(u.watch)
	<-u.done
}
