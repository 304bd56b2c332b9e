package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

var compiledIn = regexp.MustCompile(`k8s-staging-cri-tools/test-image-digest@(sha256:[0-9a-f]{64})`)

// withDigest copies critest, with the one digest that is compiled into it made
// that of our image: nobody can make an image of a given digest.
func withDigest(critest, to, digest string) (string, error) {
	content, err := os.ReadFile(critest)
	if err != nil {
		return "", fmt.Errorf("critest: %w", err)
	}
	for _, at := range compiledIn.FindAllSubmatchIndex(content, -1) {
		copy(content[at[2]:at[3]], digest)
	}
	if err := os.WriteFile(to, content, 0o755); err != nil {
		return "", fmt.Errorf("critest: %w", err)
	}
	return to, nil
}

func copyFile(from, to string) error {
	content, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, content, 0o644)
}

// cgroupSet is what was there. critest's containers have no parent of their
// own, so that the daemon's token is not in the names of their cgroups.
type cgroupSet map[string]bool

// cgroups lists those of CRI's namespace in containerd.
func cgroups() (cgroupSet, error) {
	mounts, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup", "cgroup2"))
	if err != nil {
		return nil, err
	}
	set := cgroupSet{}
	for _, m := range mounts {
		err := filepath.WalkDir(filepath.Join(m.Mountpoint, "k8s.io"), func(path string, d fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if err == nil && d.IsDir() {
				set[path] = true
			}
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	return set, nil
}

// removeNew removes the cgroups that were not there, and lists them, except for
// the parent of all: OCI runtimes make it and nobody removes it.
func (s cgroupSet) removeNew() (left []string, err error) {
	now, err := cgroups()
	if err != nil {
		return nil, err
	}
	var paths []string
	for path := range now {
		if !s[path] {
			paths = append(paths, path)
		}
	}
	slices.Sort(paths)
	for _, path := range slices.Backward(paths) {
		if filepath.Base(path) != "k8s.io" {
			left = append(left, "cgroup "+path)
		}
		if rmErr := unix.Rmdir(path); rmErr != nil {
			err = errors.Join(err, fmt.Errorf("remove cgroup %s: %w", path, rmErr))
		}
	}
	return left, err
}
