package crisuite

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// The users of the node that a pod's users are.
const (
	firstUser = 100000
	userCount = 65536
)

func mapping(container, host, length uint32) []*runtime.IDMapping {
	return []*runtime.IDMapping{{ContainerId: container, HostId: host, Length: length}}
}

// userNamespace gives a pod a user namespace of its own.
func userNamespace(uids, gids []*runtime.IDMapping) func(*runtime.PodSandboxConfig) {
	return namespaces(func(o *runtime.NamespaceOption) {
		o.UsernsOptions = &runtime.UserNamespace{Mode: runtime.NamespaceMode_POD, Uids: uids, Gids: gids}
	})
}

// needUserNamespaces leaves the spec out on servers that say they have none.
func (s *server) needUserNamespaces() {
	s.t.Helper()
	if !s.features().GetUserNamespaces() {
		s.lacks("the handler %s has no user namespaces: containerd wants id-mapped mounts, which runc has since 1.2, and %s has not; "+
			"CAISSON_TEST_RUNTIME names another", s.Handler, ociRuntime(s.t))
	}
}

// needMappedMounts leaves the spec out with OCI runtimes without them.
func (s *server) needMappedMounts() {
	s.t.Helper()
	s.needUserNamespaces()
	name := ociRuntime(s.t)
	output, err := exec.Command(strings.Fields(name)[0], "features").Output()
	var features struct {
		Linux struct {
			MountExtensions struct{ IDMap struct{ Enabled bool } }
		}
	}
	if err != nil {
		s.lacks("%s cannot say that it has id-mapped mounts: %v", name, err)
	}
	if err := json.Unmarshal(output, &features); err != nil {
		s.t.Fatal(err)
	}
	if !features.Linux.MountExtensions.IDMap.Enabled {
		s.lacks("%s has no id-mapped mounts, which runc has since 1.2; CAISSON_TEST_RUNTIME names another", name)
	}
}

// ociRuntime is the name of the OCI runtime of all servers, and its version.
func ociRuntime(t *testing.T) string {
	t.Helper()
	name := os.Getenv("CAISSON_TEST_RUNTIME")
	if name == "" {
		name = "runc"
	}
	version, err := exec.Command(name, "--version").Output()
	if err != nil {
		t.Fatal(err)
	}
	first, _, _ := strings.Cut(string(version), "\n")
	return name + " (" + first + ")"
}

// TestUserNamespace: root in the pod is nobody on the node, and owns its files.
func TestUserNamespace(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		s.needUserNamespaces()
		ids := mapping(0, firstUser, userCount)
		p := s.pod(userNamespace(ids, ids), func(cfg *runtime.PodSandboxConfig) {
			cfg.Linux.Sysctls = map[string]string{"net.core.somaxconn": "77"}
		})
		a, b := p.sleeper("a"), p.sleeper("b", security(func(c *runtime.LinuxContainerSecurityContext) {
			c.RunAsUser, c.RunAsGroup = value(1000), value(1000)
		}))
		const line = `^\s*0\s+100000\s+65536\n$`
		s.matches("uid_map", s.Shell(a, "cat /proc/self/uid_map"), line)
		s.matches("gid_map", s.Shell(a, "cat /proc/self/gid_map"), line)
		s.matches("user of the first process", s.procField(a, "Uid"), `^100000\s100000\s`)
		s.matches("user of the other", s.procField(b, "Uid"), `^101000\s101000\s`)
		if s.namespaceOf(a, "user") == s.namespace("self", "user") || s.namespaceOf(a, "user") != s.namespaceOf(b, "user") {
			t.Error("the pod's user namespace is the node's, or not the same for both containers")
		}
		s.expect(a, "stat -c '%u %g' /etc/marked /etc/hosts /etc/hostname /etc/resolv.conf; id -u", strings.Repeat("0 0\n", 4)+"0\n")
		s.expect(a, "echo 192.0.2.1 added >>/etc/hosts && tail -n 1 /etc/hosts; touch /dev/shm/a", "192.0.2.1 added\n")
		// The network namespace belongs to the user namespace.
		s.expect(a, "cat /proc/sys/net/core/somaxconn; echo a >/tmp/a && chown 1000 /tmp/a && stat -c %u /tmp/a", "77\n1000\n")
		s.refused(b, "Permission denied", "touch", "/root/a")
		resp, err := s.PodSandboxStatus(s.Host.Context(time.Minute), &runtime.PodSandboxStatusRequest{PodSandboxId: p.id})
		if got := resp.GetStatus().GetLinux().GetNamespaces().GetOptions().GetUsernsOptions(); err != nil || got.GetMode() != runtime.NamespaceMode_POD {
			t.Errorf("PodSandboxStatus: %v, %v", got, err)
		}
	})
}

