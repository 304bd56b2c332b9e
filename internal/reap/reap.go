// Package reap takes in the orphans of a process's descendants and reaps them.
//
// A sandbox's monitor is the parent of all that runs in the sandbox. If it is
// killed, its children are handed to its nearest ancestor that asked for orphans:
// caissond, as long as it is the one that started the monitor, and else the
// machine's first process.
package reap

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/log"
	"golang.org/x/sys/unix"
)

// lookPause is between the end of a child and a look at who is left unreaped: by then
// those that somebody waits for are gone, and many ends cost one look.
const lookPause = 50 * time.Millisecond

// Open returns a pidfd to watch and signal a process by. Unlike one of os/exec it
// does not keep Orphans from reaping the process.
func Open(pid int) (fd int, err error) {
	fd, err = unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	return fd, os.NewSyscallError("pidfd_open", err)
}

// AwaitEnd returns when the process of a pidfd from Open has ended, or the file is closed,
// which is an error. Unlike Wait of os/exec it costs no thread meanwhile.
func AwaitEnd(pidfd *os.File) error {
	raw, err := pidfd.SyscallConn()
	if err != nil {
		return err
	}
	return raw.Read(func(fd uintptr) bool {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
		return n > 0 && err == nil
	})
}

// Orphans reaps what this process inherits, until done is closed. On an error nothing
// is inherited.
//
// What others wait for, with os/exec, it does not touch. The kernel keeps a list of
// children for each thread and enters orphans in that of the first one; so the caller
// is locked to the first thread, where no child is ever made. A main package does both
// in its init:
//
//	func init() { runtime.LockOSThread() }
//
// and runs everything else in other goroutines. But the children of a thread that ends
// come to the first one, too, and threads do end, with the goroutines that have entered
// a namespace. Those children are told from orphans by their pidfds: os/exec keeps one,
// of the blocking kind, for as long as somebody may wait.
func Orphans(done <-chan struct{}) error {
	pid := unix.Getpid()
	if unix.Gettid() != pid {
		return fmt.Errorf("reap orphans: not on the first thread of process %d", pid)
	}
	children := fmt.Sprintf("/proc/self/task/%d/children", pid)
	if _, err := os.Stat(children); err != nil {
		return fmt.Errorf("reap orphans: the kernel has no CONFIG_PROC_CHILDREN: %w", err)
	}
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, unix.SIGCHLD)
	defer signal.Stop(ended)
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("reap orphans: %w", err)
	}
	var look <-chan time.Time
	for failing := false; ; {
		select {
		case <-ended:
			if look == nil {
				look = time.After(lookPause)
			}
			continue
		case <-look:
			look = nil
		case <-done:
			return nil
		}
		left, err := reapList(children)
		if left || err != nil { // whoever inherits must reap: no error ends that
			look = time.After(lookPause)
		}
		if err != nil && !failing {
			log.L.WithError(err).Error("reap orphans: try again until it works")
		}
		failing = err != nil
	}
}

// reapList reaps the zombies in a file of the kernel's with pids, but for those that
// somebody may wait for; it says whether there are some of these.
func reapList(children string) (left bool, err error) {
	list, err := os.ReadFile(children)
	if err != nil {
		return false, err
	}
	var zombies []int
	for _, word := range strings.Fields(string(list)) {
		child, err := strconv.Atoi(word)
		if err != nil {
			return false, fmt.Errorf("%s has %q", children, list)
		}
		var info unix.Siginfo
		err = unix.Waitid(unix.P_PID, child, &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil)
		if err == nil && info.Signo != 0 {
			zombies = append(zombies, child)
		}
	}
	if len(zombies) == 0 {
		return false, nil
	}
	waited, err := waitedFor()
	if err != nil {
		return false, err
	}
	for _, child := range zombies {
		if waited[child] {
			left = true
			continue
		}
		_, _ = unix.Wait4(child, nil, unix.WNOHANG, nil) // how it ended is nobody's business
	}
	return left, nil
}

// waitedFor returns the processes that this one has a blocking pidfd of.
func waitedFor() (map[int]bool, error) {
	const infos = "/proc/self/fdinfo"
	fds, err := os.ReadDir(infos)
	if err != nil {
		return nil, err
	}
	pids := make(map[int]bool)
	for _, fd := range fds {
		info, err := os.ReadFile(filepath.Join(infos, fd.Name()))
		if errors.Is(err, fs.ErrNotExist) {
			continue // closed since
		}
		if err != nil {
			return nil, err
		}
		var flags, pid int
		for line := range strings.Lines(string(info)) {
			_, _ = fmt.Sscanf(line, "flags: 0%o", &flags)
			_, _ = fmt.Sscanf(line, "Pid: %d", &pid)
		}
		if pid > 0 && flags&unix.O_NONBLOCK == 0 {
			pids[pid] = true
		}
	}
	return pids, nil
}
