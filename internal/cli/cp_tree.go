package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// transfer copies a tree. Neither side is trusted to stay as it is meanwhile: every
// step goes through a directory that is held open, and never out of it.
type transfer struct {
	ctx     context.Context
	warn    func(string)
	owner   ids
	special bool // keep the setuid, setgid and sticky bits: not towards the host
}

func (t *transfer) copy(from copySource, to copyEnd) error {
	return t.entry(from.dir, from.name, to.dir, to.name)
}

// deepest is more than any path that can be named.
const deepest = 2048

func (t *transfer) entry(from *os.Root, name string, to *os.Root, as string) error {
	return t.entryAt(from, name, to, as, 0)
}

func (t *transfer) entryAt(from *os.Root, name string, to *os.Root, as string, depth int) error {
	if err := t.ctx.Err(); err != nil {
		return err
	}
	if depth > deepest {
		return fmt.Errorf("%s: more than %d directories deep: %w", name, deepest, errdefs.ErrResourceExhausted)
	}
	info, err := from.Lstat(name)
	if err != nil {
		return err
	}
	switch info.Mode().Type() {
	case fs.ModeDir:
		return t.directory(from, name, to, as, depth)
	case fs.ModeSymlink:
		return t.link(from, name, to, as)
	case 0:
		return t.file(from, name, to, as)
	}
	t.warn(fmt.Sprintf("%q is neither a file, a directory nor a symbolic link: left out", name))
	return nil
}

func (t *transfer) directory(from *os.Root, name string, to *os.Root, as string, depth int) error {
	source, err := from.OpenRoot(name)
	if err != nil {
		return err
	}
	defer source.Close()
	dir, err := source.Open(".")
	if err != nil {
		return err
	}
	defer dir.Close()
	info, err := dir.Stat()
	if err != nil {
		return err
	}
	made := false
	if as != "." {
		// 0700 until all is in it: what a directory keeps from others is no business of theirs.
		err := to.Mkdir(as, 0o700)
		made = err == nil
		if errors.Is(err, fs.ErrExist) {
			if there, serr := to.Lstat(as); serr != nil || !there.IsDir() {
				return fmt.Errorf("%s is there and not a directory: %w", as, errdefs.ErrFailedPrecondition)
			}
			err = nil
		}
		if err != nil {
			return err
		}
	}
	target, err := to.OpenRoot(as)
	if err != nil {
		return err
	}
	defer target.Close()
	for {
		entries, err := dir.ReadDir(256)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		slices.SortFunc(entries, func(a, b fs.DirEntry) int { return cmp.Compare(a.Name(), b.Name()) })
		for _, e := range entries {
			if err := t.entryAt(source, e.Name(), target, e.Name(), depth+1); err != nil {
				// Gone since it was listed: a tree that is in use.
				if errors.Is(err, fs.ErrNotExist) {
					if _, serr := source.Lstat(e.Name()); errors.Is(serr, fs.ErrNotExist) {
						continue
					}
				}
				return err
			}
		}
	}
	if !made {
		return nil // its own mode, owner and time stay
	}
	return t.finish(target, ".", info)
}

func (t *transfer) link(from *os.Root, name string, to *os.Root, as string) error {
	dest, err := from.Readlink(name)
	if err != nil {
		return err
	}
	if err := checkRoom(to, as); err != nil {
		return err
	}
	return replaceEntry(to, as, func(temp string) error {
		if err := to.Symlink(dest, temp); err != nil {
			return err
		}
		return to.Lchown(temp, t.owner.uid, t.owner.gid)
	})
}

