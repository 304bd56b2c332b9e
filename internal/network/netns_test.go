package network

import (
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

func TestUserNamespace(t *testing.T) {
	h := newHost(t)
	maps := []specs.LinuxIDMapping{{ContainerID: 0, HostID: 100000, Size: 1000}, {ContainerID: 1000, HostID: 200000, Size: 1}}
	h.configure(t)
	for _, mode := range []Mode{None, CNI} {
		req := Request{ID: "default/a", Name: "testuser", Mode: mode, UIDs: maps, GIDs: maps}
		res, err := h.Setup(t.Context(), req)
		if err != nil {
			t.Fatal(err)
		}
		owner, err := Owner(res.NetNSPath)
		if err != nil {
			t.Fatal(err)
		}
		if inode(t, owner.Name(), int(owner.Fd())) == inode(t, "/proc/self/ns/user", -1) {
			t.Error("the network namespace is owned by the host's user namespace")
		}
		owner.Close()
		listenIn(t, res.NetNSPath, "127.0.0.1:80")
		if mode == CNI {
			listenIn(t, res.NetNSPath, res.Addresses[0]+":80")
			dial(t, res.Addresses[0]+":80")
		}
		if err := h.Teardown(t.Context(), req); err != nil {
			t.Error(err)
		}
	}
	f, err := NewUserNS(maps, maps)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	// Entering it needs a process with one thread.
	out, err := insideUserNS(f, "cat", "/proc/self/uid_map")
	if err != nil || !slices.Equal(strings.Fields(out), []string{"0", "100000", "1000", "1000", "200000", "1"}) {
		t.Errorf("uid_map %q, %v", out, err)
	}
	overlapping := []specs.LinuxIDMapping{{HostID: 1, Size: 10}, {HostID: 5, Size: 10}}
	if _, err := NewUserNS(overlapping, overlapping); !errdefs.IsInvalidArgument(err) {
		t.Errorf("overlapping mappings: %v", err)
	}
	if _, err := Owner("/dev/null"); !errdefs.IsInvalidArgument(err) {
		t.Errorf("owner of a file that is no namespace: %v", err)
	}
	if _, err := Owner("/no/such"); !errdefs.IsNotFound(err) {
		t.Errorf("owner of a file that is not there: %v", err)
	}
}

func insideUserNS(f *os.File, command ...string) (string, error) {
	cmd := exec.Command("nsenter", append([]string{"--user=/proc/self/fd/3", "--"}, command...)...)
	cmd.ExtraFiles = []*os.File{f}
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func inode(t *testing.T, path string, fd int) uint64 {
	t.Helper()
	var st unix.Stat_t
	err := unix.Fstat(fd, &st)
	if fd < 0 {
		err = unix.Stat(path, &st)
	}
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return st.Ino
}
