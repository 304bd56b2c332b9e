package task

import (
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"caisson/internal/cgroup"
	"caisson/internal/oci"
)

// place gives the path of the container's cgroup the form that the OCI runtime
// reads: with systemd a slice and a scope, else a path. runc would make a
// directory of the name "slice:prefix:name", outside its pod's.
func (c *container) place(m oci.Membership, spec *specs.Spec) bool {
	if spec.Linux == nil {
		return false
	}
	path := &spec.Linux.CgroupsPath
	switch {
	case c.Runtime.SystemdCgroup && (*path == "" || *path == m.DefaultCgroup):
		// The names of scopes are the host's.
		*path = cgroup.Scope(filepath.Dir(m.Cgroup), "caisson", c.set.cfg.Namespace+"--"+c.ID)
		return true
	case !c.Runtime.SystemdCgroup && !strings.HasPrefix(*path, "/") && strings.Contains(*path, ":"):
		at, err := cgroup.Expand(*path)
		if err != nil {
			return false // It is the runtime's to refuse.
		}
		*path = at
		return true
	}
	return false
}

// newCgroup is the path of the cgroup that the OCI runtime will make for a container:
// empty if there is one already, which is somebody else's, or if the runtime chooses
// the path.
func newCgroup(spec *specs.Spec) (string, error) {
	if spec.Linux == nil || spec.Linux.CgroupsPath == "" {
		return "", nil
	}
	path, err := cgroup.Resolve(spec.Linux.CgroupsPath)
	if err != nil || path == "/" {
		return "", nil // It is the runtime's to refuse.
	}
	if _, err = cgroup.Load(path); errdefs.IsNotFound(err) {
		return path, nil
	}
	return "", err
}
