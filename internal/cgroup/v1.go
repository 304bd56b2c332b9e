package cgroup

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/containerd/cgroups/v3/cgroup1"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// createV1 fits out the directories that Create made. The library would have made
// them as well, with ten times as many system calls.
func (g *Group) createV1(made []string) error {
	if dir := g.host.dirOf("cpuset", g.path); dir != "" {
		// Without processors and memory nodes nothing can be put into it.
		for _, name := range []string{"cpuset.cpus", "cpuset.mems"} {
			if _, err := inherit(dir, name, made); err != nil {
				return err
			}
		}
	}
	return nil
}

// inherit gives a group its parent's value of a file that is empty in a new one, as those
// just made are, and returns the value; that of the root is never empty.
func inherit(dir, name string, made []string) ([]byte, error) {
	if !slices.Contains(made, dir) {
		value, err := readFile(filepath.Join(dir, name))
		if err != nil || len(value) > 0 {
			return value, err
		}
	}
	value, err := inherit(filepath.Dir(dir), name, made)
	if err != nil {
		return nil, err
	}
	return value, writeFile(filepath.Join(dir, name), string(value))
}

// libraryV1 is the library's view of the group, for what is not done often.
func (g *Group) libraryV1() (cgroup1.Cgroup, error) {
	return cgroup1.Load(g.controllerPath, cgroup1.WithHierarchy(g.host.subsystems))
}

// updateV1 applies resources to the v1 controllers.
func (g *Group) updateV1(r *specs.LinuxResources) error {
	if len(r.Unified) > 0 {
		return fmt.Errorf("resources of cgroup v2 (%d keys in \"unified\") on a %s host: %w", len(r.Unified), g.host.mode, errdefs.ErrInvalidArgument)
	}
	own := *r
	if r.Memory != nil {
		m, err := g.memoryV1(*r.Memory)
		if err != nil {
			return err
		}
		own.Memory = m
	}
	theirs, err := g.libraryV1()
	if err != nil {
		return err
	}
	if err := theirs.Update(&own); err != nil {
		return err
	}
	return g.updateRestV1(r)
}

// memoryV1 prepares the memory limits for the library, which knows neither
// hosts without swap accounting nor the order for lifting a limit.
func (g *Group) memoryV1(m specs.LinuxMemory) (*specs.LinuxMemory, error) {
	// Kernel memory limits do nothing since Linux 5.4 and fail since 6.1.
	m.Kernel = nil //lint:ignore SA1019 it is being dropped

	dir := g.host.dirOf("memory", g.path)
	memsw := filepath.Join(dir, "memory.memsw.limit_in_bytes")
	if _, err := os.Stat(memsw); errors.Is(err, fs.ErrNotExist) {
		// Without swap accounting only "no more than the limit" and "no
		// limit" can be kept: the one is not enforced, the other is so.
		if m.Swap != nil && *m.Swap != -1 && (m.Limit == nil || *m.Swap != *m.Limit) {
			return nil, fmt.Errorf("limit swap: the host does not account for swap: %w", errdefs.ErrFailedPrecondition)
		}
		m.Swap = nil
		return &m, nil
	}
	if m.Limit != nil && *m.Limit == -1 {
		// memory+swap may not be below memory, so it goes first.
		if m.Swap != nil && *m.Swap != -1 {
			return nil, fmt.Errorf("limit of memory and swap %d with unlimited memory: %w", *m.Swap, errdefs.ErrInvalidArgument)
		}
		if err := writeFile(memsw, "-1"); err != nil {
			return nil, err
		}
		m.Swap = nil
	}
	return &m, nil
}

// updateRestV1 sets what the library's Update leaves out.
func (g *Group) updateRestV1(r *specs.LinuxResources) error {
	var subsystems []cgroup1.Subsystem
	for _, s := range g.host.v1 {
		if (s.Name() == cgroup1.Hugetlb && len(r.HugepageLimits) > 0) ||
			(s.Name() == cgroup1.NetPrio && r.Network != nil) {
			subsystems = append(subsystems, s)
		}
	}
	if len(subsystems) > 0 {
		hierarchy := func() ([]cgroup1.Subsystem, error) { return subsystems, nil }
		if _, err := cgroup1.New(cgroup1.StaticPath(g.path), r, cgroup1.WithHierarchy(hierarchy)); err != nil {
			return err
		}
	}
	if p := r.Pids; p != nil && p.Limit != nil && *p.Limit < 0 {
		if err := writeFile(filepath.Join(g.host.dirOf("pids", g.path), "pids.max"), "max"); err != nil {
			return err
		}
	}
	if c := r.CPU; c != nil {
		dir := g.host.dirOf("cpu", g.path)
		if c.Burst != nil {
			if err := writeFile(filepath.Join(dir, "cpu.cfs_burst_us"), strconv.FormatUint(*c.Burst, 10)); err != nil {
				return err
			}
		}
		if c.Idle != nil {
			return writeFile(filepath.Join(dir, "cpu.idle"), strconv.FormatInt(*c.Idle, 10))
		}
	}
	return nil
}

// The functions below are os.ReadFile and os.WriteFile without the poller, which these
// files would be told to for nothing: that is most of what those cost.

// writeFile writes to a control file, which must exist.
func writeFile(path, value string) error {
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &fs.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd) // nothing is buffered
	if _, err := unix.Write(fd, []byte(value)); err != nil {
		return &fs.PathError{Op: "write", Path: path, Err: err}
	}
	return nil
}

// readFile reads a control file of at most a page, without its last line's end.
func readFile(path string) ([]byte, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	buf := make([]byte, 4096)
	n, err := unix.Read(fd, buf)
	if err != nil {
		return nil, &fs.PathError{Op: "read", Path: path, Err: err}
	}
	return bytes.TrimSuffix(buf[:n], []byte("\n")), nil
}
