// Package apart gives a test program network, mount and IPC namespaces and a /run
// of its own: the host ports, rules of iptables, mounts and shared memory that a
// run leaves end with it, and the sockets and directories of containerd's shims,
// which keep them in /run/containerd whatever they are told.
package apart

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// env marks the process that has the namespaces.
const env = "CAISSON_TEST_APART"

// The first thread stays the main function's, for reap.Orphans.
func init() { runtime.LockOSThread() }

// Option asks for more than that.
type Option func(*syscall.SysProcAttr)

// Processes is for a PID namespace: whatever the program starts ends with it, however it
// ends itself. Its process is the first one there, and must reap: Main does.
func Processes(attr *syscall.SysProcAttr) { attr.Cloneflags |= syscall.CLONE_NEWPID }

// first says whether this is the first process of a namespace that Processes made.
func first() bool { return os.Getenv(env) != "" && os.Getpid() == 1 }

// KillOthers ends every other process of such a namespace.
func KillOthers() error {
	if !first() {
		return fmt.Errorf("kill all processes: this is not the first one of a namespace of its own: %w", errdefs.ErrFailedPrecondition)
	}
	if err := unix.Kill(-1, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
		return os.NewSyscallError("kill", err)
	}
	return nil
}

// Run runs this program once more, with the same arguments, in namespaces of its
// own. It returns twice: in the second process inside is true and loopback is
// up; in the first, when the second has ended, err is an *exec.ExitError unless
// it ended well. When ctx ends, the second process gets a SIGTERM.
func Run(ctx context.Context, options ...Option) (inside bool, err error) {
	if os.Getenv(env) != "" {
		return true, errors.Join(loopbackUp(), ownRun(), ownProc())
	}
	self, err := os.Executable()
	if err != nil {
		return false, err
	}
	cmd := exec.CommandContext(ctx, self, os.Args[1:]...)
	cmd.Env = append(os.Environ(), env+"=1")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Unshareflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS | syscall.CLONE_NEWIPC,
		// Without it, nobody would clear up after a program that was killed.
		Pdeathsig: syscall.SIGTERM,
	}
	for _, option := range options {
		option(cmd.SysProcAttr)
	}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 2 * time.Minute
	// The signal comes when the thread ends, not the process.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := cmd.Run(); err != nil {
		return false, fmt.Errorf("in namespaces of its own: %w", err)
	}
	return false, nil
}

func loopbackUp() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("loopback: %w", err)
	}
	return netlink.LinkSetUp(lo)
}

func ownRun() error {
	if err := unix.Mount("run", "/run", "tmpfs", 0, "mode=0755"); err != nil {
		return fmt.Errorf("mount /run: %w", err)
	}
	// Their sockets, and the state of the runc that they start.
	return errors.Join(os.MkdirAll("/run/containerd/s", 0o711), os.Mkdir("/run/containerd/runc", 0o711))
}

func ownProc() error {
	if !first() {
		return nil
	}
	return os.NewSyscallError("mount /proc", unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""))
}
