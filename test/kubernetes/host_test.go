package kubernetes

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// sysctls are those that kubelet sets.
var sysctls = []string{
	"vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops",
	"kernel/keys/root_maxkeys", "kernel/keys/root_maxbytes",
}

// directories are made by kubelet wherever its own one is, parents first.
var directories = []string{"/var/lib/kubelet", "/var/lib/kubelet/device-plugins", "/var/log/containers"}

// saveHost returns what undoes the changes that a kubelet makes to its host. It
// removes nothing of a pod: that is a leak, and found as one.
func saveHost(t *testing.T, token, dir string) (restore func()) {
	t.Helper()
	values := map[string]string{}
	for _, name := range sysctls {
		if value, err := os.ReadFile("/proc/sys/" + name); err == nil { // a kernel without it has nothing to restore
			values[name] = string(value)
		}
	}
	var missing []string
	for _, path := range directories {
		if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
			missing = append([]string{path}, missing...) // children first
		}
	}
	return func() {
		restoreSysctls(t, values)
		detach(t, filepath.Join(dir, "root"))
		removeLinks(t, dir)
		removeSockets(t)
		for _, path := range missing {
			remove(t, path)
		}
		removeCgroups(t, token)
	}
}

func restoreSysctls(t *testing.T, values map[string]string) {
	for name, value := range values {
		path := "/proc/sys/" + name
		if now, err := os.ReadFile(path); err == nil && string(now) == value {
			continue
		}
		if err := os.WriteFile(path, []byte(value), 0); err != nil {
			t.Errorf("restore: %v", err)
		}
	}
}

// detach unmounts kubelet's directory, which it bind-mounts on itself.
func detach(t *testing.T, path string) {
	err := unix.Unmount(path, unix.MNT_DETACH)
	if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		t.Errorf("unmount %s: %v", path, err)
	}
}

// removeLinks removes the links to our pods' logs that the last collection of
// kubelet did not.
func removeLinks(t *testing.T, dir string) {
	links, err := filepath.Glob("/var/log/containers/*.log")
	if err != nil {
		t.Error(err)
	}
	for _, link := range links {
		if target, err := os.Readlink(link); err == nil && strings.HasPrefix(target, dir+"/") {
			remove(t, link)
		}
	}
}

// removeSockets removes what a killed kubelet leaves of its registration
// service, unless another kubelet works there: then somebody listens.
func removeSockets(t *testing.T) {
	const socket = "/var/lib/kubelet/device-plugins/kubelet.sock"
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Error(err)
		return
	}
	defer unix.Close(fd)
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: socket}); errors.Is(err, unix.ECONNREFUSED) {
		remove(t, socket)
		remove(t, "/var/lib/kubelet/device-plugins/DEPRECATION")
	}
}

func remove(t *testing.T, path string) {
	err := os.Remove(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTEMPTY) {
		t.Errorf("restore: %v", err)
	}
}

// removeCgroups removes the cgroups of the classes of pods, which kubelet makes
// when it starts, and not those of pods.
func removeCgroups(t *testing.T, token string) {
	mounts, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup", "cgroup2"))
	if err != nil {
		t.Error(err)
	}
	for _, m := range mounts {
		for _, class := range []string{"kubepods/besteffort", "kubepods/burstable", "kubepods"} {
			err := unix.Rmdir(filepath.Join(m.Mountpoint, token, class))
			if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EBUSY) {
				t.Errorf("cgroup: %v", err)
			}
		}
	}
}
