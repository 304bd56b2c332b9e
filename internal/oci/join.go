package oci

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"caisson/internal/fault"
)

// Membership is what a container takes over from its sandbox.
type Membership struct {
	// Namespaces that members of the sandbox share, by path. A type with an
	// empty path is the host's. A type that is missing stays the container's own.
	Namespaces map[specs.LinuxNamespaceType]string
	// UIDs and GIDs are the mappings of the sandbox's user namespace.
	UIDs, GIDs []specs.LinuxIDMapping
	// Files of the sandbox by their path in the container; a directory is
	// mounted as /dev/shm is, a file as /etc/hosts is.
	Files []File
	// DefaultCgroup is the path that clients fill in when nobody chose one;
	// Cgroup is what replaces it.
	DefaultCgroup, Cgroup string
}

// File is a file or directory of the sandbox that its members see.
type File struct {
	Source, Target string
	// Default is the type of mount at Target that the sandbox's own replaces;
	// any other mount there was the client's choice and stays.
	Default string
	// FollowRoot makes the mount read-only if the root filesystem is.
	FollowRoot bool
}

// Join edits a specification so that its container becomes a member, and says
// whether anything changed. What the client has set itself is left alone.
func (m Membership) Join(spec *specs.Spec) bool {
	changed := m.joinNamespaces(spec)
	for _, f := range m.Files {
		changed = f.join(spec) || changed
	}
	if spec.Linux != nil && m.Cgroup != "" && (spec.Linux.CgroupsPath == "" || spec.Linux.CgroupsPath == m.DefaultCgroup) {
		spec.Linux.CgroupsPath = m.Cgroup
		changed = true
	}
	return changed
}

func (m Membership) joinNamespaces(spec *specs.Spec) bool {
	if spec.Linux == nil {
		return false
	}
	changed := false
	var kept []specs.LinuxNamespace
	for _, ns := range spec.Linux.Namespaces {
		path, shared := m.Namespaces[ns.Type]
		switch {
		case ns.Path != "" || !shared:
		case path == "":
			changed = true
			continue
		default:
			ns.Path = path
			changed = true
		}
		kept = append(kept, ns)
	}
	if path := m.Namespaces[specs.UserNamespace]; path != "" && !hasNamespace(kept, specs.UserNamespace) {
		kept = append(kept, specs.LinuxNamespace{Type: specs.UserNamespace, Path: path})
		spec.Linux.UIDMappings, spec.Linux.GIDMappings = m.UIDs, m.GIDs
		changed = true
	}
	spec.Linux.Namespaces = kept
	return changed
}

func hasNamespace(list []specs.LinuxNamespace, kind specs.LinuxNamespaceType) bool {
	return slices.ContainsFunc(list, func(ns specs.LinuxNamespace) bool { return ns.Type == kind })
}

func (f File) join(spec *specs.Spec) bool {
	same := func(m specs.Mount) bool { return filepath.Clean(m.Destination) == f.Target }
	at := slices.IndexFunc(spec.Mounts, same)
	if at >= 0 && (f.Default == "" || spec.Mounts[at].Type != f.Default) {
		return false
	}
	mount := specs.Mount{Source: f.Source, Destination: f.Target, Type: "bind", Options: []string{"rw", "rbind", "rprivate", "nosuid", "nodev", "noexec"}}
	if f.FollowRoot && spec.Root != nil && spec.Root.Readonly {
		mount.Options[0] = "ro"
	}
	if at >= 0 {
		spec.Mounts[at] = mount
	} else {
		spec.Mounts = append(spec.Mounts, mount)
	}
	return true
}

// CheckRoot refuses a root filesystem whose /dev is a symbolic link: runc 1.1 follows
// it, out of the root filesystem, to make links of its own there.
func CheckRoot(root string) error {
	info, err := os.Lstat(filepath.Join(root, "dev"))
	if err == nil && info.Mode().Type() == os.ModeSymlink {
		return fmt.Errorf("root filesystem %q: /dev is a symbolic link: %w", root, errdefs.ErrInvalidArgument)
	}
	return nil // what else may be wrong with it is the runtime's to say
}

// maxSpec bounds the size of a bundle's configuration.
const maxSpec = 16 << 20

// ReadSpec reads config.json of a bundle. InvalidArgument: it is no specification.
func ReadSpec(bundle string) (*specs.Spec, error) {
	// A FIFO must not hold up the caller, and a file may grow while it is read.
	f, err := os.OpenFile(filepath.Join(bundle, "config.json"), os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("bundle %q: %w: %w", bundle, err, errdefs.ErrInvalidArgument)
	}
	defer f.Close() // only read
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil, errors.Join(fmt.Errorf("bundle %q: config.json is not a regular file: %w", bundle, errdefs.ErrInvalidArgument), err)
	}
	data, err := io.ReadAll(io.LimitReader(f, maxSpec+1))
	if err != nil {
		return nil, fmt.Errorf("bundle %q: %w", bundle, err)
	}
	if len(data) > maxSpec {
		return nil, fmt.Errorf("bundle %q: config.json has more than %d bytes: %w", bundle, maxSpec, errdefs.ErrInvalidArgument)
	}
	var spec specs.Spec
	if err := json.Unmarshal(data, &spec); err != nil {
		return nil, fmt.Errorf("bundle %q: config.json is not an OCI specification: %w: %w", bundle, err, errdefs.ErrInvalidArgument)
	}
	if spec.Process == nil || len(spec.Process.Args) == 0 {
		return nil, fmt.Errorf("bundle %q: config.json names no process to run: %w", bundle, errdefs.ErrInvalidArgument)
	}
	if spec.Root == nil || strings.TrimSpace(spec.Root.Path) == "" {
		return nil, fmt.Errorf("bundle %q: config.json names no root filesystem: %w", bundle, errdefs.ErrInvalidArgument)
	}
	return &spec, nil
}

// WriteSpec replaces config.json of a bundle.
func WriteSpec(bundle string, spec *specs.Spec) error {
	data, err := json.Marshal(spec)
	if err != nil {
		return fmt.Errorf("bundle %q: %w", bundle, err)
	}
	temp := filepath.Join(bundle, ".config.json.caisson")
	err = fault.Fail("task:spec", unix.ENOSPC, unix.EMFILE)
	if err == nil {
		err = writeNew(temp, data)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("bundle %q: %w", bundle, err), os.RemoveAll(temp))
	}
	fault.Point("task:spec:rename")
	if err := os.Rename(temp, filepath.Join(bundle, "config.json")); err != nil {
		return errors.Join(fmt.Errorf("bundle %q: %w", bundle, err), os.Remove(temp))
	}
	return nil
}

// writeNew writes a file in place of one that a dead daemon may have left, and not
// to what somebody made the name lead to.
func writeNew(path string, data []byte) error {
	if err := os.RemoveAll(path); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Close())
}
