package cgroup

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/containerd/cgroups/v3/cgroup1"
	"github.com/containerd/errdefs"
	"github.com/moby/sys/mountinfo"
)

// Mode says which cgroup interface the host's resources are controlled with.
type Mode string

// The modes: no cgroups mounted, v1 only, v1 controllers with a v2 hierarchy
// beside them, v2 only.
const (
	Unavailable Mode = "unavailable"
	Legacy      Mode = "legacy"
	Hybrid      Mode = "hybrid"
	Unified     Mode = "unified"
)

const cgroupfs = "/sys/fs/cgroup"

// hierarchy is one mounted cgroup file system.
type hierarchy struct {
	dir         string // mount point
	root        string // the group that is mounted there, "/" unless bind-mounted
	controllers []string
	v2          bool
}

// host is what does not change while the host is up.
type host struct {
	mode        Mode
	hierarchies []hierarchy
	unified     string // mount point of the v2 hierarchy, "" if there is none
	v1          []cgroup1.Subsystem
	sources     []source // of v1 counters
}

var (
	hostMu    sync.Mutex
	knownHost *host // set once cgroups were found; under hostMu
)

// currentHost reads the mount table once; that no cgroups are mounted is not
// remembered, since they may be mounted later.
func currentHost() (*host, error) {
	hostMu.Lock()
	defer hostMu.Unlock()
	if knownHost != nil {
		return knownHost, nil
	}
	mounts, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup", "cgroup2"))
	if err != nil {
		return nil, fmt.Errorf("cgroups: read the mount table: %w", err)
	}
	h := hostFromMounts(mounts)
	switch h.mode {
	case Unavailable:
		return nil, fmt.Errorf("cgroups: none are mounted at %s: %w", cgroupfs, errdefs.ErrFailedPrecondition)
	case Legacy, Hybrid:
		if h.v1, err = cgroup1.Default(); err != nil {
			return nil, fmt.Errorf("cgroups: list v1 controllers: %w", err)
		}
		if err := h.openSources(); err != nil {
			return nil, fmt.Errorf("cgroups: %w", err)
		}
	}
	knownHost = h
	return h, nil
}

// hostFromMounts picks the hierarchies to use: each set of controllers once,
// at its usual place if it is mounted at several.
func hostFromMounts(mounts []*mountinfo.Info) *host {
	mounts = slices.Clone(mounts)
	usual := func(m *mountinfo.Info) bool {
		return m.Mountpoint == cgroupfs || strings.HasPrefix(m.Mountpoint, cgroupfs+"/")
	}
	slices.SortStableFunc(mounts, func(a, b *mountinfo.Info) int {
		switch {
		case usual(a) == usual(b):
			return 0
		case usual(a):
			return -1
		}
		return 1
	})
	h := &host{mode: Unavailable}
	seen := make(map[string]bool)
	for _, m := range mounts {
		hi := hierarchy{dir: m.Mountpoint, root: m.Root, v2: m.FSType == "cgroup2"}
		if !hi.v2 {
			for _, opt := range strings.Split(m.VFSOptions, ",") {
				switch {
				case opt == "rw", opt == "ro", opt == "xattr", opt == "clone_children", opt == "noprefix",
					strings.HasPrefix(opt, "release_agent="):
				default:
					hi.controllers = append(hi.controllers, opt)
				}
			}
		}
		key := strings.Join(hi.controllers, ",")
		if seen[key] {
			continue
		}
		seen[key] = true
		if hi.v2 {
			h.unified = hi.dir
		}
		h.hierarchies = append(h.hierarchies, hi)
	}
	hasV1 := slices.ContainsFunc(h.hierarchies, func(hi hierarchy) bool { return !hi.v2 })
	switch {
	case h.unified == cgroupfs, h.unified != "" && !hasV1:
		h.mode = Unified
		h.hierarchies = slices.DeleteFunc(h.hierarchies, func(hi hierarchy) bool { return !hi.v2 })
	case h.unified != "":
		h.mode = Hybrid
	case hasV1:
		h.mode = Legacy
	}
	return h
}

// subsystems hands the v1 controllers, found once, to the library, which
// otherwise reads the mount table for each group.
func (h *host) subsystems() ([]cgroup1.Subsystem, error) { return h.v1, nil }

// dirs are the directories of a group, one for each hierarchy.
func (h *host) dirs(path string) []string {
	dirs := make([]string, len(h.hierarchies))
	for i, hi := range h.hierarchies {
		dirs[i] = filepath.Join(hi.dir, path)
	}
	return dirs
}

// dirOf is the group's directory in the v1 hierarchy of a controller, or ""
// if there is none.
func (h *host) dirOf(controller, path string) string {
	for _, hi := range h.hierarchies {
		if slices.Contains(hi.controllers, controller) {
			return filepath.Join(hi.dir, path)
		}
	}
	return ""
}

// unifiedDir is the group's directory in the v2 hierarchy, or "".
func (h *host) unifiedDir(path string) string {
	if h.unified == "" {
		return ""
	}
	return filepath.Join(h.unified, path)
}

// optional reports whether a group may lack this directory: the v2 hierarchy
// of a hybrid host is joined by some runtimes only.
func (h *host) optional(dir string) bool {
	return h.mode == Hybrid && (dir == h.unified || strings.HasPrefix(dir, h.unified+"/"))
}

// has reports whether resources of that controller can be set. The names are
// those of v1; io is the v2 name of blkio.
func (h *host) has(controller string) bool {
	if h.mode != Unified {
		return h.dirOf(controller, "/") != ""
	}
	available, err := controllersOf(h.unified)
	return err == nil && slices.Contains(available, controller)
}

// CurrentMode is the host's mode.
func CurrentMode() Mode {
	h, err := currentHost()
	if err != nil {
		return Unavailable
	}
	return h.mode
}

// Missing names the controllers that a sandbox can use but the host lacks in
// the hierarchies that CurrentMode tells; limits of these cannot be set.
func Missing() ([]string, error) {
	h, err := currentHost()
	if err != nil {
		return nil, err
	}
	want := []string{"cpu", "cpuset", "memory", "pids", "io", "hugetlb"}
	if h.mode != Unified {
		want = []string{"cpu", "cpuacct", "cpuset", "memory", "pids", "blkio", "devices", "freezer", "hugetlb"}
	}
	return slices.DeleteFunc(want, h.has), nil
}
