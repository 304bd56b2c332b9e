package daemon

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// mountSpace gives Root and State file systems of their own, which can be filled.
func (d *Daemon) mountSpace() error {
	if d.opts.Space == 0 {
		return nil
	}
	for _, dir := range []string{d.Root, d.State} {
		if err := os.Mkdir(dir, 0o711); err != nil {
			return err
		}
		if err := unix.Mount(d.Token, dir, "tmpfs", 0, fmt.Sprintf("mode=711,size=%d", d.opts.Space)); err != nil {
			return fmt.Errorf("mount %s: %w", dir, err)
		}
	}
	return nil
}

func (d *Daemon) unmountSpace() error {
	if d.opts.Space == 0 {
		return nil
	}
	return errors.Join(unix.Unmount(d.Root, unix.MNT_DETACH), unix.Unmount(d.State, unix.MNT_DETACH))
}
