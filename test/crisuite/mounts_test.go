package crisuite

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/testing/protocmp"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// volume is a directory of the node with a file.
func (s *server) volume() string {
	s.t.Helper()
	dir := filepath.Join(s.dir(), "volume")
	if err := os.Mkdir(dir, 0o777); err != nil {
		s.t.Fatal(err)
	}
	write(s.t, filepath.Join(dir, "file"), "content\n")
	return dir
}

// dir is an empty directory that everybody may pass.
func (s *server) dir() string {
	s.t.Helper()
	dir, err := os.MkdirTemp(s.Host.Dir, "volumes")
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			s.t.Error(err)
		}
	})
	if err := os.Chmod(dir, 0o755); err != nil {
		s.t.Fatal(err)
	}
	return dir
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func mounts(mounts ...*runtime.Mount) func(*runtime.ContainerConfig) {
	return func(cfg *runtime.ContainerConfig) { cfg.Mounts = mounts }
}

// TestVolume: directories, files and symbolic links of the node, and what the
// status says of them.
func TestVolume(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		p := s.pod()
		dir := s.volume()
		link := dir + "-link"
		if err := os.Symlink(dir, link); err != nil {
			t.Fatal(err)
		}
		absent := dir + "-absent/deep"
		want := []*runtime.Mount{
			{HostPath: dir, ContainerPath: "/data"},
			{HostPath: dir, ContainerPath: "/data-ro", Readonly: true},
			{HostPath: dir + "/file", ContainerPath: "/one-file"},
			{HostPath: link, ContainerPath: "/linked"},
			{HostPath: absent, ContainerPath: "/made"},
			{HostPath: dir, ContainerPath: "/data/nested"},
		}
		id := p.sleeper("c", mounts(want...))
		s.expect(id, "cat /data/file /data-ro/file /one-file /linked/file /data/nested/file", strings.Repeat("content\n", 5))
		s.expect(id, "echo more >>/one-file && echo new >/linked/new && cat /data/new && tail -n 1 /data/file", "new\nmore\n")
		s.refused(id, "Read-only file system", "touch", "/data-ro/a")
		s.expect(id, "ls /made && echo there >/made/a", "")
		if content, err := os.ReadFile(filepath.Join(absent, "a")); err != nil || string(content) != "there\n" {
			t.Errorf("what was not there on the node: %q, %v", content, err)
		}
		if diff := cmp.Diff(want, s.status(id).Mounts, protocmp.Transform()); diff != "" {
			t.Errorf("mounts of the status (-want +got):\n%s", diff)
		}
	})
}

// TestVolumeRefused: files that cannot be where they are to be.
func TestVolumeRefused(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		p := s.pod()
		dir := s.volume()
		for name, mount := range map[string]*runtime.Mount{
			"below a file":      {HostPath: filepath.Join(dir, "file", "below"), ContainerPath: "/data"},
			"no container path": {HostPath: dir},
			"onto a file":       {HostPath: dir, ContainerPath: "/etc/marked"},
		} {
			if id, err := p.start(p.config(name, "exec sleep 1000", mounts(mount))); err == nil {
				t.Errorf("%s: container %s runs", name, id)
			}
		}
	})
}

// mountpoint makes dir a mount with a propagation, until the spec's end.
func mountpoint(t *testing.T, dir, fstype string, flags uintptr) {
	t.Helper()
	source := dir
	if fstype != "" {
		source = fstype
	}
	if err := unix.Mount(source, dir, fstype, flags, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount %s: %v", dir, err)
		}
	})
}

// TestPropagation: mounts that are made on one side, and are there on the other
// or not.
func TestPropagation(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		p := s.pod(privilegedPod)
		for name, c := range map[string]struct {
			propagation runtime.MountPropagation
			in, out     bool // from the node, to the node
		}{
			"private":           {runtime.MountPropagation_PROPAGATION_PRIVATE, false, false},
			"host to container": {runtime.MountPropagation_PROPAGATION_HOST_TO_CONTAINER, true, false},
			"bidirectional":     {runtime.MountPropagation_PROPAGATION_BIDIRECTIONAL, true, true},
		} {
			p.run(name, func(t *testing.T, p *pod) {
				dir := p.s.volume()
				mountpoint(t, dir, "", unix.MS_BIND)
				if err := unix.Mount("", dir, "", unix.MS_SHARED, ""); err != nil {
					t.Fatal(err)
				}
				for _, sub := range []string{"in", "out"} {
					if err := os.Mkdir(filepath.Join(dir, sub), 0o755); err != nil {
						t.Fatal(err)
					}
				}
				mount := &runtime.Mount{HostPath: dir, ContainerPath: "/data", Propagation: c.propagation}
				id := p.sleeper(name, mounts(mount), security(func(sc *runtime.LinuxContainerSecurityContext) { sc.Privileged = true }))
				mountpoint(t, filepath.Join(dir, "in"), "tmpfs", 0)
				write(t, filepath.Join(dir, "in", "from-node"), "")
				if came := p.s.exec(id, "test", "-e", "/data/in/from-node").ExitCode == 0; came != c.in {
					t.Errorf("a mount of the node is in the container: %t", came)
				}
				p.s.Shell(id, "mount -t tmpfs tmpfs /data/out && touch /data/out/from-container")
				_, err := os.Stat(filepath.Join(dir, "out", "from-container"))
				if came := err == nil; came != c.out {
					t.Errorf("a mount of the container is on the node: %t (%v)", came, err)
				}
				p.s.Shell(id, "umount /data/out")
				if got := p.s.status(id).Mounts; len(got) != 1 || got[0].Propagation != c.propagation {
					t.Errorf("mounts of the status: %v", got)
				}
			})
		}
	})
}

