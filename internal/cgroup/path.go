package cgroup

import (
	"fmt"
	"path"
	"strings"

	"github.com/containerd/errdefs"
)

// defaultSlice is where systemd keeps system services, and so where a runtime
// puts a scope that names no slice.
const defaultSlice = "system.slice"

// Resolve gives the absolute cgroupfs path that a path means. It takes
//
//	/kubepods/pod1             cgroupfs style; without the leading slash the same
//	slice:prefix:name          systemd style, see Expand
//	kubepods-pod1.slice        a systemd slice alone
//
// A path with ".." is refused, wherever it would lead.
func Resolve(p string) (string, error) {
	if p == "" {
		return "", fmt.Errorf("cgroup path is empty: %w", errdefs.ErrInvalidArgument)
	}
	if strings.ContainsAny(p, "\x00\n") {
		return "", fmt.Errorf("cgroup path %q: control characters: %w", p, errdefs.ErrInvalidArgument)
	}
	for part := range strings.SplitSeq(p, "/") {
		if part == ".." {
			return "", fmt.Errorf("cgroup path %q: \"..\" is not allowed: %w", p, errdefs.ErrInvalidArgument)
		}
	}
	switch {
	case strings.HasPrefix(p, "/"):
	case strings.Contains(p, ":"):
		return Expand(p)
	case strings.HasSuffix(p, ".slice") && !strings.Contains(p, "/"):
		return expandSlice(p)
	}
	return path.Clean("/" + p), nil
}

// Expand turns the systemd style "slice:prefix:name" into the cgroupfs path
// at which systemd keeps that unit, as an OCI runtime with systemd cgroups
// does: the scope prefix-name.scope (or the slice, if the name is one) below
// the directories of the slice. An empty slice is system.slice.
func Expand(systemd string) (string, error) {
	parts := strings.Split(systemd, ":")
	if len(parts) != 3 {
		return "", fmt.Errorf("cgroup path %q: want slice:prefix:name: %w", systemd, errdefs.ErrInvalidArgument)
	}
	slice, prefix, name := parts[0], parts[1], parts[2]
	if name == "" || strings.Contains(prefix+name, "/") {
		return "", fmt.Errorf("cgroup path %q: want slice:prefix:name with a name and no slash: %w", systemd, errdefs.ErrInvalidArgument)
	}
	if slice == "" {
		slice = defaultSlice
	}
	dir, err := expandSlice(slice)
	if err != nil {
		return "", err
	}
	unit := name
	if !strings.HasSuffix(name, ".slice") {
		unit = prefix + "-" + name + ".scope"
	}
	return path.Join(dir, unit), nil
}

// Scope is the opposite of Expand: the systemd style for a scope below dir. A dir
// that systemd would not keep as a slice gives the default slice.
func Scope(dir, prefix, name string) string {
	slice := path.Base(dir)
	if at, err := expandSlice(slice); err != nil || at != dir {
		slice = defaultSlice
	}
	return slice + ":" + prefix + ":" + name
}

// Subslice is the path of a slice below another one, which Resolve must know as
// a slice.
func Subslice(parent, name string) (string, error) {
	dir, err := Resolve(parent)
	if err != nil {
		return "", err
	}
	base := path.Base(dir)
	if at, err := expandSlice(base); err != nil || at != dir {
		return "", fmt.Errorf("cgroup %q is no slice of systemd: %w", parent, errdefs.ErrInvalidArgument)
	}
	return expandSlice(strings.TrimSuffix(base, ".slice") + "-" + name + ".slice")
}

// expandSlice gives the directory of a slice: each dash is a level, so
// a-b.slice is /a.slice/a-b.slice; "-.slice" is the root.
func expandSlice(slice string) (string, error) {
	name, ok := strings.CutSuffix(slice, ".slice")
	if !ok || name == "" || strings.Contains(name, "/") {
		return "", fmt.Errorf("cgroup slice %q: want a name ending in .slice: %w", slice, errdefs.ErrInvalidArgument)
	}
	if name == "-" {
		return "/", nil
	}
	dir, prefix := "/", ""
	for part := range strings.SplitSeq(name, "-") {
		if part == "" {
			return "", fmt.Errorf("cgroup slice %q: empty part between dashes: %w", slice, errdefs.ErrInvalidArgument)
		}
		dir = path.Join(dir, prefix+part+".slice")
		prefix += part + "-"
	}
	return dir, nil
}
