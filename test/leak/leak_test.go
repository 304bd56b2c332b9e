package leak_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"caisson/test/leak"
)

// TestNew plants one leak of a kind at a time and looks for it. Mounts, cgroups
// and links need root.
func TestNew(t *testing.T) {
	const token = "leaktest7f3"
	dir := filepath.Join(t.TempDir(), token)
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for kind, plant := range map[string]func(t *testing.T){
		"process": func(t *testing.T) {
			cmd := exec.Command("sleep", "1000")
			cmd.Dir = dir
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
		},
		"mount": func(t *testing.T) {
			needRoot(t)
			if err := unix.Mount("tmpfs", dir, "tmpfs", 0, ""); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
		},
		"link": func(t *testing.T) {
			needRoot(t)
			if out, err := exec.Command("ip", "link", "add", token, "type", "dummy").CombinedOutput(); err != nil {
				t.Skipf("no dummy links here: %s", out)
			}
			t.Cleanup(func() { _ = exec.Command("ip", "link", "del", token).Run() })
		},
		"file": func(t *testing.T) {
			path := "/dev/shm/" + token
			if err := os.WriteFile(path, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = os.Remove(path) })
		},
	} {
		t.Run(kind, func(t *testing.T) {
			before, err := leak.Take()
			if err != nil {
				t.Fatal(err)
			}
			plant(t)
			if got := news(t, before, token); !slices.ContainsFunc(got, func(l string) bool { return strings.HasPrefix(l, kind) }) {
				t.Errorf("the planted %s is not among %q", kind, got)
			}
			if err := before.Clean(token); err != nil {
				t.Error(err)
			}
			if kind == "process" {
				return // it stays a zombie of this test until its clean-up
			}
			if got := news(t, before, token); slices.ContainsFunc(got, func(l string) bool { return strings.Contains(l, token) }) {
				t.Errorf("after Clean: %q", got)
			}
		})
	}
}

func needRoot(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
}

func news(t *testing.T, before *leak.Snapshot, token string) []string {
	t.Helper()
	got, err := before.New(token)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func TestLeft(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(dir+"/a/b", 0o700); err != nil {
		t.Fatal(err)
	}
	if got, err := leak.Left(dir); err != nil || len(got) != 0 {
		t.Errorf("empty directories count: %q, %v", got, err)
	}
	if err := os.WriteFile(dir+"/a/b/c", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := leak.Left(dir); err != nil || len(got) != 1 {
		t.Errorf("got %q, %v", got, err)
	}
	if got, err := leak.Left(dir + "/none"); err != nil || len(got) != 0 {
		t.Errorf("missing directory: %q, %v", got, err)
	}
}
