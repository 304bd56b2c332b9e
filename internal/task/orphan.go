package task

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/log"
	"golang.org/x/sys/unix"

	"caisson/internal/reap"
)

// EndOrphans ends the OCI runtimes of a set whose monitor was killed. Lost follows.
func (s *Set) EndOrphans(ctx context.Context) { endOrphans(ctx, s.dir("")+"/") }

// endOrphans waits for OCI runtimes that lost their monitor, and so all who know of
// them: what they still make has to be there when it is ended. Those that take long
// are killed. They are found by their option --log, whose value begins with prefix: a
// path in the directory of the set.
func endOrphans(ctx context.Context, prefix string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), runtimePatience)
	defer cancel()
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return // never: the pattern is right
	}
	for _, dir := range dirs {
		if !isRuntime(dir, prefix) {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil {
			continue
		}
		fd, err := reap.Open(pid)
		if err != nil {
			continue // it has ended
		}
		if isRuntime(dir, prefix) { // still the one that was opened
			log.G(ctx).WithField("pid", pid).Warn("wait for an OCI runtime that lost its monitor")
			awaitOrphan(ctx, fd)
		}
		_ = unix.Close(fd)
	}
}

// awaitOrphan returns when a process has ended, and ends it when ctx is over.
func awaitOrphan(ctx context.Context, pidfd int) {
	const slice = 50 * time.Millisecond // how late a context's end is seen
	for killed := false; ; {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, int(slice.Milliseconds()))
		if n > 0 || err != nil && err != unix.EINTR {
			return
		}
		if ctx.Err() == nil {
			continue
		}
		if killed {
			return // it sleeps where no signal reaches it, and makes nothing there
		}
		killed = unix.PidfdSendSignal(pidfd, unix.SIGKILL, nil, 0) == nil
	}
}

// isRuntime tells whether a process is an OCI runtime that works for the set. A
// container's process that says so has a PID namespace of its own.
func isRuntime(proc, prefix string) bool {
	line, err := os.ReadFile(proc + "/cmdline")
	if err != nil {
		return false
	}
	args := bytes.Split(line, []byte{0})
	for i := 1; i < len(args); i++ {
		if string(args[i-1]) == "--log" && strings.HasPrefix(string(args[i]), prefix) {
			theirs, err := os.Readlink(proc + "/ns/pid")
			ours, own := os.Readlink("/proc/self/ns/pid")
			return err == nil && own == nil && theirs == ours
		}
	}
	return false
}
