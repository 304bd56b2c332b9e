package service

import (
	"fmt"
	"time"

	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// sandboxFromProto differs from containerd's own conversion where that one
// panics or misleads: a missing runtime, a missing Any (which would become an
// interface that is not nil), a missing time (which would become 1970).
func sandboxFromProto(pb *types.Sandbox) sandbox.Sandbox {
	sb := sandbox.Sandbox{
		ID:     pb.GetSandboxID(),
		Labels: pb.GetLabels(),
		Runtime: sandbox.RuntimeOpts{
			Name:    pb.GetRuntime().GetName(),
			Options: anyFromProto(pb.GetRuntime().GetOptions()),
		},
		Spec:      anyFromProto(pb.GetSpec()),
		Sandboxer: pb.GetSandboxer(),
		CreatedAt: timeFromProto(pb.GetCreatedAt()),
		UpdatedAt: timeFromProto(pb.GetUpdatedAt()),
	}
	for name, ext := range pb.GetExtensions() {
		if ext == nil {
			continue
		}
		if sb.Extensions == nil {
			sb.Extensions = map[string]typeurl.Any{}
		}
		sb.Extensions[name] = ext
	}
	return sb
}

// record is the sandbox a request is about: its record if the client sent one,
// which must then agree with the id beside it.
func record(id, sandboxer string, pb *types.Sandbox) (sandbox.Sandbox, error) {
	sb := sandboxFromProto(pb)
	switch {
	case id == "":
		return sb, fmt.Errorf("sandbox: the id is missing: %w", errdefs.ErrInvalidArgument)
	case sb.ID == "":
		sb.ID = id
	case sb.ID != id:
		return sb, fmt.Errorf("sandbox %q: its record is of %q: %w", id, sb.ID, errdefs.ErrInvalidArgument)
	}
	if sb.Sandboxer == "" {
		sb.Sandboxer = sandboxer
	}
	return sb, nil
}

func anyFromProto(pb *anypb.Any) typeurl.Any {
	if pb == nil {
		return nil
	}
	return pb
}

func timeFromProto(pb *timestamppb.Timestamp) time.Time {
	if pb == nil {
		return time.Time{}
	}
	return pb.AsTime()
}

// createOptions leaves out what the request does not set.
func createOptions(rootfs []*types.Mount, options *anypb.Any, netns string, annotations map[string]string) []sandbox.CreateOpt {
	var opts []sandbox.CreateOpt
	if mounts := mountsFromProto(rootfs); mounts != nil {
		opts = append(opts, sandbox.WithRootFS(mounts))
	}
	if options != nil {
		opts = append(opts, sandbox.WithOptions(options))
	}
	if netns != "" {
		opts = append(opts, sandbox.WithNetNSPath(netns))
	}
	if annotations != nil {
		opts = append(opts, sandbox.WithAnnotations(annotations))
	}
	return opts
}

func mountsFromProto(pbs []*types.Mount) []mount.Mount {
	var mounts []mount.Mount
	for _, pb := range pbs {
		mounts = append(mounts, mount.Mount{
			Type: pb.GetType(), Source: pb.GetSource(), Target: pb.GetTarget(), Options: pb.GetOptions(),
		})
	}
	return mounts
}

// stopOptions: zero seconds are "not said" on the wire, since containerd's
// clients send them when their caller gave no timeout.
func stopOptions(seconds uint32) []sandbox.StopOpt {
	if seconds == 0 {
		return nil
	}
	return []sandbox.StopOpt{sandbox.WithTimeout(time.Duration(seconds) * time.Second)}
}
