package cgroup

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// Bounds of the operations that wait for the kernel, used when the caller's
// context has no earlier deadline.
const (
	killTimeout   = 30 * time.Second
	freezeTimeout = 10 * time.Second
	deleteTimeout = 5 * time.Second
)

// backoff waits between looks at something the kernel does not announce: soon
// at first, because most such things take microseconds, then more rarely.
type backoff struct{ next time.Duration }

const (
	firstLook = 100 * time.Microsecond
	rareLook  = 20 * time.Millisecond
)

func (b *backoff) wait(ctx context.Context) error {
	b.next = min(max(b.next*2, firstLook), rareLook)
	t := time.NewTimer(b.next)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// awaitEvents returns once key has the wanted value in a v2 group's
// cgroup.events. The kernel announces each change of that file; a group that
// is gone has every value.
func awaitEvents(ctx context.Context, dir, key string, want uint64) error {
	f, err := os.Open(filepath.Join(dir, "cgroup.events"))
	if gone(err) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	buf := make([]byte, 4096)
	for {
		// Reading arms the poll: a change after it makes the file "urgent".
		n, err := f.ReadAt(buf, 0)
		if gone(err) {
			return nil
		}
		if err != nil && err != io.EOF {
			return err
		}
		keys, err := parseKeys(buf[:n])
		if err != nil {
			return err
		}
		if keys[key] == want {
			return nil
		}
		if err := poll(ctx, int(f.Fd()), unix.POLLPRI); err != nil {
			return err
		}
	}
}

// poll waits for an event on a descriptor, or for a short while: the caller
// looks again in either case. It fails only with the context's error.
func poll(ctx context.Context, fd int, events int16) error {
	const slice = 50 * time.Millisecond // how late a cancelled context is seen
	if err := ctx.Err(); err != nil {
		return err
	}
	_, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: events}}, int(slice.Milliseconds()))
	if err != nil && !errors.Is(err, unix.EINTR) {
		return err
	}
	return ctx.Err()
}
