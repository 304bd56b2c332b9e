package volumes

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	corev1 "k8s.io/api/core/v1"

	"caisson/internal/manifest"
)

func TestMakeAndRemove(t *testing.T) {
	dir := t.TempDir()
	s := At(filepath.Join(dir, "store"))
	stale := filepath.Join(dir, "store", "volumes", "work", "stale")
	if err := errors.Join(os.MkdirAll(filepath.Dir(stale), 0o755), os.WriteFile(stale, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	work := manifest.Volume{Name: "work"}
	site := manifest.Volume{Name: "site", ReadOnly: true, Files: []manifest.File{{Path: "a/b", Data: []byte("x"), Mode: 0o640}}}
	if err := s.Make([]manifest.Volume{work, site}, nil); err != nil {
		t.Fatal(err)
	}
	for path, mode := range map[string]fs.FileMode{"volumes/work": 0o777, "volumes/site": 0o755, "volumes/site/a/b": 0o640, ".": 0o700} {
		info, err := os.Stat(filepath.Join(dir, "store", path))
		if err != nil || info.Mode().Perm() != mode {
			t.Errorf("%s: %v, %v", path, info.Mode(), err)
		}
	}
	if _, err := os.Stat(stale); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("what was there before: %v", err)
	}
	if source, err := s.Source(work, "", "c.0"); err != nil || source != filepath.Join(dir, "store/volumes/work") {
		t.Errorf("source %q, %v", source, err)
	}
	for range 2 {
		if err := s.Remove(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Lstat(filepath.Join(dir, "store")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after Remove: %v", err)
	}
}

func TestHostPath(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	at := func(path string, kind corev1.HostPathType) manifest.Volume {
		return manifest.Volume{Name: "v", HostPath: path, HostType: kind}
	}
	for _, v := range []manifest.Volume{
		at(dir, corev1.HostPathUnset), at(dir, corev1.HostPathDirectory), at(file, corev1.HostPathFile), at("/dev/null", corev1.HostPathCharDev),
		at(dir+"/new", corev1.HostPathDirectoryOrCreate), at(dir+"/new", corev1.HostPathFileOrCreate),
	} {
		if err := Check(v); err != nil {
			t.Error(err)
		}
	}
	for _, v := range []manifest.Volume{
		at(dir+"/none", corev1.HostPathUnset), at(file, corev1.HostPathDirectory), at(file, corev1.HostPathDirectoryOrCreate),
		at(dir, corev1.HostPathFileOrCreate), at(file, corev1.HostPathSocket), at("/dev/null", corev1.HostPathBlockDev), at(dir+"/none", corev1.HostPathFile),
	} {
		if err := Check(v); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), v.HostPath) {
			t.Errorf("%+v: %v", v, err)
		}
	}

	made := []manifest.Volume{at(dir+"/a/b/c", corev1.HostPathDirectoryOrCreate), at(dir+"/a/f", corev1.HostPathFileOrCreate), at(dir, corev1.HostPathDirectoryOrCreate)}
	for _, keep := range []string{"", dir + "/a/b/mine"} {
		s := At(filepath.Join(dir, "store"))
		if err := s.Make(made, nil); err != nil {
			t.Fatal(err)
		}
		if keep != "" {
			if err := os.WriteFile(keep, nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.Undo(); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(dir + "/a"); (err == nil) != (keep != "") {
			t.Errorf("after Undo: %v", err)
		}
	}
	if _, err := os.Stat(dir + "/a/b/mine"); err != nil {
		t.Error(err)
	}
}

// TestPartStaysInside: what a container has put into a volume leads nobody out of it.
func TestPartStaysInside(t *testing.T) {
	dir := t.TempDir()
	volume := filepath.Join(dir, "volume")
	if err := errors.Join(
		os.MkdirAll(filepath.Join(volume, "real"), 0o755), os.Mkdir(filepath.Join(dir, "secret"), 0o755),
		os.Symlink("real", filepath.Join(volume, "inside")), os.Symlink("../secret", filepath.Join(volume, "up")),
		os.Symlink(dir, filepath.Join(volume, "absolute")), os.Symlink("loop", filepath.Join(volume, "loop")),
		os.Symlink("/proc/self/root", filepath.Join(volume, "magic")),
	); err != nil {
		t.Fatal(err)
	}
	for sub, want := range map[string]string{"real": "real", "inside": "real", "new/deep": "new/deep"} {
		f, err := openPart(volume, sub, true)
		if err != nil {
			t.Errorf("%s: %v", sub, err)
			continue
		}
		got, err1 := f.Stat()
		expected, err2 := os.Stat(filepath.Join(volume, want))
		if err := errors.Join(err1, err2, f.Close()); err != nil || !os.SameFile(got, expected) {
			t.Errorf("%s: %v", sub, err)
		}
	}
	for _, sub := range []string{"up", "up/x", "absolute", "absolute/secret", "loop", "magic", "magic/etc", "inside/../../secret"} {
		if f, err := openPart(volume, sub, true); err == nil {
			t.Errorf("%s was opened: %s", sub, f.Name())
		}
	}
	if left, err := os.ReadDir(filepath.Join(dir, "secret")); err != nil || len(left) > 0 {
		t.Errorf("made outside: %v, %v", left, err)
	}
	if _, err := openPart(volume, "nothing", false); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a part that is not there: %v", err)
	}
}
