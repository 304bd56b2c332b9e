package network

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"caisson/internal/fault"
)

// Owner opens the user namespace that a network namespace belongs to: what is
// to configure the network must be in it.
func Owner(netNSPath string) (*os.File, error) {
	ns, err := os.Open(netNSPath)
	if err != nil {
		return nil, fmt.Errorf("network namespace %q: open: %w", netNSPath, classify(err))
	}
	defer ns.Close()
	fd, err := unix.IoctlRetInt(int(ns.Fd()), unix.NS_GET_USERNS)
	if errors.Is(err, unix.ENOTTY) {
		return nil, fmt.Errorf("network namespace %q: not a namespace: %w", netNSPath, errdefs.ErrInvalidArgument)
	}
	if err != nil {
		return nil, fmt.Errorf("network namespace %q: find its user namespace: %w", netNSPath, classify(err))
	}
	unix.CloseOnExec(fd)
	return os.NewFile(uintptr(fd), "user namespace of "+netNSPath), nil
}

// NewUserNS makes a user namespace with the mappings, which lives as long as
// the file is open or something is in it.
func NewUserNS(uids, gids []specs.LinuxIDMapping) (*os.File, error) {
	var file *os.File
	err := withNamespaces(unix.CLONE_NEWUSER, uids, gids, func(proc string) (err error) {
		file, err = os.Open(proc + "/ns/user")
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("user namespace: make: %w", err)
	}
	return file, nil
}

// makeNetNS makes a network namespace with loopback up and binds it to a new
// file.
func makeNetNS(path string, uids, gids []specs.LinuxIDMapping) (err error) {
	if err := fault.Fail("network:file", unix.ENOSPC, unix.EMFILE); err != nil {
		return classify(err)
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDONLY|unix.O_NOFOLLOW, 0o444)
	if err != nil {
		return classify(err)
	}
	f.Close()
	bind := func(proc string) error {
		if err := fault.Fail("network:bind", unix.ENOSPC, unix.ENOMEM); err != nil {
			return fmt.Errorf("bind to %s: %w", path, classify(err))
		}
		if err := unix.Mount(proc+"/ns/net", path, "none", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("bind to %s: %w", path, classify(err))
		}
		return nil
	}
	if len(uids) > 0 {
		err = withNamespaces(unix.CLONE_NEWUSER|unix.CLONE_NEWNET, uids, gids, bind)
		if err == nil {
			err = inNetNS(path, loopbackUp)
		}
	} else {
		err = onThrowawayThread(func() error {
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				return fmt.Errorf("unshare: %w", classify(err))
			}
			if err := loopbackUp(); err != nil {
				return err
			}
			return bind("/proc/thread-self")
		})
	}
	if err != nil {
		return errors.Join(err, removeNetNS(path))
	}
	return nil
}

// removeNetNS unbinds and removes the file; what is not there is done.
func removeNetNS(path string) error {
	for {
		err := fault.Fail("network:unbind", unix.EBUSY)
		if err == nil {
			err = unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		}
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
			break // not, or no longer, a mount point
		}
		if err != nil {
			return fmt.Errorf("unmount %s: %w", path, classify(err))
		}
	}
	fault.Point("network:remove")
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return classify(err)
	}
	return nil
}

// isNetNS reports whether a namespace is bound to the file.
func isNetNS(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && st.Type == unix.NSFS_MAGIC
}

// inNetNS runs fn on a thread in the network namespace. fn must not start
// goroutines that need to be there too.
func inNetNS(path string, fn func() error) error {
	return onThrowawayThread(func() error {
		f, err := os.Open(path)
		if err != nil {
			return classify(err)
		}
		defer f.Close()
		if err := unix.Setns(int(f.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter %s: %w", path, classify(err))
		}
		return fn()
	})
}

// onThrowawayThread runs fn on an OS thread that ends with it, because nothing
// else may ever run on a thread that changed its namespaces.
func onThrowawayThread(fn func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked, which ends the thread
		if unix.Gettid() == unix.Getpid() {
			// The main thread cannot end, and is what /proc/<pid> shows of the
			// process. While it is kept here, fn gets another one.
			result <- onThrowawayThread(fn)
			runtime.UnlockOSThread()
			return
		}
		result <- fn()
	}()
	return <-result
}

// withNamespaces calls fn with the /proc directory of a process in new
// namespaces, one of them a user namespace with the mappings. A Go process
// cannot enter a user namespace, so it takes a new one: this same program,
// stopped by ptrace before its first instruction, and killed in the end.
func withNamespaces(flags uintptr, uids, gids []specs.LinuxIDMapping, fn func(proc string) error) error {
	return onThrowawayThread(func() (err error) { // ptrace and Pdeathsig belong to a thread
		p, err := os.StartProcess("/proc/self/exe", []string{"caisson-namespaces"}, &os.ProcAttr{
			Sys: &syscall.SysProcAttr{
				Cloneflags:                 flags,
				UidMappings:                procMappings(uids),
				GidMappings:                procMappings(gids),
				GidMappingsEnableSetgroups: true,
				Ptrace:                     true,
				Pdeathsig:                  syscall.SIGKILL,
			},
		})
		if err != nil {
			return fmt.Errorf("start a process in new namespaces: %w", classify(err))
		}
		defer func() {
			err = errors.Join(err, p.Kill())
			_, waitErr := p.Wait()
			err = errors.Join(err, waitErr)
		}()
		return fn(filepath.Join("/proc", strconv.Itoa(p.Pid)))
	})
}

func procMappings(list []specs.LinuxIDMapping) []syscall.SysProcIDMap {
	maps := make([]syscall.SysProcIDMap, len(list))
	for i, m := range list {
		maps[i] = syscall.SysProcIDMap{ContainerID: int(m.ContainerID), HostID: int(m.HostID), Size: int(m.Size)}
	}
	return maps
}

// loopbackUp brings lo up in the calling thread's namespace, as plugins and
// programs expect it.
func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("bring lo up: %w", classify(err))
	}
	defer unix.Close(fd)
	req, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, req); err != nil {
		return fmt.Errorf("bring lo up: %w", classify(err))
	}
	req.SetUint16(req.Uint16() | unix.IFF_UP)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, req); err != nil {
		return fmt.Errorf("bring lo up: %w", classify(err))
	}
	return nil
}

// classify joins an error of the kernel with the class that callers act upon.
func classify(err error) error {
	switch {
	case errors.Is(err, fs.ErrExist):
		return fmt.Errorf("%w: %w", err, errdefs.ErrAlreadyExists)
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%w: %w", err, errdefs.ErrNotFound)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w: %w", err, errdefs.ErrPermissionDenied)
	case errors.Is(err, unix.EINVAL):
		return fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENFILE), errors.Is(err, unix.ENOMEM):
		return fmt.Errorf("%w: %w", err, errdefs.ErrResourceExhausted)
	}
	return err
}
