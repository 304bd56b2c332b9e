package cgroup

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"

	"github.com/containerd/cgroups/v3/cgroup1"
	stats1 "github.com/containerd/cgroups/v3/cgroup1/stats"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

func (g *Group) createV1() (err error) {
	// Empty resources: the values are set afterwards by Update, in the order
	// that an existing group needs.
	g.v1, err = cgroup1.New(cgroup1.StaticPath(g.path), &specs.LinuxResources{}, cgroup1.WithHierarchy(g.host.subsystems))
	if err != nil {
		return err
	}
	if g.host.unified == "" {
		return nil
	}
	return os.MkdirAll(g.host.unifiedDir(g.path), 0o755)
}

// statsV1 reads the v1 counters. Controllers that are not there, or vanish
// while being read, leave their part of the result empty.
func (g *Group) statsV1() (*stats1.Metrics, error) {
	var missing atomic.Bool // the handler is called concurrently
	m, err := g.v1.Stat(func(err error) error {
		if gone(err) {
			missing.Store(true)
			return nil
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	if missing.Load() && !g.exists() {
		return nil, fs.ErrNotExist
	}
	if m.Memory != nil {
		path, err := g.controllerPath(cgroup1.Memory)
		if err != nil {
			return nil, err
		}
		if err := readMemoryV1(g.host.dirOf("memory", path), m.Memory); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// readMemoryV1 reads the sixteen one-number files of the memory controller.
// They were more than half of what Stats costs when they were opened as Go
// files: each open and close of those also tells the poller, for nothing.
// Without swap accounting some are missing, and stay zero.
func readMemoryV1(dir string, m *stats1.MemoryStat) error {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	for _, module := range []struct {
		prefix string
		entry  *stats1.MemoryEntry
	}{
		{"memory.", m.Usage}, {"memory.memsw.", m.Swap}, {"memory.kmem.", m.Kernel}, {"memory.kmem.tcp.", m.KernelTCP},
	} {
		e := module.entry
		for _, file := range []struct {
			name  string
			value *uint64
		}{
			{"usage_in_bytes", &e.Usage}, {"max_usage_in_bytes", &e.Max}, {"failcnt", &e.Failcnt}, {"limit_in_bytes", &e.Limit},
		} {
			n, err := readNumberAt(fd, module.prefix+file.name)
			if err != nil && !gone(err) {
				return fmt.Errorf("%s%s: %w", module.prefix, file.name, err)
			}
			*file.value = n
		}
	}
	return nil
}

// readNumberAt reads a file that holds one number.
func readNumberAt(dir int, name string) (uint64, error) {
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	var buf [32]byte
	n, err := unix.Read(fd, buf[:])
	if err != nil {
		return 0, err
	}
	return strconv.ParseUint(string(bytes.TrimSpace(buf[:n])), 10, 64)
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
	if err := g.v1.Update(&own); err != nil {
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

// writeFile writes to a control file, which must exist.
func writeFile(path, value string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	return errors.Join(err, f.Close())
}
