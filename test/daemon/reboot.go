package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// Reboot does what a power cut does to the daemon, to the containerd beside it
// and to all that they run: processes, mounts, cgroups and network namespaces
// end at once, and the directories of run-time data, which belong on a tmpfs,
// are gone. What is on disk stays. The cgroups that AddCgroup made are there
// again, empty, as kubelet would make them. Nothing runs when it returns.
func (d *Daemon) Reboot(ctx context.Context) error {
	if err := errors.Join(d.KillContainerd(), d.Kill()); err != nil {
		return err
	}
	if err := Poll(ctx, goneLimit, func() error {
		found, err := d.before.PowerOff(d.Token)
		if found > 0 {
			err = errors.Join(err, fmt.Errorf("%d things are still there", found))
		}
		return err
	}); err != nil {
		return fmt.Errorf("power off: %w", err)
	}
	for _, dir := range []string{d.State, filepath.Join(d.stockDir(), "run")} {
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
	}
	for _, dir := range d.cgroups {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	return nil
}
