package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

func (a *app) copyCommand() *cobra.Command {
	var follow bool
	cmd := &cobra.Command{
		Use:   "cp CONTAINER:PATH HOSTPATH | cp HOSTPATH CONTAINER:PATH",
		Short: "Copy files out of a container, or into it",
		Long: "Copy a file or a directory between a container, running or not, and this host. Into a directory that\n" +
			"is there it goes under its own name, or only its content if the source ends with /. ; otherwise\n" +
			"the destination is its new name. Host paths with a colon begin with / or . . Copies belong to root\n" +
			"of where they are; devices, sockets and FIFOs are left out, and said so.",
		Example: "  caisson cp web:/var/log/app.log .\n  caisson cp ./site/. web:/srv/www",
		Args:    exactly(2, "a source and a destination"),
		RunE: func(cmd *cobra.Command, args []string) error {
			from, to := parsePlace(args[0]), parsePlace(args[1])
			switch {
			case from.container == "" && to.container == "":
				return advise(errdefs.ErrInvalidArgument, "neither %q nor %q is in a container: write it like web:/etc/hosts", args[0], args[1])
			case from.container != "" && to.container != "":
				return advise(errdefs.ErrInvalidArgument, "both %q and %q are in containers: copy to the host first", args[0], args[1])
			}
			for i, p := range []place{from, to} {
				if args[i] == "-" {
					return advise(errdefs.ErrNotImplemented, "a tar is no side of a copy: use `caisson exec -i %s tar` with -c or -x", from.container+to.container)
				}
				if p.path == "" {
					return advise(errdefs.ErrInvalidArgument, "%q has no path: write it like web:/etc/hosts", args[i])
				}
			}
			if id := from.container + to.container; checkID("container", id) != nil {
				return checkID("container", id)
			}
			return a.copy(cmd.Context(), from, to, follow)
		},
	}
	cmd.ValidArgsFunction = a.completeCopy
	cmd.Flags().BoolVarP(&follow, "follow-link", "L", false, "copy what the source, a symbolic link, leads to")
	return cmd
}

// place is one side of a copy.
type place struct {
	container string // "" for this host
	path      string
}

func (p place) String() string {
	if p.container == "" {
		return p.path
	}
	return p.container + ":" + p.path
}

// parsePlace reads CONTAINER:PATH. What begins with / or . is of this host, whatever
// colons are in it.
func parsePlace(s string) place {
	container, path, ok := strings.Cut(s, ":")
	if !ok || strings.HasPrefix(s, "/") || strings.HasPrefix(s, ".") || strings.Contains(container, "/") {
		return place{path: s}
	}
	return place{container, path}
}

func (a *app) copy(ctx context.Context, from, to place, follow bool) error {
	ctx, c, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	return c.withRoot(ctx, from.container+to.container, func(ctx context.Context, root *os.File, owner ids) error {
		host, err := os.OpenFile("/", unix.O_PATH|unix.O_DIRECTORY, 0)
		if err != nil {
			return err
		}
		defer host.Close()
		side := func(p place) (*os.File, string, error) {
			if p.container != "" {
				return root, p.path, nil
			}
			if filepath.IsAbs(p.path) {
				return host, p.path, nil
			}
			cwd, err := a.sys.Getwd()
			return host, cwd + "/" + p.path, err // not cleaned: a trailing / and /. mean something
		}
		fromRoot, fromPath, err := side(from)
		if err != nil {
			return err
		}
		toRoot, toPath, err := side(to)
		if err != nil {
			return err
		}
		source, err := openSource(fromRoot, fromPath, follow)
		if err != nil {
			return placeError(from, err)
		}
		defer source.close()
		t := transfer{ctx: ctx, warn: func(text string) { a.warn(errors.New(text)) }}
		if to.container != "" {
			t.owner, t.special = owner, true
		}
		target, err := openTarget(toRoot, toPath, source)
		if err != nil {
			return placeError(to, err)
		}
		defer target.close()
		if err := t.copy(source, target); err != nil {
			return fmt.Errorf("copy %s to %s: %w", from, to, err)
		}
		return nil
	})
}

func placeError(p place, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return advise(errdefs.ErrNotFound, "%s: there is no such file or directory", p)
	}
	return fmt.Errorf("%s: %w", p, err)
}

// ids own what is made in a container.
type ids struct{ uid, gid int }

// withRoot opens the root directory of a container: of one that runs, with all that is
// mounted in it, as its processes see it; of another, its root filesystem.
func (c *client) withRoot(ctx context.Context, id string, do func(context.Context, *os.File, ids) error) error {
	ctr, err := c.load(ctx, id)
	if err != nil {
		return err
	}
	spec, err := ctr.Spec(ctx)
	if err != nil {
		return fmt.Errorf("container %q: specification: %w", id, err)
	}
	owner := rootOf(spec)
	task, st, err := taskOf(ctx, ctr)
	if err != nil {
		return err
	}
	if task == nil || st.Status == containerd.Stopped {
		return c.withSnapshot(ctx, ctr, owner, do)
	}
	root, err := os.OpenFile(fmt.Sprintf("/proc/%d/root", task.Pid()), unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return fmt.Errorf("container %q: root directory: %w", id, err)
	}
	defer root.Close()
	// The number is that of its process only as long as that has not ended.
	if st, err = task.Status(ctx); err != nil || st.Status == containerd.Stopped {
		return advise(errdefs.ErrUnavailable, "container %q has just ended: try again", id)
	}
	return do(ctx, root, owner)
}

