package cli

import (
	"context"
	"slices"

	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"

	"caisson/internal/manifest"
)

// podOpts are what a Pod's container asks for beyond what `run` has flags for.
func podOpts(ctr manifest.Container) []oci.SpecOpts {
	s := ctr.Security
	opts := []oci.SpecOpts{withIDs(s), withCapabilities(s)}
	if s.Privileged {
		opts = append(opts, oci.WithPrivileged, oci.WithHostDevices, oci.WithAllDevicesAllowed)
	}
	if s.NoNewPrivileges {
		opts = append(opts, oci.WithNoNewPrivileges)
	} else {
		opts = append(opts, oci.WithNewPrivileges)
	}
	if s.ReadOnlyRoot {
		opts = append(opts, oci.WithRootFSReadonly())
	}
	if ctr.Resources.CPUShares > 0 {
		opts = append(opts, oci.WithCPUShares(ctr.Resources.CPUShares))
	}
	return opts
}

// withIDs comes after the image's user and that of the container are known.
func withIDs(s manifest.Security) oci.SpecOpts {
	return func(_ context.Context, _ oci.Client, ctr *containers.Container, spec *oci.Spec) error {
		user := &spec.Process.User
		if s.Group != nil {
			user.GID = uint32(*s.Group)
		}
		for _, g := range s.Groups {
			if !slices.Contains(user.AdditionalGids, uint32(g)) {
				user.AdditionalGids = append(user.AdditionalGids, uint32(g))
			}
		}
		if s.NonRoot && user.UID == 0 {
			return advise(errdefs.ErrInvalidArgument, "container %q would run as root, and runAsNonRoot forbids it: give it a runAsUser", ctr.ID)
		}
		return nil
	}
}

// withCapabilities adds and drops as Kubernetes does: ALL first, then one by one, and
// what is dropped by name is dropped in the end.
func withCapabilities(s manifest.Security) oci.SpecOpts {
	const all = "ALL"
	var opts []oci.SpecOpts
	if slices.Contains(s.AddCapabilities, all) {
		opts = append(opts, oci.WithAllCurrentCapabilities)
	}
	if slices.Contains(s.DropCapabilities, all) {
		opts = append(opts, oci.WithCapabilities(nil))
	}
	isAll := func(name string) bool { return name == all }
	return oci.Compose(append(opts,
		oci.WithAddedCapabilities(slices.DeleteFunc(slices.Clone(s.AddCapabilities), isAll)),
		oci.WithDroppedCapabilities(slices.DeleteFunc(slices.Clone(s.DropCapabilities), isAll)))...)
}
