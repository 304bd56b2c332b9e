package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/cgroups/v3/cgroup2"
	stats2 "github.com/containerd/cgroups/v3/cgroup2/stats"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

const subtreeControl = "cgroup.subtree_control"

func (g *Group) createV2() (err error) {
	dir := g.host.unifiedDir(g.path)
	// From the root down: a group offers only what its parent passes on.
	at := g.host.unified
	for part := range strings.SplitSeq(strings.TrimPrefix(g.path, "/"), "/") {
		if err := enableControllers(at); err != nil {
			return err
		}
		at = filepath.Join(at, part)
	}
	// Its own children: not possible while processes are in the group itself,
	// as in one that an OCI runtime made for a container.
	if err := enableControllers(dir); err != nil && !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.EOPNOTSUPP) {
		return err
	}
	g.v2, err = cgroup2.Load(g.path, cgroup2.WithMountpoint(g.host.unified))
	return err
}

func controllersOf(dir string) ([]string, error) {
	b, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
	return strings.Fields(string(b)), err
}

// enableControllers passes every controller of a group on to its children.
// One that the kernel refuses (cpu, while real-time processes run) does not
// keep the others from being enabled; an error is returned only if none of
// the missing ones could be.
func enableControllers(dir string) error {
	available, err := controllersOf(dir)
	if err != nil {
		return err
	}
	file := filepath.Join(dir, subtreeControl)
	b, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	enabled := strings.Fields(string(b))
	missing := slices.DeleteFunc(available, func(c string) bool { return slices.Contains(enabled, c) })
	if len(missing) == 0 || writeFile(file, "+"+strings.Join(missing, " +")) == nil {
		return nil
	}
	var last error
	done := 0
	for _, c := range missing {
		if err := writeFile(file, "+"+c); err != nil {
			last = fmt.Errorf("enable %s: %w", c, err)
		} else {
			done++
		}
	}
	if done > 0 || len(enabled) > 0 {
		return nil
	}
	return last
}

// statsV2 reads the v2 counters; what is not there stays empty.
func (g *Group) statsV2() (*stats2.Metrics, error) {
	m, err := g.v2.Stat()
	if err != nil && !gone(err) {
		return nil, err
	}
	// The library answers zeros for a group that does not exist.
	if !g.exists() {
		return nil, fs.ErrNotExist
	}
	return m, err
}

// updateV2 applies resources to the v2 controllers. What the library cannot
// express is written here, after its part.
func (g *Group) updateV2(r *specs.LinuxResources) error {
	own := *r
	raw := make(map[string]string)
	if r.CPU != nil {
		own.CPU = cpuV2(*r.CPU, raw)
	}
	dir := g.host.unifiedDir(g.path)
	if r.Memory != nil {
		m, err := memoryV2(*r.Memory, raw)
		if err != nil {
			return err
		}
		own.Memory = m
		if v, ok := raw["memory.swap.max"]; ok && (v == "0" || v == "max") {
			if _, err := os.Stat(filepath.Join(dir, "memory.swap.max")); errors.Is(err, fs.ErrNotExist) {
				delete(raw, "memory.swap.max") // no swap accounting: as good as kept
			}
		}
	}
	if b := r.BlockIO; b != nil && b.Weight != nil {
		// io.bfq.weight exists only where BFQ is built in.
		if _, err := os.Stat(filepath.Join(dir, "io.bfq.weight")); errors.Is(err, fs.ErrNotExist) {
			if *b.Weight != 0 {
				raw["io.weight"] = strconv.Itoa(1 + (int(*b.Weight)-10)*9999/990)
			}
			without := *b
			without.Weight = nil
			own.BlockIO = &without
		}
	}
	if !g.host.has("hugetlb") {
		own.HugepageLimits = nil
	}
	for k, v := range r.Unified {
		if k == "" || strings.ContainsAny(k, "/\x00") || !strings.Contains(k, ".") || strings.HasPrefix(k, "cgroup.") {
			return fmt.Errorf("resource %q of \"unified\" is not a controller's file: %w", k, errdefs.ErrInvalidArgument)
		}
		raw[k] = v
	}
	if err := g.v2.Update(cgroup2.ToResources(&own)); err != nil {
		return err
	}
	for _, k := range slices.Sorted(maps.Keys(raw)) {
		if err := writeFile(filepath.Join(dir, k), raw[k]); err != nil {
			return err
		}
	}
	return nil
}

func cpuV2(c specs.LinuxCPU, raw map[string]string) *specs.LinuxCPU {
	if c.Shares != nil && *c.Shares == 0 {
		c.Shares = nil // v1's word for "not set"
	}
	if c.Quota != nil && c.Period == nil {
		period := uint64(100_000)
		c.Period = &period
	}
	if c.Quota != nil && *c.Quota <= 0 {
		c.Quota = nil // with a period: "max"
	}
	if c.Burst != nil {
		raw["cpu.max.burst"] = strconv.FormatUint(*c.Burst, 10)
	}
	if c.Idle != nil {
		raw["cpu.idle"] = strconv.FormatInt(*c.Idle, 10)
	}
	return &c
}

// memoryV2 takes over all limits itself: in the spec swap includes memory and
// -1 is unlimited, in v2 neither is so.
func memoryV2(m specs.LinuxMemory, raw map[string]string) (*specs.LinuxMemory, error) {
	number := func(v int64) string {
		if v < 0 {
			return "max"
		}
		return strconv.FormatInt(v, 10)
	}
	if m.Swap != nil && *m.Swap != 0 {
		switch {
		case *m.Swap < 0:
			raw["memory.swap.max"] = "max"
		case m.Limit == nil || *m.Limit <= 0:
			return nil, fmt.Errorf("limit of memory and swap %d without a memory limit: %w", *m.Swap, errdefs.ErrInvalidArgument)
		case *m.Swap < *m.Limit:
			return nil, fmt.Errorf("limit of memory and swap %d below the memory limit %d: %w", *m.Swap, *m.Limit, errdefs.ErrInvalidArgument)
		default:
			raw["memory.swap.max"] = number(*m.Swap - *m.Limit)
		}
	} else if m.Limit != nil && *m.Limit < 0 {
		raw["memory.swap.max"] = "max"
	}
	if m.Limit != nil && *m.Limit != 0 {
		raw["memory.max"] = number(*m.Limit)
	}
	if m.Reservation != nil && *m.Reservation != 0 {
		raw["memory.low"] = number(*m.Reservation)
	}
	m.Swap, m.Limit, m.Reservation = nil, nil, nil
	return &m, nil
}
