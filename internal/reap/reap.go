// Package reap takes in the orphans of a process's descendants and reaps them.
//
// A sandbox's monitor is the parent of all that runs in the sandbox. If it is
// killed, its children are handed to its nearest ancestor that asked for orphans:
// caissond, as long as it is the one that started the monitor, and else the
// machine's first process.
package reap

import (
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/log"
	"golang.org/x/sys/unix"
)

// retryPause is between two attempts to read the list of children when the machine
// is short of something.
const retryPause = 100 * time.Millisecond

// Orphans reaps what this process inherits, until done is closed. On an error nothing
// is inherited. What others wait for, with os/exec, it must not touch. The kernel
// keeps a list of children for each thread and enters orphans in that of the first
// one; so the caller is locked to the first thread, where no child is ever made. A
// main package does both in its init:
//
//	func init() { runtime.LockOSThread() }
//
// and runs everything else in other goroutines.
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
	for {
		select {
		case <-ended:
		case <-done:
			return nil
		}
		// Whoever inherits must reap: no error of reading ends that.
		for attempt := 0; ; attempt++ {
			err := reapList(children)
			if err == nil {
				break
			}
			if attempt == 0 {
				log.L.WithError(err).Error("reap orphans: try again until it works")
			}
			select {
			case <-time.After(retryPause):
			case <-done:
				return nil
			}
		}
	}
}

// reapList reaps the zombies in a file of the kernel's with pids.
func reapList(children string) error {
	list, err := os.ReadFile(children)
	if err != nil {
		return err
	}
	for _, word := range strings.Fields(string(list)) {
		orphan, err := strconv.Atoi(word)
		if err != nil {
			return fmt.Errorf("%s has %q", children, list)
		}
		_, _ = unix.Wait4(orphan, nil, unix.WNOHANG, nil) // it runs, or how it ended is nobody's business
	}
	return nil
}