func (c *client) withSnapshot(ctx context.Context, ctr containerd.Container, owner ids, do func(context.Context, *os.File, ids) error) error {
	record, err := ctr.Info(ctx)
	if err != nil {
		return fmt.Errorf("container %q: %w", ctr.ID(), err)
	}
	if record.SnapshotKey == "" {
		return advise(errdefs.ErrFailedPrecondition, "container %q does not run, and has no root filesystem that containerd keeps", ctr.ID())
	}
	mounts, err := c.SnapshotService(record.Snapshotter).Mounts(ctx, record.SnapshotKey)
	if err != nil {
		return fmt.Errorf("container %q: root filesystem: %w", ctr.ID(), err)
	}
	return mount.WithTempMount(ctx, mounts, func(dir string) error {
		root, err := os.OpenFile(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
		if err != nil {
			return err
		}
		defer root.Close()
		return do(ctx, root, owner)
	})
}

// rootOf is who root of a container is on this host.
func rootOf(spec *specs.Spec) ids {
	var owner ids
	if spec == nil || spec.Linux == nil {
		return owner
	}
	for _, m := range spec.Linux.UIDMappings {
		if m.ContainerID == 0 {
			owner.uid = int(m.HostID)
		}
	}
	for _, m := range spec.Linux.GIDMappings {
		if m.ContainerID == 0 {
			owner.gid = int(m.HostID)
		}
	}
	return owner
}

// copyEnd is a directory and a name in it, "." for the directory itself.
type copyEnd struct {
	dir  *os.Root
	name string
	info fs.FileInfo // nil if there is nothing of the name
}

func (e copyEnd) close() { e.dir.Close() }

// openDir opens a directory of a tree that may be hostile: the kernel resolves its
// path as if root were the root directory, symbolic links and .. included.
func openDir(root *os.File, name string) (*os.Root, error) {
	// The kernel gives up, for the caller to try again, when something above moves.
	const tries = 16
	var fd int
	var err error
	for range tries {
		fd, err = unix.Openat2(int(root.Fd()), name, &unix.OpenHow{
			Flags:   unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC,
			Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
		})
		if err != unix.EAGAIN && err != unix.EINTR {
			break
		}
	}
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	// A Root goes nowhere but below its directory.
	return os.OpenRoot(fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
}

// splitLast takes the last element off a path. Unlike path.Split it leaves .. to the
// kernel: what is above a symbolic link is not what its path says.
func splitLast(p string) (dir, base string) {
	i := strings.LastIndexByte(p, '/')
	if i < 0 {
		return ".", p
	}
	return p[:i+1], p[i+1:]
}

// openEnd finds the directory that a path's last element is in.
func openEnd(root *os.File, p string) (copyEnd, error) {
	above, base := splitLast(p)
	if base == "" || base == "." || base == ".." {
		above, base = p, "."
	}
	dir, err := openDir(root, above)
	if err != nil {
		return copyEnd{}, err
	}
	end := copyEnd{dir: dir, name: base}
	end.info, err = dir.Lstat(base)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		dir.Close()
		return copyEnd{}, err
	}
	return end, nil
}

// followEnd does what openEnd does for what a symbolic link leads to.
func followEnd(root *os.File, p string) (copyEnd, error) {
	const most = 40 // as the kernel has it
	for range most {
		end, err := openEnd(root, p)
		if err != nil || end.info == nil || end.info.Mode()&fs.ModeSymlink == 0 {
			return end, err
		}
		to, err := end.dir.Readlink(end.name)
		end.close()
		if err != nil {
			return copyEnd{}, err
		}
		if !path.IsAbs(to) {
			above, _ := splitLast(p)
			to = above + "/" + to
		}
		p = to
	}
	return copyEnd{}, &fs.PathError{Op: "open", Path: p, Err: unix.ELOOP}
}

// copySource is what is copied, and the name it has if it goes into a directory.
type copySource struct {
	copyEnd
	base string // "" to copy only the content of a directory
}

func openSource(root *os.File, p string, follow bool) (copySource, error) {
	open := openEnd
	if follow {
		open = followEnd
	}
	end, err := open(root, p)
	if err != nil {
		return copySource{}, err
	}
	if end.info == nil {
		end.close()
		return copySource{}, fs.ErrNotExist
	}
	s := copySource{copyEnd: end, base: path.Base(path.Clean("/" + p))}
	if s.base == "/" || path.Base(p) == "." && !strings.HasSuffix(p, "/") {
		s.base = ""
	}
	return s, nil
}

// openTarget says where a source goes, as `docker cp` has it.
func openTarget(root *os.File, p string, s copySource) (copyEnd, error) {
	end, err := followEnd(root, p)
	if err != nil {
		return end, err
	}
	switch {
	case end.info == nil:
		return end, nil
	case !end.info.IsDir():
		if s.info.IsDir() {
			end.close()
			return copyEnd{}, advise(errdefs.ErrInvalidArgument, "%s is not a directory, and the source is one: name another destination", p)
		}
		return end, nil
	case s.base == "" && s.info.IsDir():
		return end, nil
	}
	inside, err := end.dir.OpenRoot(end.name)
	end.close()
	if err != nil {
		return copyEnd{}, err
	}
	end = copyEnd{dir: inside, name: s.base}
	if end.info, err = inside.Lstat(s.base); err != nil && !errors.Is(err, fs.ErrNotExist) {
		inside.Close()
		return copyEnd{}, err
	}
	return end, nil
}
