package integration

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"caisson/test/daemon"
	"caisson/test/harness"
)

func TestCLICopy(t *testing.T) {
	h := harness.Start(t, daemon.Options{})
	defer h.Caisson("rm", "-f", "web")
	volume, secret, work := t.TempDir(), filepath.Join(t.TempDir(), "secret"), t.TempDir()
	write := func(path, text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	read := func(path string) string {
		t.Helper()
		blob, err := os.ReadFile(path)
		if err != nil {
			t.Error(err)
		}
		return string(blob)
	}
	write(secret, "of the host")
	write(filepath.Join(work, "a"), "from the host\n")
	h.Caisson("run", "-d", "--name", "web", "-v", volume+":/vol", harness.Image, "sh", "-c",
		"mkdir /d; echo inside >/d/f; ln -s /vol /v; ln -s "+filepath.Dir(secret)+" /out; ln -s "+strings.Repeat("../", 20)+secret[1:]+" /file; mkfifo /d/fifo; touch /ready; sleep 1000")
	h.Caisson("exec", "web", "sh", "-c", "until test -e /ready; do usleep 20000; done")

	h.Caisson("cp", filepath.Join(work, "a"), "web:/d/copied")
	if out := h.Caisson("exec", "web", "cat", "/d/copied"); out != "from the host\n" {
		t.Errorf("into the container: %q", out)
	}
	// A volume, through a link of the container's.
	h.Caisson("cp", filepath.Join(work, "a"), "web:/v")
	if got := read(filepath.Join(volume, "a")); got != "from the host\n" {
		t.Errorf("into a volume: %q", got)
	}
	if res := h.TryCaisson("cp", "web:/d", filepath.Join(work, "d")); res.Code != 0 || !strings.Contains(res.Stderr, `"fifo"`) {
		t.Errorf("out of the container: %+v", res)
	}
	if got := read(filepath.Join(work, "d/f")); got != "inside\n" {
		t.Errorf("out of the container: %q", got)
	}
	// What is mounted on a file stays mounted.
	h.Caisson("cp", filepath.Join(work, "a"), "web:/etc/hosts")
	if out := h.Caisson("exec", "web", "sh", "-c", "cat /etc/hosts; grep -c ' /etc/hosts ' /proc/mounts"); out != "from the host\n1\n" {
		t.Errorf("over /etc/hosts: %q", out)
	}
	for _, args := range [][]string{
		{"-L", "web:/file", work}, {"-L", "web:/out/secret", work}, {"web:/out/secret", work},
		{filepath.Join(work, "a"), "web:/out/x"}, {filepath.Join(work, "a"), "web:/file"},
		{"web:/proc/1/root/d/f", work}, {"web:/proc/self/root/d/f", work},
		{"web:/nope", work}, {"nowhere:/d", work},
	} {
		if res := h.TryCaisson(append([]string{"cp"}, args...)...); res.Code != 1 || res.Stderr == "" {
			t.Errorf("cp %s: %+v", strings.Join(args, " "), res)
		}
	}
	if got := read(secret); got != "of the host" {
		t.Errorf("the host's file: %q", got)
	}
	if _, err := os.Lstat(filepath.Join(work, "secret")); err == nil {
		t.Error("a file of the host came out of the container")
	}

	h.Caisson("kill", "web")
	h.Caisson("wait", "web")
	h.Caisson("cp", "web:/d/f", filepath.Join(work, "later"))
	if got := read(filepath.Join(work, "later")); got != "inside\n" {
		t.Errorf("out of a container that ended: %q", got)
	}
	if mounts := read("/proc/self/mounts"); strings.Contains(mounts, "containerd-mount") {
		t.Errorf("a mount is left:\n%s", mounts)
	}
}
