package namespace

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"caisson/internal/isolation"
)

// TestNamespaces: the daemon that starts a sandbox and the one that finds it again tell the
// same of it.
func TestNamespaces(t *testing.T) {
	r := newPoolRig(t)
	other := exec.Command("/bin/sleep", "1000") // has a user namespace and a network of its own
	other.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{HostID: 100000, Size: 1000}},
		GidMappings: []syscall.SysProcIDMap{{HostID: 100000, Size: 1000}},
		Pdeathsig:   syscall.SIGKILL,
	}
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = other.Process.Kill()
		_ = other.Wait() // "killed"
	}()
	ns := fmt.Sprintf("/proc/%d/ns/", other.Process.Pid)
	user, err := os.Open(ns + "user")
	if err != nil {
		t.Fatal(err)
	}
	defer user.Close()
	const ipc, uts, pid, network, users = specs.IPCNamespace, specs.UTSNamespace, specs.PIDNamespace, specs.NetworkNamespace, specs.UserNamespace
	for name, tc := range map[string]struct {
		isolation.Config
		want []specs.LinuxNamespaceType
	}{
		"none":            {isolation.Config{}, nil},
		"single":          {isolation.Config{NewIPC: true, NewUTS: true}, nil},
		"made":            {isolation.Config{Walls: true, NewIPC: true, NewUTS: true, NewPID: true}, []specs.LinuxNamespaceType{ipc, pid, uts}},
		"the host's":      {isolation.Config{Walls: true, NewUTS: true, NetNS: "/proc/self/ns/net"}, []specs.LinuxNamespaceType{uts}},
		"joined":          {isolation.Config{Walls: true, NewIPC: true, NetNS: ns + "net"}, []specs.LinuxNamespaceType{ipc, network}},
		"joined, of user": {isolation.Config{Walls: true, NewIPC: true, NetNS: ns + "net", UserNS: user}, []specs.LinuxNamespaceType{ipc, network, users}},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := tc.Config
			cfg.Name, cfg.Dir = "test/x", filepath.Join(r.dir, "x")
			if err := os.Mkdir(cfg.Dir, 0o700); err != nil {
				t.Fatal(err)
			}
			walls := New(r.program, nil)
			made, err := walls.Start(t.Context(), cfg)
			if err != nil {
				t.Fatal(err)
			}
			found, err := walls.Load(t.Context(), cfg.Dir)
			if err != nil {
				t.Fatal(err)
			}
			if got := slices.Sorted(maps.Keys(made.Namespaces())); !slices.Equal(got, tc.want) {
				t.Errorf("its own are %q, want %q", got, tc.want)
			}
			if got := found.Namespaces(); !maps.Equal(got, made.Namespaces()) {
				t.Errorf("found %v, made %v", got, made.Namespaces())
			}
			if err := errors.Join(found.Close(), made.End(t.Context()), made.Close(), os.RemoveAll(cfg.Dir)); err != nil {
				t.Error(err)
			}
		})
	}
}
