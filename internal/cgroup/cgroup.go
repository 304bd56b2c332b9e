// Package cgroup is Caisson's one view on control groups: the sandbox
// controller makes, measures and removes the group of a sandbox with it, and
// the tasks use it for the groups their OCI runtime made.
//
// A Group is a path that is the same in every hierarchy of the host: each v1
// hierarchy on a legacy or hybrid host, the one v2 hierarchy on a unified
// host. On a hybrid host resources are those of the v1 controllers; the v2
// hierarchy beside them is used for what only it can do (killing a group at
// once), because runc keeps its containers in it too.
//
// A Group holds no descriptor and no lock on the group: the group may be
// changed or removed by others (the OCI runtime, kubelet) at any time. All
// methods may be called concurrently. Nothing here starts a process, and
// nothing talks to systemd: a systemd style path is a name for a directory.
//
// Errors carry a class of containerd/errdefs: NotFound for a group that is
// gone, InvalidArgument for a path or value that can never work,
// FailedPrecondition for what the host or the state of the group forbids.
package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"github.com/containerd/cgroups/v3/cgroup1"
	"github.com/containerd/cgroups/v3/cgroup2"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"caisson/internal/fault"
)

// Group is a control group that existed when it was made, loaded or found.
type Group struct {
	host *host
	path string
	// perController is set only by OfProcess, for a process whose groups
	// differ between the v1 hierarchies; such a Group can be read but not
	// killed, frozen, changed or deleted.
	perController map[string]string

	v2 *cgroup2.Manager // nil unless the host is unified
}

// Create makes the group in every hierarchy of the host and applies the
// resources; nil resources set nothing. In the v2 hierarchy every available
// controller is enabled for the group's children, so processes belong into
// children only. An existing group is loaded and gets the resources. After an
// error nothing remains of what the call made.
func Create(path string, resources *specs.LinuxResources) (_ *Group, err error) {
	h, err := currentHost()
	if err != nil {
		return nil, err
	}
	if path, err = Resolve(path); err != nil {
		return nil, err
	}
	if path == "/" {
		return nil, fmt.Errorf("cgroup %q: create: the root group belongs to the host: %w", path, errdefs.ErrInvalidArgument)
	}
	var made []string
	defer func() {
		if err != nil {
			// Deepest first. A directory that somebody else has begun to
			// use meanwhile cannot be removed, and must not be.
			for i := len(made) - 1; i >= 0; i-- {
				_ = unix.Rmdir(made[i])
			}
		}
	}()
	g := &Group{host: h, path: path}
	err = fault.Fail("cgroup:create", unix.ENOSPC, unix.ENOMEM)
	for _, dir := range h.dirs(path) {
		if err == nil {
			made, err = makeDir(dir, made)
		}
	}
	switch {
	case err != nil:
	case h.mode == Unified:
		err = g.createV2()
	default:
		err = g.createV1(made)
	}
	if err != nil {
		return nil, fmt.Errorf("cgroup %q: create: %w", path, classify(err))
	}
	if resources != nil {
		if err := g.Update(resources); err != nil {
			return nil, err
		}
	}
	return g, nil
}

// Load finds the group of that path. It is NotFound when no hierarchy has it.
func Load(path string) (*Group, error) {
	h, err := currentHost()
	if err != nil {
		return nil, err
	}
	if path, err = Resolve(path); err != nil {
		return nil, err
	}
	g := &Group{host: h, path: path}
	if err := g.open(); err != nil {
		return nil, fmt.Errorf("cgroup %q: load: %w", path, classify(err))
	}
	return g, nil
}

// open fills in the library's view of an existing group.
func (g *Group) open() (err error) {
	if g.host.mode == Unified {
		if _, err := os.Stat(g.host.dirs(g.path)[0]); err != nil {
			return err
		}
		g.v2, err = cgroup2.Load(g.path, cgroup2.WithMountpoint(g.host.unified))
		return err
	}
	if !g.exists() {
		return fs.ErrNotExist
	}
	return nil
}

// controllerPath is the group's path for one v1 controller, in the form the
// library asks for it.
func (g *Group) controllerPath(name cgroup1.Name) (string, error) {
	if g.perController == nil {
		return g.path, nil
	}
	if p, ok := g.perController[string(name)]; ok {
		return p, nil
	}
	return "", cgroup1.ErrControllerNotActive
}

// Path is the group's absolute path below the hierarchies' mount points,
// always in cgroupfs style.
func (g *Group) Path() string { return g.path }

// Add moves a process into the group, in all hierarchies.
func (g *Group) Add(pid int) error {
	if err := g.mayChange("add a process"); err != nil {
		return err
	}
	if pid <= 0 {
		return fmt.Errorf("cgroup %q: add process %d: %w", g.path, pid, errdefs.ErrInvalidArgument)
	}
	for _, dir := range g.host.dirs(g.path) {
		err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0)
		// A hybrid host's v2 hierarchy need not have the group.
		if errors.Is(err, fs.ErrNotExist) && g.host.optional(dir) {
			continue
		}
		if err != nil {
			return fmt.Errorf("cgroup %q: add process %d: %w", g.path, pid, classify(err))
		}
	}
	return nil
}

// mayChange refuses the groups whose change would hit more than one sandbox:
// the root, and a view made of several groups.
func (g *Group) mayChange(verb string) error {
	if g.path == "/" {
		return fmt.Errorf("cgroup %q: %s: the root group belongs to the host: %w", g.path, verb, errdefs.ErrFailedPrecondition)
	}
	if g.perController != nil {
		return fmt.Errorf("cgroup %q: %s: the process is in different groups of different controllers: %w", g.path, verb, errdefs.ErrFailedPrecondition)
	}
	return nil
}

// makeDir makes a directory and what is missing above it, and appends what it made to
// made, parents before children.
func makeDir(dir string, made []string) ([]string, error) {
	err := unix.Mkdir(dir, 0o755)
	if err == unix.ENOENT {
		if made, err = makeDir(filepath.Dir(dir), made); err != nil {
			return made, err
		}
		err = unix.Mkdir(dir, 0o755)
	}
	switch err {
	case nil:
		made = append(made, dir)
	case unix.EEXIST:
	default:
		return made, &fs.PathError{Op: "mkdir", Path: dir, Err: err}
	}
	return made, nil
}

// gone reports whether an error says that the group, or one file of it, is no
// longer there: ENODEV is what an open file of a removed group answers.
func gone(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) || errors.Is(err, cgroup1.ErrCgroupDeleted)
}

// classify joins the kernel's answer with the class that callers act upon.
func classify(err error) error {
	var class error
	switch {
	case gone(err):
		class = errdefs.ErrNotFound
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ERANGE), errors.Is(err, unix.ENAMETOOLONG):
		class = errdefs.ErrInvalidArgument
	case errors.Is(err, unix.ESRCH):
		class = errdefs.ErrNotFound
	case errors.Is(err, unix.EBUSY), errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EOPNOTSUPP):
		class = errdefs.ErrFailedPrecondition
	case errors.Is(err, fs.ErrPermission), errors.Is(err, unix.EROFS):
		class = errdefs.ErrPermissionDenied
	case errors.Is(err, unix.ENOSPC):
		class = errdefs.ErrResourceExhausted
	default:
		return err
	}
	if errors.Is(err, class) {
		return err
	}
	return fmt.Errorf("%w: %w", err, class)
}
