package daemon

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// AddCgroup makes a cgroup in every hierarchy, for containers to be put below:
// the cgroup of a containerd namespace or of a pod, which the daemon is given
// and does not own. Close removes it, and fails if something is below it.
func (d *Daemon) AddCgroup(path string) error {
	mounts, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup", "cgroup2"))
	if err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, m := range mounts {
		dir := filepath.Join(m.Mountpoint, path)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("cgroup: %w", err)
		}
		d.cgroups = append(d.cgroups, dir)
	}
	return nil
}

// removeCgroups leaves those that are not empty: they will be found.
func (d *Daemon) removeCgroups() error {
	var errs []error
	for _, dir := range slices.Backward(d.cgroups) {
		err := unix.Rmdir(dir)
		if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EBUSY) {
			errs = append(errs, fmt.Errorf("remove cgroup %s: %w", dir, err))
		}
	}
	return errors.Join(errs...)
}
