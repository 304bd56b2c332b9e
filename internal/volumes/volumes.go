// Package volumes keeps what is made on the host for the volumes of one sandbox: the
// directories and files of those that live and go with it, and the mounts that lead to
// a part of a volume.
//
// A Store owns one directory and all below it. Containers write into that, so nothing
// in it is followed out of it (openat2), and nothing is removed while it has a mount
// below it: that may be the host's own data.
package volumes

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"caisson/internal/manifest"
)

// Store is the directory of one sandbox's volumes.
type Store struct {
	dir     string
	created []string // paths of the host that Make made, parents first
}

// At is the store in a directory, which need not be there.
func At(dir string) *Store { return &Store{dir: dir} }

func (s *Store) path(v manifest.Volume) string {
	if v.HostPath != "" {
		return v.HostPath
	}
	return filepath.Join(s.dir, "volumes", v.Name)
}

// Make makes the volumes. What an earlier sandbox left in the directory goes first: its
// files are not this one's. After an error, Undo.
func (s *Store) Make(volumes []manifest.Volume, group *int64) error {
	if err := s.Remove(); err != nil {
		return err
	}
	for _, dir := range []string{"volumes", "parts"} {
		if err := os.MkdirAll(filepath.Join(s.dir, dir), 0o700); err != nil {
			return err
		}
	}
	for _, v := range volumes {
		make := s.makeOwn
		if v.HostPath != "" {
			make = s.makeHostPath
		}
		if err := make(v, group); err != nil {
			return fmt.Errorf("volume %q: %w", v.Name, err)
		}
	}
	return nil
}

func (s *Store) makeOwn(v manifest.Volume, group *int64) error {
	dir := s.path(v)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	if v.Memory {
		options := "mode=0700"
		if v.Size > 0 {
			options += ",size=" + strconv.FormatInt(v.Size, 10)
		}
		if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, options); err != nil {
			return &os.PathError{Op: "mount tmpfs", Path: dir, Err: err}
		}
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close() //nolint:errcheck // nothing is written through it
	for _, f := range v.Files {
		if err := writeFile(root, f, group); err != nil {
			return err
		}
	}
	mode := fs.FileMode(0o777)
	if v.ReadOnly {
		mode = 0o755
	}
	if group != nil {
		if err := os.Chown(dir, -1, int(*group)); err != nil {
			return err
		}
		mode |= fs.ModeSetgid
	}
	return os.Chmod(dir, mode) // and not with Mkdir, which heeds the umask
}

