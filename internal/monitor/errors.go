package monitor

import (
	"fmt"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Error is a request that the monitor refused or could not do. It matches,
// with errors.Is, both its Errno and the errdefs class of that.
type Error struct {
	Step  string // what failed: "setns net", "exec /usr/bin/runc"
	Errno unix.Errno
}

func (e *Error) Error() string { return fmt.Sprintf("%s: %v", e.Step, e.Errno) }

// Unwrap gives errors.Is the errno and its class.
func (e *Error) Unwrap() []error { return []error{e.Errno, class(e.Errno)} }

func class(errno unix.Errno) error {
	switch errno {
	case unix.ENOENT, unix.ESRCH:
		return errdefs.ErrNotFound
	case unix.EEXIST, unix.EALREADY:
		return errdefs.ErrAlreadyExists
	case unix.EBUSY:
		return errdefs.ErrFailedPrecondition
	case unix.EINVAL, unix.E2BIG, unix.ENAMETOOLONG, unix.EMSGSIZE, unix.EBADMSG, unix.ENOEXEC, unix.ENOTDIR, unix.ELOOP:
		return errdefs.ErrInvalidArgument
	case unix.EPERM, unix.EACCES, unix.EROFS:
		return errdefs.ErrPermissionDenied
	case unix.ENOSPC, unix.EMFILE, unix.ENFILE, unix.ENOMEM, unix.EAGAIN, unix.EUSERS:
		return errdefs.ErrResourceExhausted
	case unix.ENOSYS, unix.EOPNOTSUPP, unix.EPROTONOSUPPORT:
		return errdefs.ErrNotImplemented
	case unix.ESHUTDOWN, unix.ETIMEDOUT:
		return errdefs.ErrUnavailable
	default:
		return errdefs.ErrInternal
	}
}
