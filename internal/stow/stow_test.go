package stow

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"caisson/internal/monitor"
)

// These tests mount, and run a real monitor: they need root.
func TestMain(m *testing.M) {
	if os.Getuid() != 0 {
		fmt.Fprintln(os.Stderr, "stow tests: need root, nothing was tested")
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// rig is a monitor, and a tmpfs with another one in it.
type rig struct {
	*testing.T
	conn *monitor.Conn
	path string
}

func newRig(t *testing.T) *rig {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "d")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	program, err := monitor.Install(filepath.Join(dir, "libexec"))
	if err != nil {
		t.Fatal(err)
	}
	conn, err := monitor.Start(t.Context(), monitor.Config{Binary: program, Dir: dir, Name: "stow"})
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{t, conn, filepath.Join(dir, "files")}
	t.Cleanup(func() {
		if conn := r.conn; conn != nil {
			if err := errors.Join(conn.End(context.Background(), true), conn.Close()); err != nil {
				t.Error(err)
			}
		}
		for unix.Unmount(r.path, unix.MNT_DETACH) == nil {
			t.Errorf("%s was still mounted", r.path)
		}
	})
	for _, path := range []string{r.path, filepath.Join(r.path, "sub")} {
		if err := errors.Join(os.Mkdir(path, 0o700), unix.Mount("stow", path, "tmpfs", 0, "size=64k")); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(path, "name"), []byte(filepath.Base(path)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return r
}

func (r *rig) away() { r.must(Away(r.Context(), r.conn, "/files", r.path)) }
func (r *rig) back() { r.must(Back(r.Context(), r.conn, "/files", r.path)) }

func (r *rig) must(err error) {
	r.Helper()
	if err != nil {
		r.Fatal(err)
	}
}

// shows fails unless both file systems are at the path, or none.
func (r *rig) shows(mounted bool) {
	r.Helper()
	for _, path := range []string{r.path, filepath.Join(r.path, "sub")} {
		if is, err := isMount(path); err != nil || is != mounted {
			r.Errorf("%s is a mount: %v, %v; want %v", path, is, err, mounted)
		}
		name, err := os.ReadFile(filepath.Join(path, "name"))
		if mounted && string(name) != filepath.Base(path) || !mounted && !errors.Is(err, os.ErrNotExist) {
			r.Errorf("%s: %q, %v", path, name, err)
		}
	}
}

func TestAwayAndBack(t *testing.T) {
	r := newRig(t)
	for range 3 {
		r.away()
		r.shows(false)
		r.away()
		r.back()
		r.shows(true)
		r.back()
	}
	r.away()
	if kept, err := r.conn.Kept(t.Context()); err != nil || len(kept) != 1 {
		t.Errorf("kept: %q, %v", kept, err)
	}
}

// TestUnfinished: the daemon was killed before it unmounted what the monitor keeps.
func TestUnfinished(t *testing.T) {
	r := newRig(t)
	tree, err := unix.OpenTree(unix.AT_FDCWD, r.path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
	r.must(err)
	f := os.NewFile(uintptr(tree), r.path)
	r.must(errors.Join(r.conn.Keep(t.Context(), "/files", f), f.Close()))
	r.shows(true)
	r.back()
	r.shows(true)
	r.away()
	r.shows(false)
	r.back()
	r.shows(true)
	r.away()
}

func TestForget(t *testing.T) {
	r := newRig(t)
	r.must(Forget(t.Context(), r.conn, "/files"))
	file, err := os.Open(r.path)
	r.must(err)
	defer file.Close()
	r.away()
	r.must(Forget(t.Context(), r.conn, "/files"))
	r.must(Forget(t.Context(), r.conn, "/files"))
	if err := Back(t.Context(), r.conn, "/files", r.path); !errdefs.IsNotFound(err) {
		t.Errorf("back after it was forgotten: %v", err)
	}
	r.shows(false)
}

// TestKeeperGone: what cannot be kept stays where it is.
func TestKeeperGone(t *testing.T) {
	r := newRig(t)
	r.must(errors.Join(r.conn.End(t.Context(), true), r.conn.Close()))
	if err := Away(t.Context(), r.conn, "/files", r.path); !errdefs.IsUnavailable(err) {
		t.Errorf("away without a monitor: %v", err)
	}
	r.shows(true)
	r.conn = nil
	r.must(unix.Unmount(filepath.Join(r.path, "sub"), 0))
	r.must(unix.Unmount(r.path, 0))
}

func TestNothingMounted(t *testing.T) {
	for _, path := range []string{t.TempDir(), filepath.Join(t.TempDir(), "none")} {
		if err := Away(t.Context(), nil, "x", path); err != nil {
			t.Error(err)
		}
	}
}