// TestPropagationRefused: a mount that is private on the node propagates nothing.
func TestPropagationRefused(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		p := s.pod(privilegedPod)
		dir := s.volume()
		mountpoint(t, dir, "", unix.MS_BIND)
		if err := unix.Mount("", dir, "", unix.MS_PRIVATE, ""); err != nil {
			t.Fatal(err)
		}
		for _, propagation := range []runtime.MountPropagation{runtime.MountPropagation_PROPAGATION_HOST_TO_CONTAINER, runtime.MountPropagation_PROPAGATION_BIDIRECTIONAL} {
			mount := &runtime.Mount{HostPath: dir, ContainerPath: "/data", Propagation: propagation}
			if id, err := p.start(p.config(propagation.String(), "exec sleep 1000", mounts(mount))); err == nil {
				t.Errorf("%s: container %s runs", propagation, id)
			}
		}
	})
}

// TestReadOnlyMounts: below a read-only mount another can be written, unless it
// is read-only all the way down.
func TestReadOnlyMounts(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		p := s.pod()
		dir := s.volume()
		below := filepath.Join(dir, "below")
		if err := os.Mkdir(below, 0o777); err != nil {
			t.Fatal(err)
		}
		mountpoint(t, below, "tmpfs", 0)
		flat := p.sleeper("flat", mounts(&runtime.Mount{HostPath: dir, ContainerPath: "/data", Readonly: true}))
		s.refused(flat, "Read-only file system", "touch", "/data/a")
		s.expect(flat, "touch /data/below/a && echo written", "written\n")
		if !s.features().GetRecursiveReadOnlyMounts() {
			s.lacks("the handler %s has no recursive read-only mounts: its OCI runtime lacks them, runc has them since 1.1", s.Handler)
		}
		recursive := runtime.Mount{HostPath: dir, ContainerPath: "/data", Readonly: true, RecursiveReadOnly: true}
		deep := p.sleeper("deep", mounts(&recursive))
		for _, path := range []string{"/data/a", "/data/below/b"} {
			s.refused(deep, "Read-only file system", "touch", path)
		}
		if got := s.status(deep).Mounts; len(got) != 1 || !got[0].RecursiveReadOnly {
			t.Errorf("mounts of the status: %v", got)
		}
		for name, mount := range map[string]*runtime.Mount{
			"writable":      {HostPath: dir, ContainerPath: "/data", RecursiveReadOnly: true},
			"propagating":   {HostPath: dir, ContainerPath: "/data", Readonly: true, RecursiveReadOnly: true, Propagation: runtime.MountPropagation_PROPAGATION_HOST_TO_CONTAINER},
			"bidirectional": {HostPath: dir, ContainerPath: "/data", Readonly: true, RecursiveReadOnly: true, Propagation: runtime.MountPropagation_PROPAGATION_BIDIRECTIONAL},
		} {
			if id, err := p.start(p.config(name, "exec sleep 1000", mounts(mount))); err == nil {
				t.Errorf("%s: container %s runs", name, id)
			}
		}
	})
}

// TestDevices: a device of the node under another name, with what may be done
// to it; others are out of reach.
func TestDevices(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		p := s.pod(privilegedPod)
		id := p.sleeper("c", func(cfg *runtime.ContainerConfig) {
			cfg.Devices = []*runtime.Device{
				{HostPath: "/dev/zero", ContainerPath: "/dev/of-the-pod", Permissions: "rw"},
				{HostPath: "/dev/loop-control", ContainerPath: "/dev/reading", Permissions: "r"},
			}
		})
		s.expect(id, "head -c 4 /dev/of-the-pod | wc -c; stat -c %t:%T /dev/of-the-pod", "4\n1:5\n")
		s.expect(id, ": </dev/reading && echo readable", "readable\n")
		s.refused(id, "not permitted", "sh", "-c", ": >/dev/reading")
		s.expect(id, "mknod /tmp/unasked b 7 0; echo made", "made\n")
		s.refused(id, "not permitted", "head", "-c", "1", "/tmp/unasked")
		if id, err := p.start(p.config("absent", "exec sleep 1000", func(cfg *runtime.ContainerConfig) {
			cfg.Devices = []*runtime.Device{{HostPath: "/dev/absent", ContainerPath: "/dev/a", Permissions: "rwm"}}
		})); err == nil {
			t.Errorf("container %s runs with a device that is not there", id)
		}
	})
}
