package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/cgroups/v3"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"caisson/internal/fault"
)

// OfProcess finds the group that a process is in. Where the v1 controllers
// have the process in different groups, Path is that of the pids or memory
// controller, and the Group can only be read.
func OfProcess(pid int) (*Group, error) {
	h, err := currentHost()
	if err != nil {
		return nil, err
	}
	if pid <= 0 {
		return nil, fmt.Errorf("cgroup of process %d: %w", pid, errdefs.ErrInvalidArgument)
	}
	if err := fault.Fail("cgroup:find", unix.EMFILE, unix.ENOMEM); err != nil {
		return nil, fmt.Errorf("cgroup of process %d: %w", pid, err)
	}
	paths, err := h.pathsOf(pid)
	if err != nil {
		return nil, fmt.Errorf("cgroup of process %d: %w", pid, err)
	}
	g := &Group{host: h}
	// Controllers that nobody uses keep everything in their root; the group is
	// what the others agree on.
	distinct := make(map[string]bool)
	for _, p := range paths {
		if p != "/" {
			distinct[p] = true
		}
	}
	switch len(distinct) {
	case 0:
		g.path = "/"
	case 1:
		for p := range distinct {
			g.path = p
		}
	default:
		g.perController = paths
		for _, c := range []string{"pids", "memory"} {
			if p := paths[c]; p != "" && p != "/" {
				g.path = p
				break
			}
		}
		if g.path == "" {
			g.path = "/"
		}
	}
	if err := g.open(); err != nil {
		return nil, fmt.Errorf("cgroup of process %d: %q: %w", pid, g.path, classify(err))
	}
	return g, nil
}

// pathsOf reads the group of a process for each controller ("" for v2), below
// the mount points of the hierarchies.
func (h *host) pathsOf(pid int) (map[string]string, error) {
	v1, unified, err := cgroups.ParseCgroupFileUnified("/proc/" + strconv.Itoa(pid) + "/cgroup")
	if err != nil {
		return nil, classify(err)
	}
	paths := make(map[string]string)
	for _, hi := range h.hierarchies {
		names := hi.controllers
		if hi.v2 {
			names = []string{""}
		}
		for _, name := range names {
			p, ok := v1[name]
			if hi.v2 {
				p, ok = unified, unified != ""
			}
			if !ok {
				continue
			}
			rel, ok := strings.CutPrefix(p, strings.TrimSuffix(hi.root, "/"))
			if !ok || strings.HasPrefix(p, "/..") {
				return nil, fmt.Errorf("%q is outside of what is mounted at %s: %w", p, hi.dir, errdefs.ErrFailedPrecondition)
			}
			// The library asks for named hierarchies without "name=".
			paths[strings.TrimPrefix(name, "name=")] = filepath.Join("/", strings.TrimSuffix(rel, " (deleted)"))
		}
	}
	return paths, nil
}

// groupDirs are the group's directories, one for each hierarchy that has it.
func (g *Group) groupDirs() []string {
	if g.perController == nil {
		return g.host.dirs(g.path)
	}
	var dirs []string
	for _, hi := range g.host.hierarchies {
		name := ""
		if !hi.v2 {
			name = strings.TrimPrefix(hi.controllers[0], "name=")
		}
		if p, ok := g.perController[name]; ok {
			dirs = append(dirs, filepath.Join(hi.dir, p))
		}
	}
	return dirs
}

// Pids lists the processes in the group and its descendants, sorted. A
// process counts if any hierarchy has it there: one that moved itself out of
// some of them is still found. It is empty for a group that is gone.
func (g *Group) Pids() ([]int, error) {
	if g.perController != nil {
		return nil, g.mayChange("list processes")
	}
	var pids []int
	for _, dir := range g.groupDirs() {
		err := walk(dir, func(dir string) error {
			var err error
			pids, err = appendPids(pids, dir)
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("cgroup %q: list processes: %w", g.path, classify(err))
		}
	}
	slices.Sort(pids)
	return slices.Compact(pids), nil
}

// walk calls visit for a directory and all below it, children first. What
// vanishes meanwhile is passed over.
func walk(dir string, visit func(dir string) error) error {
	entries, err := os.ReadDir(dir)
	if gone(err) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := walk(filepath.Join(dir, e.Name()), visit); err != nil {
				return err
			}
		}
	}
	if err := visit(dir); err != nil && !gone(err) {
		return err
	}
	return nil
}

// appendPids adds the processes directly in a group.
func appendPids(pids []int, dir string) ([]int, error) {
	b, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	if errors.Is(err, unix.EOPNOTSUPP) {
		// A threaded v2 group: its processes are listed at the top of the
		// threaded subtree.
		return pids, nil
	}
	if err != nil {
		return pids, err
	}
	for field := range strings.FieldsSeq(string(b)) {
		pid, err := strconv.Atoi(field)
		if err != nil {
			return pids, fmt.Errorf("%s: %w", dir, err)
		}
		if pid != 0 { // 0: a process that this PID namespace cannot see
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// readKeys reads a flat keyed file; absent is empty.
func readKeys(path string) (map[string]uint64, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	keys, err := parseKeys(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return keys, nil
}

// parseKeys parses "key value" lines.
func parseKeys(b []byte) (map[string]uint64, error) {
	keys := make(map[string]uint64)
	for line := range strings.Lines(string(b)) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		n, err := strconv.ParseUint(value, 10, 64)
		if err != nil {
			return nil, fmt.Errorf("line %q: %w", line, err)
		}
		keys[key] = n
	}
	return keys, nil
}