func (t *transfer) file(from *os.Root, name string, to *os.Root, as string) error {
	source, info, err := openRegular(from, name, os.O_RDONLY)
	if err != nil {
		return err
	}
	defer source.Close()
	fill := func(target *os.File) error {
		_, err := io.Copy(target, &contextReader{t.ctx, source})
		if err == nil {
			err = t.finishFile(target, info)
		}
		return errors.Join(err, target.Close())
	}
	err = checkRoom(to, as)
	// What something is mounted on, such as /etc/hosts, cannot be replaced: it is written over.
	if errors.Is(err, errMounted) {
		target, _, err := openRegular(to, as, os.O_WRONLY|os.O_TRUNC)
		if err != nil {
			return err
		}
		return fill(target)
	}
	if err != nil {
		return err
	}
	return replaceEntry(to, as, func(temp string) error {
		target, err := to.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return err
		}
		return fill(target)
	})
}

// replaceEntry puts what is made under another name in place of what has its name, once it
// is whole.
func replaceEntry(dir *os.Root, name string, make func(temp string) error) error {
	temp := ".caisson-cp-" + newID()
	err := make(temp)
	if err == nil {
		err = dir.Rename(temp, name)
	}
	if err != nil {
		if gone := dir.Remove(temp); !errors.Is(gone, fs.ErrNotExist) {
			err = errors.Join(err, gone)
		}
	}
	return err
}

// contextReader ends a long copy when the command is interrupted.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (r *contextReader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.r.Read(p)
}

var errMounted = errors.New("something is mounted on it")

// mounted tells whether a name is the root of a mount. To remove it would work from
// here, and unmount it: the kernel protects only mounts of one's own namespace.
func mounted(dir *os.Root, name string) (bool, error) {
	f, err := dir.OpenFile(name, unix.O_PATH|unix.O_NOFOLLOW, 0)
	if err != nil {
		return false, err
	}
	defer f.Close()
	var st unix.Statx_t
	if err := unix.Statx(int(f.Fd()), "", unix.AT_EMPTY_PATH, 0, &st); err != nil {
		return false, os.NewSyscallError("statx", err)
	}
	return st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0, nil
}

// checkRoom makes sure that a name is free, or that of something that can be replaced: no
// directory, and nothing mounted on it.
func checkRoom(to *os.Root, as string) error {
	info, err := to.Lstat(as)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.IsDir() {
		return fmt.Errorf("%s is there and a directory: %w", as, errdefs.ErrFailedPrecondition)
	}
	busy, err := mounted(to, as)
	if err == nil && busy {
		err = fmt.Errorf("%s: %w: %w", as, errMounted, errdefs.ErrFailedPrecondition)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// openRegular opens a regular file, and nothing else even if it takes the name's
// place meanwhile: to open a device or a FIFO may do something, or never end.
func openRegular(root *os.Root, name string, flags int) (*os.File, fs.FileInfo, error) {
	f, err := root.OpenFile(name, unix.O_PATH|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, nil, fmt.Errorf("%s is no regular file any more: %w", name, errdefs.ErrFailedPrecondition)
	}
	opened, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), flags, 0)
	return opened, info, err
}

func (t *transfer) mode(info fs.FileInfo) fs.FileMode {
	mode := info.Mode().Perm()
	if t.special {
		mode |= info.Mode() & (fs.ModeSetuid | fs.ModeSetgid | fs.ModeSticky)
	}
	return mode
}

// The owner comes before the mode: a change of it takes the setuid bit away.
func (t *transfer) finish(dir *os.Root, name string, info fs.FileInfo) error {
	if err := dir.Lchown(name, t.owner.uid, t.owner.gid); err != nil {
		return err
	}
	if err := dir.Chmod(name, t.mode(info)); err != nil {
		return err
	}
	return dir.Chtimes(name, info.ModTime(), info.ModTime())
}

func (t *transfer) finishFile(f *os.File, info fs.FileInfo) error {
	if err := f.Chown(t.owner.uid, t.owner.gid); err != nil {
		return err
	}
	if err := f.Chmod(t.mode(info)); err != nil {
		return err
	}
	at := unix.NsecToTimeval(info.ModTime().UnixNano())
	return unix.Futimes(int(f.Fd()), []unix.Timeval{at, at})
}
