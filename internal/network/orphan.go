package network

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/log"
	"golang.org/x/sys/unix"

	"caisson/internal/reap"
)

const (
	// pluginPatience is how long plugins that lost their daemon may go on.
	pluginPatience = 10 * time.Second
	// killPatience is how long a kill may take; what then still sleeps in the kernel
	// sees it before it does anything else.
	killPatience = 2 * time.Second
	// execPause is between two looks: in the middle of exec a process has no
	// environment to be known by.
	execPause = 10 * time.Millisecond
)

// endPlugins waits for what an ADD that was cut off has left running, so that the
// DEL that follows takes back all that it gave. What takes longer than patience is
// killed. Plugins, and those that they start in turn, are found by the container ID
// in their environment. None is missed because it does not have that yet: between
// fork and exec it has the killed daemon's locks, which the next daemon waits for.
func endPlugins(ctx context.Context, containerID string, patience time.Duration) error {
	limit, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
	defer cancel()
	stuck := make(map[int]bool)
	// Again and again, since what ends may have started another, until two looks have
	// found none.
	for quiet := 0; quiet < 2; quiet++ {
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for CNI plugins of %s: %w", containerID, ctx.Err())
		case <-time.After(execPause):
		}
		procs, err := os.ReadDir("/proc")
		if err != nil {
			return fmt.Errorf("look for CNI plugins of %s: %w", containerID, classify(err))
		}
		for _, proc := range procs {
			pid, err := strconv.Atoi(proc.Name())
			if err != nil || stuck[pid] {
				continue // no process, or one that a kill has not woken
			}
			ours, ended, err := endPlugin(limit, pid, containerID)
			if err != nil {
				return fmt.Errorf("end the CNI plugin %d of %s: %w", pid, containerID, err)
			}
			if ours {
				quiet = -1
				stuck[pid] = !ended
			}
		}
	}
	return nil
}

// endPlugin waits until a plugin of the container has ended, and kills it when ctx is
// over. It reports whether the process was one, and has ended.
func endPlugin(ctx context.Context, pid int, containerID string) (ours, ended bool, err error) {
	if ours, err := isPlugin(pid, containerID); !ours {
		return false, false, err
	}
	fd, err := reap.Open(pid)
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL) { // Linux 6.1, for one, says EINVAL while it is reaped
		return true, true, nil
	}
	if err != nil {
		return false, false, classify(err)
	}
	defer unix.Close(fd)
	if ours, err := isPlugin(pid, containerID); !ours { // no longer the one that was found
		return true, true, err
	}
	log.G(ctx).WithField("pid", pid).WithField("container_id", containerID).Warn("wait for a CNI plugin whose ADD was cut off")
	ended, err = awaitEnd(ctx, fd)
	return true, ended, err
}

// awaitEnd waits until a process has ended; it gives up on one that does not even when
// it is killed.
func awaitEnd(ctx context.Context, pidfd int) (ended bool, err error) {
	const slice = 50 * time.Millisecond // how late a context's end is seen
	var killed time.Time
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, int(slice.Milliseconds()))
		switch {
		case n > 0:
			return true, nil
		case err != nil && !errors.Is(err, unix.EINTR):
			return false, classify(err)
		case ctx.Err() == nil:
		case killed.IsZero():
			if err := unix.PidfdSendSignal(pidfd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
				return false, classify(err)
			}
			killed = time.Now()
		case time.Since(killed) > killPatience:
			return false, nil
		}
	}
}

// isPlugin tells whether a process is a CNI plugin that is run for the container. One
// of a sandbox that says so has a PID namespace of its own.
func isPlugin(pid int, containerID string) (bool, error) {
	proc := filepath.Join("/proc", strconv.Itoa(pid))
	env, err := os.ReadFile(proc + "/environ")
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) || errors.Is(err, fs.ErrPermission) {
		return false, nil // it has ended, or is not the daemon's kind
	}
	if err != nil {
		return false, classify(err)
	}
	// Not only with CNI_COMMAND=ADD: a plugin that fails in it runs another's DEL.
	if !slices.Contains(strings.Split(string(env), "\x00"), "CNI_CONTAINERID="+containerID) {
		return false, nil
	}
	theirs, err := os.Readlink(proc + "/ns/pid")
	ours, own := os.Readlink("/proc/self/ns/pid")
	if own != nil {
		return false, classify(own)
	}
	return err == nil && theirs == ours, nil
}
