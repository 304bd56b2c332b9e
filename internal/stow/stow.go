// Package stow keeps mounts out of the host's mount table while nobody needs them there.
//
// The kernel copies that table for each container, OCI runtimes and containerd read it
// several times for each, and every mount in it costs all of them: beside a thousand pods
// with three mounts each, that was two thirds of what a pod took to come up. A mount that
// is put away is a descriptor of a tree that is attached nowhere. The sandbox's monitor
// keeps it, so it outlives the daemon, and goes with the monitor.
package stow

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"caisson/internal/fault"
)

// Keeper holds on to what is put away: a sandbox's monitor.
type Keeper interface {
	Keep(ctx context.Context, name string, files ...*os.File) error
	Fetch(ctx context.Context, name string) ([]*os.File, error)
	Drop(ctx context.Context, name string) error
}

// Away takes what is mounted at path, with all that is mounted below it, out of the mount
// table, and gives it to the keeper under a name. If nothing is mounted there it does
// nothing. On error it is where it was. Away may be repeated.
func Away(ctx context.Context, k Keeper, name, path string) error {
	if mounted, err := isMount(path); err != nil || !mounted {
		return err
	}
	if err := fault.Fail("stow:clone", unix.ENOMEM, unix.EMFILE); err != nil {
		return fmt.Errorf("put mount %s away: %w", path, err)
	}
	fd, err := unix.OpenTree(unix.AT_FDCWD, path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE|unix.AT_SYMLINK_NOFOLLOW)
	if err != nil {
		return fmt.Errorf("put mount %s away: open_tree: %w", path, err)
	}
	tree := os.NewFile(uintptr(fd), path)
	defer tree.Close() // the keeper has its own
	if err := k.Keep(ctx, name, tree); err != nil {
		return fmt.Errorf("put mount %s away: %w", path, err)
	}
	fault.Point("stow:kept")
	if err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
		return fmt.Errorf("put mount %s away: unmount: %w", path, err)
	}
	return nil
}

// Back mounts at path what Away took from there. If something is mounted there it does
// nothing. NotFound: nothing was put away under the name.
func Back(ctx context.Context, k Keeper, name, path string) error {
	mounted, err := isMount(path)
	if err != nil || mounted {
		return err
	}
	files, err := k.Fetch(ctx, name)
	defer closeAll(files)
	if err == nil {
		err = fault.Fail("stow:back", unix.ENOMEM, unix.ENOSPC)
	}
	if err == nil && len(files) != 1 {
		err = fmt.Errorf("%d descriptors are kept as %q: %w", len(files), name, errdefs.ErrInternal)
	}
	if err != nil {
		return fmt.Errorf("mount %s again: %w", path, err)
	}
	err = unix.MoveMount(int(files[0].Fd()), "", unix.AT_FDCWD, path, unix.MOVE_MOUNT_F_EMPTY_PATH)
	if err != nil {
		return fmt.Errorf("mount %s again: move_mount: %w", path, err)
	}
	return nil
}

// Forget lets go of what is kept under a name, if anything is. A file system that is
// mounted nowhere else has ended when it returns: what that takes, the writing of its
// data above all, is done here and not by the keeper.
func Forget(ctx context.Context, k Keeper, name string) error {
	files, err := k.Fetch(ctx, name)
	if errdefs.IsNotFound(err) {
		return nil
	}
	defer closeAll(files)
	if err == nil {
		fault.Point("stow:forget")
		err = k.Drop(ctx, name)
	}
	if err != nil {
		return fmt.Errorf("forget a mount that was put away: %w", err)
	}
	return nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close() // a tree that is attached nowhere has nobody who could be told
	}
}

// isMount tells whether path is the root of a mount. One that does not exist is none.
func isMount(path string) (bool, error) {
	var st unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT, 0, &st)
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	if err != nil {
		return false, &os.PathError{Op: "statx", Path: path, Err: err}
	}
	if st.Attributes_mask&unix.STATX_ATTR_MOUNT_ROOT == 0 {
		return false, fmt.Errorf("%s: the kernel does not tell mounts (statx): %w", path, errdefs.ErrNotImplemented)
	}
	return st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0, nil
}
