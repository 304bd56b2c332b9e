package stdio

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// lookup finds the file at path without opening it for reading or writing, which on a
// device could already do harm, and returns it with its type (S_IFIFO or S_IFREG).
func lookup(path string) (*os.File, uint32, error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, 0, classify(err)
	}
	f := os.NewFile(uintptr(fd), path)
	kind, err := fileType(f)
	if err != nil {
		return nil, 0, errors.Join(err, f.Close())
	}
	if kind != unix.S_IFIFO && kind != unix.S_IFREG {
		err := fmt.Errorf("neither a FIFO nor a regular file: %w", errdefs.ErrInvalidArgument)
		return nil, 0, errors.Join(err, f.Close())
	}
	return f, kind, nil
}

func fileType(f *os.File) (uint32, error) {
	var st unix.Stat_t
	err := withFD(f, func(fd int) error { return unix.Fstat(fd, &st) })
	return st.Mode & unix.S_IFMT, err
}

// reopen opens the very file behind f anew, whatever its path names by now, as an open
// file description of its own.
func reopen(f *os.File, flags int) (*os.File, error) {
	var fd int
	err := withFD(f, func(old int) (err error) {
		fd, err = unix.Open(fmt.Sprintf("/proc/self/fd/%d", old), flags|unix.O_CLOEXEC, 0)
		return err
	})
	if err != nil {
		return nil, classify(err)
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}

// openLog opens the regular file at path for appending, and makes it and its directories
// if they are missing.
func openLog(path string) (*os.File, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, classify(err)
	}
	for {
		f, kind, err := lookup(path)
		if err == nil {
			defer f.Close() // O_PATH
			if kind != unix.S_IFREG {
				return nil, fmt.Errorf("not a regular file: %w", errdefs.ErrInvalidArgument)
			}
			return reopen(f, unix.O_WRONLY|unix.O_APPEND)
		}
		if !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
		fd, err := unix.Open(path, unix.O_WRONLY|unix.O_APPEND|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o644)
		if err == nil {
			f := os.NewFile(uintptr(fd), path)
			defer f.Close() // made, not written to
			// Anew, for O_NOFOLLOW stays with the descriptor, and CRIU repeats it where it
			// has a link in /proc to open.
			return reopen(f, unix.O_WRONLY|unix.O_APPEND)
		}
		if !errors.Is(err, os.ErrExist) {
			return nil, classify(err)
		}
		// Somebody made it in between: look again.
	}
}

// withFD calls use with f's descriptor. Unlike f.Fd, it leaves the O_NONBLOCK flag alone.
func withFD(f *os.File, use func(fd int) error) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var useErr error
	if err := raw.Control(func(fd uintptr) { useErr = use(int(fd)) }); err != nil {
		return fmt.Errorf("%w: %w", os.ErrClosed, errdefs.ErrFailedPrecondition) // its only reason
	}
	return useErr
}

// classify gives an error of the file system its class. A missing FIFO is a failed
// precondition and not NotFound, which callers of tasks take for a missing task.
func classify(err error) error {
	var class error
	switch {
	case errors.Is(err, os.ErrNotExist), errors.Is(err, syscall.ENOTDIR), errors.Is(err, syscall.ENXIO):
		class = errdefs.ErrFailedPrecondition
	case errors.Is(err, syscall.ELOOP), errors.Is(err, syscall.ENAMETOOLONG), errors.Is(err, syscall.EISDIR):
		class = errdefs.ErrInvalidArgument
	case errors.Is(err, os.ErrPermission), errors.Is(err, syscall.EROFS):
		class = errdefs.ErrPermissionDenied
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE):
		class = errdefs.ErrResourceExhausted
	default:
		return err
	}
	return fmt.Errorf("%w: %w", err, class)
}
