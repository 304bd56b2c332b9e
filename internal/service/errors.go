package service

import (
	"errors"

	"github.com/containerd/errdefs/pkg/errgrpc"
)

// wireError is the one place where gRPC's errors are made: a class and one text.
// An error that wraps several others would travel as a list of them, and clients
// would print the class's name once for each.
func wireError(err error) error {
	if err == nil {
		return nil
	}
	return errgrpc.ToGRPC(flat{err})
}

// flat has the text and the class of an error, and no parts.
type flat struct{ err error }

func (f flat) Error() string        { return f.err.Error() }
func (f flat) Is(target error) bool { return errors.Is(f.err, target) }
