package libcontainerd

import (
	"errors"
	"fmt"
	"io/fs"
	"syscall"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"google.golang.org/grpc/status"
)

// failed wraps the error of a call to the server, which may be gRPC's, with what
// was tried. nil stays nil.
func failed(err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	if _, ok := status.FromError(err); ok {
		err = errgrpc.ToNative(err)
	}
	return fmt.Errorf(format+": %w", append(args, err)...)
}

// local wraps the error of something that this program did on its machine with what
// was tried, and gives it a class if it has none. nil stays nil.
func local(err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	if errdefs.IsUnknown(errdefs.Resolve(err)) {
		err = fmt.Errorf("%w: %w", localClass(err), err)
	}
	return fmt.Errorf(format+": %w", append(args, err)...)
}

func localClass(err error) error {
	for _, full := range []syscall.Errno{syscall.ENOSPC, syscall.EDQUOT, syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM} {
		if errors.Is(err, full) {
			return errdefs.ErrResourceExhausted
		}
	}
	if errors.Is(err, fs.ErrPermission) || errors.Is(err, syscall.EROFS) {
		return errdefs.ErrPermissionDenied
	}
	return errdefs.ErrInternal
}
