package oci

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// member is a sandbox with its own network, IPC and UTS namespaces.
var member = Membership{
	Namespaces: map[specs.LinuxNamespaceType]string{
		specs.NetworkNamespace: "/proc/7/ns/net",
		specs.IPCNamespace:     "/proc/7/ns/ipc",
		specs.UTSNamespace:     "/proc/7/ns/uts",
	},
	Files: []File{
		{Source: "/run/sb/hosts", Target: "/etc/hosts", FollowRoot: true},
		{Source: "/run/sb/shm", Target: "/dev/shm", Default: "tmpfs"},
	},
	DefaultCgroup: "/default/c1",
	Cgroup:        "/caisson/sb/c1",
}

func spec(namespaces ...specs.LinuxNamespace) *specs.Spec {
	return &specs.Spec{
		Process: &specs.Process{Args: []string{"true"}},
		Root:    &specs.Root{Path: "rootfs"},
		Linux:   &specs.Linux{Namespaces: namespaces},
	}
}

func private(kinds ...specs.LinuxNamespaceType) (list []specs.LinuxNamespace) {
	for _, k := range kinds {
		list = append(list, specs.LinuxNamespace{Type: k})
	}
	return list
}

func TestJoinNamespaces(t *testing.T) {
	for name, tc := range map[string]struct {
		shared map[specs.LinuxNamespaceType]string
		have   []specs.LinuxNamespace
		want   []specs.LinuxNamespace
	}{
		"private ones become the sandbox's": {
			shared: member.Namespaces,
			have:   private(specs.NetworkNamespace, specs.MountNamespace, specs.PIDNamespace),
			want: []specs.LinuxNamespace{
				{Type: specs.NetworkNamespace, Path: "/proc/7/ns/net"},
				{Type: specs.MountNamespace}, {Type: specs.PIDNamespace},
			},
		},
		"a client's own choice stays": {
			shared: member.Namespaces,
			have:   []specs.LinuxNamespace{{Type: specs.NetworkNamespace, Path: "/run/netns/mine"}},
			want:   []specs.LinuxNamespace{{Type: specs.NetworkNamespace, Path: "/run/netns/mine"}},
		},
		"what the sandbox shares with the host is left out": {
			shared: map[specs.LinuxNamespaceType]string{specs.NetworkNamespace: "", specs.PIDNamespace: ""},
			have:   private(specs.NetworkNamespace, specs.PIDNamespace, specs.MountNamespace),
			want:   private(specs.MountNamespace),
		},
		"what the client left to the host is not joined": {
			shared: member.Namespaces,
			have:   private(specs.MountNamespace),
			want:   private(specs.MountNamespace),
		},
		"a user namespace is joined unasked": {
			shared: map[specs.LinuxNamespaceType]string{specs.UserNamespace: "/proc/7/ns/user"},
			have:   private(specs.MountNamespace),
			want:   []specs.LinuxNamespace{{Type: specs.MountNamespace}, {Type: specs.UserNamespace, Path: "/proc/7/ns/user"}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := spec(tc.have...)
			Membership{Namespaces: tc.shared}.Join(s)
			if diff := cmp.Diff(tc.want, s.Linux.Namespaces); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestJoinFiles(t *testing.T) {
	s := spec()
	s.Root.Readonly = true
	s.Mounts = []specs.Mount{
		{Destination: "/dev/shm", Type: "tmpfs", Source: "shm"},
		{Destination: "/etc/hosts/", Type: "bind", Source: "/mine"},
	}
	if !member.Join(s) {
		t.Fatal("nothing changed")
	}
	want := []specs.Mount{
		{Destination: "/dev/shm", Type: "bind", Source: "/run/sb/shm", Options: []string{"rw", "rbind", "rprivate", "nosuid", "nodev", "noexec"}},
		{Destination: "/etc/hosts/", Type: "bind", Source: "/mine"},
	}
	if diff := cmp.Diff(want, s.Mounts); diff != "" {
		t.Errorf("the private /dev/shm is replaced and the client's hosts stay:\n%s", diff)
	}

	s = spec()
	s.Root.Readonly = true
	s.Mounts = []specs.Mount{{Destination: "/dev/shm", Type: "bind", Source: "/dev/shm"}}
	member.Join(s)
	want = []specs.Mount{
		{Destination: "/dev/shm", Type: "bind", Source: "/dev/shm"},
		{Destination: "/etc/hosts", Type: "bind", Source: "/run/sb/hosts", Options: []string{"ro", "rbind", "rprivate", "nosuid", "nodev", "noexec"}},
	}
	if diff := cmp.Diff(want, s.Mounts); diff != "" {
		t.Errorf("the host's /dev/shm stays and hosts is read-only like the root:\n%s", diff)
	}
}

func TestJoinCgroup(t *testing.T) {
	for have, want := range map[string]string{
		"":                       "/caisson/sb/c1",
		"/default/c1":            "/caisson/sb/c1",
		"/kubepods/pod1/c1":      "/kubepods/pod1/c1",
		"system.slice:caisson:x": "system.slice:caisson:x",
	} {
		s := spec()
		s.Linux.CgroupsPath = have
		member.Join(s)
		if s.Linux.CgroupsPath != want {
			t.Errorf("%q became %q, want %q", have, s.Linux.CgroupsPath, want)
		}
	}
}

func TestNoMembershipChangesNothing(t *testing.T) {
	s := spec(private(specs.NetworkNamespace)...)
	before, _ := json.Marshal(s)
	if (Membership{}).Join(s) {
		t.Error("said that it changed something")
	}
	if after, _ := json.Marshal(s); string(after) != string(before) {
		t.Errorf("%s became %s", before, after)
	}
}

func TestReadSpecRefusesWhatIsNone(t *testing.T) {
	for name, text := range map[string]string{
		"torn":       `{"process":`,
		"no process": `{"root":{"path":"rootfs"}}`,
		"no command": `{"process":{"args":[]},"root":{"path":"rootfs"}}`,
		"no root":    `{"process":{"args":["true"]}}`,
		"a list":     `[]`,
	} {
		bundle := t.TempDir()
		if err := os.WriteFile(filepath.Join(bundle, "config.json"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := ReadSpec(bundle); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), bundle) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := ReadSpec(t.TempDir()); !errdefs.IsInvalidArgument(err) {
		t.Errorf("no config.json: %v", err)
	}
}

func TestWriteSpecRoundTrip(t *testing.T) {
	bundle := t.TempDir()
	want := spec(private(specs.PIDNamespace)...)
	if err := WriteSpec(bundle, want); err != nil {
		t.Fatal(err)
	}
	got, err := ReadSpec(bundle)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if entries, _ := os.ReadDir(bundle); len(entries) != 1 {
		t.Errorf("left over: %v", entries)
	}
}

func FuzzReadSpec(f *testing.F) {
	f.Add([]byte(`{"process":{"args":["true"]},"root":{"path":"rootfs"},"linux":{"namespaces":[{"type":"network"}]}}`))
	f.Add([]byte(`{"process":{"args":["x"]},"root":{"path":"r"},"mounts":[{"destination":"/dev/shm","type":"tmpfs"}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		bundle := t.TempDir()
		if err := os.WriteFile(filepath.Join(bundle, "config.json"), data, 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := ReadSpec(bundle)
		if err != nil {
			return
		}
		member.Join(s)
		if member.Join(s) {
			t.Error("joining twice changes the specification twice")
		}
	})
}

func TestReadSpecOfAFIFODoesNotWait(t *testing.T) {
	bundle := t.TempDir()
	if err := unix.Mkfifo(filepath.Join(bundle, "config.json"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadSpec(bundle); !errdefs.IsInvalidArgument(err) {
		t.Errorf("%v, want invalid argument", err)
	}
}
