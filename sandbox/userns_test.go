package sandbox

import (
	"os"
	"path/filepath"
	"testing"

	api "caisson/api/caisson/sandbox/v1"
	"caisson/internal/stdio"
	"caisson/internal/task"
)

// The directories of sandboxes are closed to the users that a container's are
// mapped to; what it gets from there it sees all the same.
func TestMappedContainersReachTheSandboxsFiles(t *testing.T) {
	r := newRig(t)
	ids := []*api.IDMapping{{ContainerId: 0, HostId: 100000, Size: 65536}}
	r.run("sb", &api.Options{Hostname: "mapped", Namespaces: &api.Namespaces{Uids: ids, Gids: ids}})
	out := filepath.Join(r.dir, "c.out")
	bundle := r.bundle("c", "busybox cat /etc/hostname /proc/self/uid_map && echo x > /dev/shm/f && busybox touch /tmp/mine && busybox stat -c %u /tmp/mine")
	// As containerd does it: the way to the bundle is open, and the files are the mapped root's.
	for _, dir := range []string{r.dir, filepath.Dir(bundle), bundle} {
		if err := os.Chmod(dir, 0o711); err != nil {
			t.Fatal(err)
		}
	}
	err := filepath.Walk(filepath.Join(bundle, "rootfs"), func(path string, _ os.FileInfo, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(path, 100000, 100000)
	})
	if err != nil {
		t.Fatal(err)
	}
	r.start("sb", task.CreateRequest{ID: "c", Bundle: bundle, Stdio: stdio.Config{Stdout: "file://" + out, Stderr: "file://" + out}})
	exit := r.wait("sb", "c")
	if got := r.output(out); exit.Status != 0 || len(got) < 6 || got[:6] != "mapped" {
		t.Errorf("exit %+v, output %q", exit, got)
	}
}
