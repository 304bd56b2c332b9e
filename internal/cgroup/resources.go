package cgroup

import (
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"caisson/internal/fault"
)

// Stats reads the group's counters: *cgroup1/stats.Metrics, or
// *cgroup2/stats.Metrics on a unified host, which typeurl can marshal. It
// starts no process and is made to be called every second for each group.
// Controllers that the host lacks leave their part empty; NotFound means that
// the group is gone.
func (g *Group) Stats() (any, error) {
	// Two branches, lest a nil pointer becomes a non-nil interface.
	if g.v2 != nil {
		m, err := g.statsV2()
		if err != nil {
			return nil, fmt.Errorf("cgroup %q: stats: %w", g.path, classify(err))
		}
		return m, nil
	}
	m, err := g.statsV1()
	if err != nil {
		return nil, fmt.Errorf("cgroup %q: stats: %w", g.path, classify(err))
	}
	return m, nil
}

// Update applies resources to the group; what they do not name stays as it
// is, and -1 lifts a limit. Limits of a controller that the host lacks are
// FailedPrecondition, except huge pages, which kubelet names for every
// container, wanted or not.
func (g *Group) Update(resources *specs.LinuxResources) error {
	if resources == nil {
		return nil
	}
	if err := g.mayChange("update"); err != nil {
		return err
	}
	if missing := g.host.lacking(resources); missing != "" {
		return fmt.Errorf("cgroup %q: update: the host has no %s controller: %w", g.path, missing, errdefs.ErrFailedPrecondition)
	}
	if !g.exists() {
		return fmt.Errorf("cgroup %q: update: %w", g.path, errdefs.ErrNotFound)
	}
	err := fault.Fail("cgroup:update", unix.EBUSY, unix.ENOMEM)
	switch {
	case err != nil:
	case g.v2 != nil:
		err = g.updateV2(resources)
	default:
		err = g.updateV1(resources)
	}
	if err == nil {
		return nil
	}
	// The group is there, so a missing file means a missing ability.
	if errors.Is(err, os.ErrNotExist) && g.exists() {
		return fmt.Errorf("cgroup %q: update: %w: %w", g.path, err, errdefs.ErrFailedPrecondition)
	}
	return fmt.Errorf("cgroup %q: update: %w", g.path, classify(err))
}

// lacking names a controller that resources need and the host lacks.
func (h *host) lacking(r *specs.LinuxResources) string {
	block := "blkio"
	if h.mode == Unified {
		block = "io"
	}
	need := map[string]bool{
		"memory": r.Memory != nil && !emptyMemory(r.Memory),
		"pids":   r.Pids != nil && r.Pids.Limit != nil && *r.Pids.Limit != 0,
		"cpuset": r.CPU != nil && (r.CPU.Cpus != "" || r.CPU.Mems != ""),
		"cpu":    r.CPU != nil && (r.CPU.Shares != nil || r.CPU.Quota != nil || r.CPU.Period != nil || r.CPU.Burst != nil || r.CPU.Idle != nil),
		block:    r.BlockIO != nil,
	}
	for _, c := range []string{"memory", "pids", "cpuset", "cpu", block} {
		if need[c] && !h.has(c) {
			return c
		}
	}
	return ""
}

func emptyMemory(m *specs.LinuxMemory) bool {
	return m.Limit == nil && m.Reservation == nil && m.Swap == nil && m.Swappiness == nil && m.DisableOOMKiller == nil
}

// exists reports whether any hierarchy still has the group.
func (g *Group) exists() bool {
	return slices.ContainsFunc(g.groupDirs(), func(dir string) bool {
		_, err := os.Lstat(dir)
		return err == nil
	})
}
