package libcontainerd

import (
	"fmt"

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
