package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"caisson/internal/config"
	"caisson/internal/statefile"
	"caisson/internal/undo"
)

const (
	rootMode = 0o700
	// stateMode lets others pass through: the root of a container with a user
	// namespace is another user, who must reach its root file system below
	// <state>/containerd. What is private has a directory or a mode of its own.
	stateMode = 0o711
)

// takeDirectories makes root and state, and makes them this daemon's until it
// ends. When that fails it leaves no directory that was not there.
func takeDirectories(steps *undo.Stack, cfg config.Config) error {
	var made undo.Stack
	for _, dir := range []struct {
		what, path string
		mode       os.FileMode
	}{{"root", cfg.Root, rootMode}, {"state", cfg.State, stateMode}} {
		_, missing := os.Lstat(dir.path)
		err := makeDirectory(dir.what, dir.path, dir.mode)
		if errors.Is(missing, os.ErrNotExist) {
			made.Add(dir.path, func(context.Context) error {
				_ = os.Remove(filepath.Join(dir.path, lockName)) // it may not have been made
				_ = os.Remove(dir.path)                          // likewise
				return nil
			})
		}
		var lock *os.File
		if err == nil {
			lock, err = lockDirectory(dir.what, dir.path)
		}
		if err != nil {
			return errors.Join(err, made.Run(context.Background()))
		}
		// The kernel unlocks it with the process, also when that is killed.
		steps.Add("lock of "+dir.path, func(context.Context) error { return lock.Close() })
	}
	if cfg.Engine == config.EngineEmbedded {
		return checkAddress(cfg.Address)
	}
	return nil
}

func makeDirectory(what, path string, mode os.FileMode) error {
	if err := os.MkdirAll(path, mode); err != nil {
		return fmt.Errorf("%s directory %s cannot be made: %w", what, path, classify(err))
	}
	st, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("%s directory %s: %w", what, path, classify(err))
	}
	if st.Mode().Perm() != mode {
		if err := os.Chmod(path, mode); err != nil {
			return fmt.Errorf("%s directory %s has mode %#o and cannot be given %#o: %w", what, path, st.Mode().Perm(), mode, classify(err))
		}
	}
	// Asked, and not tried out: a daemon killed meanwhile would leave a file for ever.
	if err := unix.Access(path, unix.W_OK|unix.X_OK); err != nil {
		return fmt.Errorf("%s directory %s is not writable: %w", what, path, classify(err))
	}
	return nil
}

// classify gives an error of the file system its class.
func classify(err error) error {
	var class error = errdefs.ErrUnknown
	switch {
	case errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.EEXIST), errors.Is(err, unix.ENAMETOOLONG), errors.Is(err, unix.ELOOP):
		class = errdefs.ErrInvalidArgument
	case errors.Is(err, os.ErrPermission):
		class = errdefs.ErrPermissionDenied
	case errors.Is(err, unix.EROFS):
		class = errdefs.ErrFailedPrecondition
	case errors.Is(err, unix.ENOSPC):
		class = errdefs.ErrResourceExhausted
	}
	return fmt.Errorf("%w: %w", err, class)
}

const lockName = "lock"

// lockDirectory holds the directory's lock file, which names the daemon that holds it.
func lockDirectory(what, path string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(path, lockName), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock of the %s directory: %w", what, classify(err))
	}
	err = statefile.Lock(f)
	if errors.Is(err, unix.EWOULDBLOCK) {
		by := make([]byte, 20)
		n, _ := f.ReadAt(by, 0) // the pid is for the message only
		return nil, errors.Join(fmt.Errorf("%s directory %s is in use by another caissond (pid %s); stop it, or choose another %s directory: %w",
			what, path, strings.TrimSpace(string(by[:n])), what, errdefs.ErrFailedPrecondition), f.Close())
	}
	if err == nil {
		err = f.Truncate(0)
	}
	if err == nil {
		_, err = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("lock of the %s directory %s: %w", what, path, classify(err)), f.Close())
	}
	return f, nil
}

// checkAddress refuses an address that somebody serves: containerd would take
// the socket's file away from under them.
func checkAddress(address string) error {
	for _, path := range []string{address, address + ttrpcSuffix} {
		conn, err := net.DialTimeout("unix", path, time.Second)
		if err == nil {
			return errors.Join(fmt.Errorf("address %s is served by another program; stop it, or choose another address: %w",
				path, errdefs.ErrFailedPrecondition), conn.Close())
		}
	}
	return nil
}
