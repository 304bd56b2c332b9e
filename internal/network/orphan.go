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
)

// pluginPatience is how long plugins that lost their daemon may go on.
const pluginPatience = 10 * time.Second

// endPlugins waits for what an ADD that was cut off has left running, so that the
// DEL that follows takes back all that it gave. What takes longer than patience is
// killed. Plugins, and those that they start in turn, are found by the container ID
// in their environment. None is missed because it does not have that yet: between
// fork and exec it has the killed daemon's locks, which the next daemon waits for.
func endPlugins(ctx context.Context, containerID string, patience time.Duration) error {
	limit, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
	defer cancel()
	killed := make(map[int]bool)
	// Again and again, since what ends may have started another.
	for found := true; found; {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("wait for CNI plugins of %s: %w", containerID, err)
		}
		found = false
		procs, err := os.ReadDir("/proc")
		if err != nil {
			return fmt.Errorf("look for CNI plugins of %s: %w", containerID, classify(err))
		}
		for _, proc := range procs {
			pid, err := strconv.Atoi(proc.Name())
			if err != nil || killed[pid] {
				continue // no process, or one that sleeps where no signal reaches it, and does nothing there
			}
			ours, err := endPlugin(limit, pid, containerID)
			if err != nil {
				return fmt.Errorf("end the CNI plugin %d of %s: %w", pid, containerID, err)
			}
			if ours {
				found = true
				killed[pid] = limit.Err() != nil
			}
		}
	}
	return nil
}

// endPlugin returns when a plugin of the container has ended, and kills it when ctx
// is over. It reports whether the process was one.
func endPlugin(ctx context.Context, pid int, containerID string) (bool, error) {
	if ours, err := isPlugin(pid, containerID); !ours {
		return false, err
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL) { // Linux 6.1, for one, says EINVAL while it is reaped
		return true, nil
	}
	if err != nil {
		return false, classify(err)
	}
	defer unix.Close(fd)
	if ours, err := isPlugin(pid, containerID); !ours { // no longer the one that was found
		return true, err
	}
	log.G(ctx).WithField("pid", pid).WithField("container_id", containerID).Warn("wait for a CNI plugin whose ADD was cut off")
	return true, awaitEnd(ctx, fd)
}

// awaitEnd returns when a process has ended, or cannot be helped to.
func awaitEnd(ctx context.Context, pidfd int) error {
	const slice = 50 * time.Millisecond // how late a context's end is seen
	for killed := false; ; {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, int(slice.Milliseconds()))
		switch {
		case n > 0:
			return nil
		case err != nil && !errors.Is(err, unix.EINTR):
			return classify(err)
		case ctx.Err() == nil:
			continue
		case killed:
			return nil
		}
		if err := unix.PidfdSendSignal(pidfd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
			return classify(err)
		}
		killed = true
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