// TestUserNamespaceVolume: what lies on the node belongs to the pod's root as it
// does to the node's, if the mount maps its users.
func TestUserNamespaceVolume(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		s.needMappedMounts()
		ids := mapping(0, firstUser, userCount)
		p := s.pod(userNamespace(ids, ids))
		dir := s.volume()
		id := p.sleeper("c", func(cfg *runtime.ContainerConfig) {
			cfg.Mounts = []*runtime.Mount{{HostPath: dir, ContainerPath: "/data", UidMappings: ids, GidMappings: ids}}
		})
		s.expect(id, "stat -c '%u %g' /data/file && echo b >/data/mine && chown 5:6 /data/mine && cat /data/file", "0 0\ncontent\n")
		var out strings.Builder
		stat := exec.Command("stat", "-c", "%u %g", filepath.Join(dir, "mine"))
		stat.Stdout = &out
		if err := stat.Run(); err != nil || out.String() != "5 6\n" {
			t.Errorf("on the node: %q, %v", out.String(), err)
		}
	})
}

// TestUserNamespaceOfNode: a pod that is told to share the node's.
func TestUserNamespaceOfNode(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		p := s.pod(namespaces(func(o *runtime.NamespaceOption) {
			o.UsernsOptions = &runtime.UserNamespace{Mode: runtime.NamespaceMode_NODE}
		}))
		if id := p.sleeper("c"); s.namespaceOf(id, "user") != s.namespace("self", "user") {
			t.Error("the container has a user namespace of its own")
		}
	})
}

// TestUserNamespaceRefused: mappings that cannot be, and modes that mean nothing.
func TestUserNamespaceRefused(t *testing.T) {
	good := mapping(0, firstUser, userCount)
	own := func(uids, gids []*runtime.IDMapping) *runtime.UserNamespace {
		return &runtime.UserNamespace{Mode: runtime.NamespaceMode_POD, Uids: uids, Gids: gids}
	}
	two := append(mapping(0, firstUser, 1000), mapping(1000, 500000, 1000)...)
	each(t, func(t *testing.T, s *server) {
		for name, options := range map[string]*runtime.UserNamespace{
			"two mappings":      own(two, two),
			"root not mapped":   own(mapping(1, firstUser, userCount), mapping(1, firstUser, userCount)),
			"nobody":            own(mapping(0, firstUser, 0), mapping(0, firstUser, 0)),
			"no groups":         own(good, nil),
			"mode container":    {Mode: runtime.NamespaceMode_CONTAINER},
			"mode target":       {Mode: runtime.NamespaceMode_TARGET},
			"node with mapping": {Mode: runtime.NamespaceMode_NODE, Uids: good, Gids: good},
		} {
			cfg := s.PodConfig(runtime.NamespaceMode_POD)
			cfg.Linux.SecurityContext.NamespaceOptions.UsernsOptions = options
			if err := s.tryPod(cfg); err == nil {
				t.Errorf("%s: a pod with user namespace %v runs", name, options)
			}
		}
	})
}

// tryPod runs a pod that should not, with a container, and removes it.
func (s *server) tryPod(cfg *runtime.PodSandboxConfig) error {
	s.t.Helper()
	resp, err := s.RunPodSandbox(s.Host.Context(time.Minute), &runtime.RunPodSandboxRequest{Config: cfg, RuntimeHandler: s.Handler})
	if err != nil {
		return fmt.Errorf("RunPodSandbox: %w", err)
	}
	defer s.Remove(resp.PodSandboxId)
	p := &pod{s: s, cfg: cfg, id: resp.PodSandboxId}
	_, err = p.start(p.config("c", "exec sleep 1000"))
	return err
}
