package service

import (
	"context"
	"fmt"

	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/containerd/typeurl/v2"
	"google.golang.org/protobuf/types/known/anypb"

	"caisson/internal/oci"
	"caisson/internal/task"
)

// ShimTasks is what the shim binary's helper needs of the controller.
type ShimTasks interface {
	Endpoint(ctx context.Context, id string) (address string, err error)
	Cleanup(ctx context.Context, id, bundle string) (task.Exit, error)
}

// ShimFor answers the shim binary's questions from the controller. runtime is
// the OCI runtime of clients that name none.
func ShimFor(ctl ShimTasks, runtime, version string) Shim {
	return &controllerShim{ctl: ctl, runtime: runtime, version: version}
}

type controllerShim struct {
	ctl              ShimTasks
	runtime, version string
}

func (s *controllerShim) Endpoint(ctx context.Context, id string) (string, error) {
	return s.ctl.Endpoint(ctx, id)
}

func (s *controllerShim) Cleanup(ctx context.Context, id, bundle string) (task.Exit, error) {
	return s.ctl.Cleanup(ctx, id, bundle)
}

// RuntimeInfo passes on what the OCI runtime says of itself. One without that
// command is described without features, as containerd's own shim does.
func (s *controllerShim) RuntimeInfo(ctx context.Context, any *anypb.Any) (*types.RuntimeInfo, error) {
	info := &types.RuntimeInfo{
		Name:    "io.containerd.caisson.v2",
		Version: &types.RuntimeVersion{Version: s.version},
		Options: any,
	}
	name := s.runtime
	if any != nil && typeurl.Is(any, &options.Options{}) {
		var o options.Options
		if err := any.UnmarshalTo(&o); err != nil {
			return nil, fmt.Errorf("runtime options: %w: %w", err, errdefs.ErrInvalidArgument)
		}
		if o.GetBinaryName() != "" {
			name = o.GetBinaryName()
		}
	}
	path, err := oci.Find(name)
	if err != nil {
		return nil, err
	}
	features, err := oci.Features(ctx, path)
	if errdefs.IsNotImplemented(err) {
		log.G(ctx).WithError(err).Debug("runtime info without features")
		return info, nil
	}
	if err != nil {
		return nil, err
	}
	if info.Features, err = typeurl.MarshalAnyToProto(features); err != nil {
		return nil, fmt.Errorf("runtime features: %w", err)
	}
	return info, nil
}