func writeFile(root *os.Root, f manifest.File, group *int64) error {
	if dir := filepath.Dir(f.Path); dir != "." {
		if err := root.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	if err := root.WriteFile(f.Path, f.Data, 0o600); err != nil {
		return err
	}
	mode := fs.FileMode(f.Mode)
	if group != nil {
		if err := root.Chown(f.Path, -1, int(*group)); err != nil {
			return err
		}
		mode |= 0o440 // the group is there to read it
	}
	return root.Chmod(f.Path, mode)
}

// Check refuses a path of the host that is not what it must be, before anything is made.
func Check(v manifest.Volume) error {
	if v.HostPath == "" {
		return nil
	}
	fail := func(what string) error {
		return fmt.Errorf("volume %q: %s %s: %w", v.Name, v.HostPath, what, errdefs.ErrFailedPrecondition)
	}
	info, err := os.Stat(v.HostPath)
	if errors.Is(err, fs.ErrNotExist) {
		switch v.HostType {
		case corev1.HostPathDirectoryOrCreate, corev1.HostPathFileOrCreate:
			return nil
		}
		return fail("does not exist on the host")
	}
	if err != nil {
		return fmt.Errorf("volume %q: %w", v.Name, err)
	}
	mode := info.Mode()
	ok := map[corev1.HostPathType]bool{
		corev1.HostPathUnset:             true,
		corev1.HostPathDirectory:         mode.IsDir(),
		corev1.HostPathDirectoryOrCreate: mode.IsDir(),
		corev1.HostPathFile:              mode.IsRegular(),
		corev1.HostPathFileOrCreate:      mode.IsRegular(),
		corev1.HostPathSocket:            mode&fs.ModeSocket != 0,
		corev1.HostPathCharDev:           mode&fs.ModeCharDevice != 0,
		corev1.HostPathBlockDev:          mode&fs.ModeDevice != 0 && mode&fs.ModeCharDevice == 0,
	}
	if !ok[v.HostType] {
		return fail(fmt.Sprintf("is not what its type %s says", v.HostType))
	}
	return nil
}

func (s *Store) makeHostPath(v manifest.Volume, _ *int64) error {
	if err := Check(v); err != nil {
		return err
	}
	switch v.HostType {
	case corev1.HostPathDirectoryOrCreate:
		return s.mkdirs(v.HostPath)
	case corev1.HostPathFileOrCreate:
		if err := s.mkdirs(filepath.Dir(v.HostPath)); err != nil {
			return err
		}
		f, err := os.OpenFile(v.HostPath, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
		if errors.Is(err, fs.ErrExist) {
			return nil
		}
		if err != nil {
			return err
		}
		s.created = append(s.created, v.HostPath)
		return f.Close()
	}
	return nil
}

// mkdirs makes a directory of the host with its parents, and notes which were missing.
func (s *Store) mkdirs(dir string) error {
	err := os.Mkdir(dir, 0o755)
	if errors.Is(err, fs.ErrNotExist) {
		if err := s.mkdirs(filepath.Dir(dir)); err != nil {
			return err
		}
		err = os.Mkdir(dir, 0o755)
	}
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err == nil {
		s.created = append(s.created, dir)
	}
	return err
}

// Source is what a container's mount binds: a volume, or the part of it that subPath
// names. The part is opened below the volume, whatever links containers have put there,
// and what was opened is bound to a place that they cannot change. A part that is not
// there becomes a directory. name is unique among all mounts of the sandbox.
func (s *Store) Source(v manifest.Volume, subPath, name string) (string, error) {
	whole := s.path(v)
	if subPath == "" {
		return whole, nil
	}
	part, err := openPart(whole, subPath, !v.ReadOnly)
	if err != nil {
		return "", fmt.Errorf("volume %q: subPath %q: %w", v.Name, subPath, err)
	}
	defer part.Close() //nolint:errcheck // a path only
	info, err := part.Stat()
	if err != nil {
		return "", err
	}
	at := filepath.Join(s.dir, "parts", name)
	if info.IsDir() {
		err = os.Mkdir(at, 0o700)
	} else {
		err = os.WriteFile(at, nil, 0o600)
	}
	if err != nil {
		return "", err
	}
	if err := unix.Mount(fmt.Sprintf("/proc/self/fd/%d", part.Fd()), at, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return "", &os.PathError{Op: "bind", Path: at, Err: err}
	}
	// Its end must not be the end of the host's mounts below it, whose peer it is so far.
	if err := unix.Mount("", at, "", unix.MS_SLAVE|unix.MS_REC, ""); err != nil {
		return "", &os.PathError{Op: "make a slave", Path: at, Err: err}
	}
	return at, nil
}

func openPart(whole, subPath string, create bool) (*os.File, error) {
	root, err := os.OpenRoot(whole)
	if err != nil {
		return nil, err
	}
	defer root.Close() //nolint:errcheck // only looked through
	dir, err := root.Open(".")
	if err != nil {
		return nil, err
	}
	defer dir.Close() //nolint:errcheck // only looked through
	if _, err := root.Stat(subPath); create && errors.Is(err, fs.ErrNotExist) {
		if err := root.MkdirAll(subPath, 0o755); err != nil {
			return nil, err
		}
	}
	how := &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS}
	const tries = 10 // EAGAIN: somebody renamed something meanwhile
	for range tries {
		var fd int
		if fd, err = unix.Openat2(int(dir.Fd()), subPath, how); err == nil {
			return os.NewFile(uintptr(fd), subPath), nil
		}
		if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if errors.Is(err, unix.EXDEV) {
		return nil, fmt.Errorf("leads out of the volume: %w", errdefs.ErrPermissionDenied)
	}
	return nil, err
}

// Remove removes the directory with all volumes in it. It may be repeated, and what is
// not there is no error. No container may use them any more.
func (s *Store) Remove() error {
	if err := s.unmount(); err != nil {
		return err
	}
	mounts, err := s.mounts()
	if err != nil {
		return err
	}
	if len(mounts) > 0 {
		return fmt.Errorf("%s is still mounted: unmount it, and try again: %w", mounts[0], errdefs.ErrFailedPrecondition)
	}
	return os.RemoveAll(s.dir)
}

func (s *Store) unmount() error {
	mounts, err := s.mounts()
	if err != nil {
		return err
	}
	// A command may have been killed between a bind and what cuts it off from its source.
	for _, at := range mounts {
		if err := unix.Mount("", at, "", unix.MS_PRIVATE, ""); err != nil && !errors.Is(err, unix.EINVAL) {
			return &os.PathError{Op: "make private", Path: at, Err: err}
		}
	}
	slices.Reverse(mounts) // as they lie on each other
	for _, at := range mounts {
		if err := unix.Unmount(at, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EINVAL) {
			return &os.PathError{Op: "unmount", Path: at, Err: err}
		}
	}
	return nil
}

// mounts are the mount points in the directory, in the order in which they were mounted.
func (s *Store) mounts() ([]string, error) {
	dir, err := filepath.EvalSymlinks(s.dir) // as the kernel lists them
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	found, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
	if err != nil {
		return nil, err
	}
	var at []string
	for _, m := range found {
		at = append(at, m.Mountpoint)
	}
	return at, nil
}

// Undo removes what Make made, paths of the host included unless somebody has put
// something there.
func (s *Store) Undo() error {
	if err := s.Remove(); err != nil {
		return err
	}
	for _, p := range slices.Backward(s.created) {
		if err := os.Remove(p); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTEMPTY) {
			return err
		}
	}
	s.created = nil
	return nil
}
