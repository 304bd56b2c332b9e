package daemon

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// ownFileSystems are the directories that get a file system of their own, and its
// options.
func (d *Daemon) ownFileSystems() map[string]string {
	mounts := map[string]string{}
	if d.opts.Volatile {
		mounts[d.State] = "mode=711"
		if d.opts.Engine == EngineStock {
			mounts[filepath.Join(d.stockDir(), "run")] = "mode=711"
			mounts[filepath.Join(d.stockDir(), "runc")] = "mode=711"
		}
	}
	if d.opts.Space > 0 {
		for _, dir := range []string{d.Root, d.State} {
			mounts[dir] = fmt.Sprintf("mode=711,size=%d", d.opts.Space)
		}
	}
	return mounts
}

func (d *Daemon) mountSpace() error {
	for dir, options := range d.ownFileSystems() {
		if err := os.MkdirAll(dir, 0o711); err != nil {
			return err
		}
		if err := unix.Mount(d.Token, dir, "tmpfs", 0, options); err != nil {
			return fmt.Errorf("mount %s: %w", dir, err)
		}
	}
	return nil
}

func (d *Daemon) unmountSpace() error {
	var errs []error
	for dir := range d.ownFileSystems() {
		errs = append(errs, unix.Unmount(dir, unix.MNT_DETACH))
	}
	return errors.Join(errs...)
}
