package crisuite

import (
	"fmt"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"caisson/test/daemon"
)

// TestNetworkNamespace: the pod's own or the node's, the same for all containers.
func TestNetworkNamespace(t *testing.T) {
	for name, mode := range map[string]runtime.NamespaceMode{"pod": runtime.NamespaceMode_POD, "node": runtime.NamespaceMode_NODE} {
		t.Run(name, func(t *testing.T) {
			each(t, func(t *testing.T, s *server) {
				listener, err := net.Listen("tcp", "127.0.0.1:0")
				if err != nil {
					t.Fatal(err)
				}
				defer listener.Close()
				p := s.pod(namespaces(func(o *runtime.NamespaceOption) { o.Network = mode }))
				a, b := p.sleeper("a"), p.sleeper("b")
				onNode := mode == runtime.NamespaceMode_NODE
				for kind, shared := range map[string]bool{"net": onNode, "uts": onNode, "ipc": false, "mnt": false, "pid": false} {
					if got := s.namespaceOf(a, kind) == s.namespace("self", kind); got != shared {
						t.Errorf("%s namespace of the node: %t", kind, got)
					}
					if same, own := s.namespaceOf(a, kind) == s.namespaceOf(b, kind), kind == "mnt" || kind == "pid"; same == own {
						t.Errorf("%s namespace is the same in both containers: %t", kind, same)
					}
				}
				resp := s.exec(a, "nc", "-w", "2", "127.0.0.1", fmt.Sprint(listener.Addr().(*net.TCPAddr).Port), "-e", "true")
				if reached := resp.ExitCode == 0; reached != onNode {
					t.Errorf("a port of the node's loopback: %v", resp)
				}
				status, err := s.PodSandboxStatus(s.Host.Context(time.Minute), &runtime.PodSandboxStatusRequest{PodSandboxId: p.id})
				if err != nil || status.Status.GetLinux().GetNamespaces().GetOptions().GetNetwork() != mode {
					t.Errorf("PodSandboxStatus: %v, %v", status, err)
				}
			})
		})
	}
}

// segment makes shared memory on the host. All of System V's is the host's, its
// /proc file lists it where it is to be had.
func segment(t *testing.T) (id int) {
	t.Helper()
	id, err := unix.SysvShmGet(unix.IPC_PRIVATE, 4096, unix.IPC_CREAT|0o600)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if _, err := unix.SysvShmCtl(id, unix.IPC_RMID, nil); err != nil {
			t.Error(err)
		}
	})
	return id
}

// TestIPCNamespace: the pod's own shared memory, or the node's.
func TestIPCNamespace(t *testing.T) {
	for name, mode := range map[string]runtime.NamespaceMode{"pod": runtime.NamespaceMode_POD, "node": runtime.NamespaceMode_NODE} {
		t.Run(name, func(t *testing.T) {
			each(t, func(t *testing.T, s *server) {
				id := segment(t)
				p := s.pod(namespaces(func(o *runtime.NamespaceOption) { o.Ipc = mode }))
				a, b := p.sleeper("a"), p.sleeper("b")
				seen := strings.Contains(s.Shell(a, "awk '{print \"id\" $2 \"end\"}' /proc/sysvipc/shm"), fmt.Sprintf("id%dend", id))
				if seen != (mode == runtime.NamespaceMode_NODE) {
					t.Errorf("the host's shared memory is there: %t", seen)
				}
				if s.namespaceOf(a, "ipc") != s.namespaceOf(b, "ipc") {
					t.Error("the containers have IPC namespaces of their own")
				}
				note := fmt.Sprintf("/dev/shm/%s-%s", s.Host.Token, p.id)
				s.Shell(a, "echo a note >"+note)
				s.expect(b, "cat "+note+" && rm "+note, "a note\n")
			})
		})
	}
}

// TestPIDNamespace: what containers see of each other, and of the node.
func TestPIDNamespace(t *testing.T) {
	t.Run("container", func(t *testing.T) {
		each(t, func(t *testing.T, s *server) {
			p := s.pod()
			a, b := p.sleeper("a"), p.sleeper("b")
			s.expect(a, "tr '\\0' ' ' </proc/1/cmdline", "sleep 1000 ")
			s.expect(a, "pidof sleep", "1\n")
			if s.namespaceOf(a, "pid") == s.namespaceOf(b, "pid") {
				t.Error("the containers share a PID namespace")
			}
		})
	})
	t.Run("pod", func(t *testing.T) {
		each(t, func(t *testing.T, s *server) {
			p := s.pod(namespaces(func(o *runtime.NamespaceOption) { o.Pid = runtime.NamespaceMode_POD }))
			a := p.sleeper("a")
			b, err := p.start(p.config("b", "echo $$ >/dev/shm/p && mv /dev/shm/p /dev/shm/pid; exec sleep 2000"))
			if err != nil {
				t.Fatal(err)
			}
			if s.namespaceOf(a, "pid") != s.namespaceOf(b, "pid") || s.namespaceOf(a, "pid") == s.namespace("self", "pid") {
				t.Error("the containers do not share a PID namespace of the pod")
			}
			if got := s.Shell(a, "tr '\\0' ' ' </proc/1/cmdline"); strings.HasPrefix(got, "sleep 1000") {
				t.Errorf("the container is the first process: %q", got)
			}
			s.Shell(a, "until test -s /dev/shm/pid; do usleep 10000; done")
			s.expect(a, "tr '\\0' ' ' </proc/$(cat /dev/shm/pid)/cmdline", "sleep 2000 ")
			p.reaps(a)
			s.Shell(a, "kill -9 $(cat /dev/shm/pid)")
			if got := s.AwaitState(b, runtime.ContainerState_CONTAINER_EXITED).ExitCode; got != 137 {
				t.Errorf("killed by its neighbour: exit code %d", got)
			}
			s.expect(a, "echo alive", "alive\n")
		})
	})
	t.Run("node", func(t *testing.T) {
		each(t, func(t *testing.T, s *server) {
			p := s.pod(namespaces(func(o *runtime.NamespaceOption) { o.Pid = runtime.NamespaceMode_NODE }))
			a := p.sleeper("a")
			if s.namespaceOf(a, "pid") != s.namespace("self", "pid") {
				t.Error("the container has a PID namespace of its own")
			}
			s.expect(a, fmt.Sprintf("cat /proc/%d/comm", os.Getpid()), s.Shell(a, "echo crisuite.test"))
		})
	})
}

// reaps expects that the pod's first process takes care of orphans.
func (p *pod) reaps(id string) {
	p.s.t.Helper()
	orphan := strings.TrimSpace(p.s.Shell(id, "sh -c 'usleep 1000 >/dev/null 2>&1 & echo $!'"))
	err := daemon.Poll(p.s.Host.Context(time.Minute), 10*time.Second, func() error {
		if resp := p.s.exec(id, "test", "-e", "/proc/"+orphan); resp.ExitCode == 0 {
			return fmt.Errorf("process %s, which ended, is still there", orphan)
		}
		return nil
	})
	if err != nil {
		p.s.t.Error(err)
	}
}

// TestTargetPIDNamespace: a debug container in the namespace of another.
func TestTargetPIDNamespace(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		p := s.pod()
		target := p.sleeper("target")
		join := func(id string) func(*runtime.ContainerConfig) {
			return security(func(c *runtime.LinuxContainerSecurityContext) {
				c.NamespaceOptions.Pid, c.NamespaceOptions.TargetId = runtime.NamespaceMode_TARGET, id
			})
		}
		debug, err := p.start(p.config("debug", "exec sleep 2000", join(target)))
		if err != nil {
			t.Fatal(err)
		}
		if s.namespaceOf(debug, "pid") != s.namespaceOf(target, "pid") {
			t.Error("the container is not in its target's PID namespace")
		}
		s.expect(debug, "tr '\\0' ' ' </proc/1/cmdline; cat /proc/1/root/etc/marked", "sleep 1000 by the image\n")
		if got := s.status(debug); got.State != runtime.ContainerState_CONTAINER_RUNNING {
			t.Errorf("status: %v", got)
		}
		// With the first process of its namespace, the kernel ends them all.
		if _, err := s.StopContainer(s.Host.Context(time.Minute), &runtime.StopContainerRequest{ContainerId: target}); err != nil {
			t.Errorf("StopContainer: %v", err)
		}
		if got := s.AwaitState(debug, runtime.ContainerState_CONTAINER_EXITED).ExitCode; got != 137 {
			t.Errorf("exit code %d when the target ended", got)
		}
		for name, id := range map[string]string{"nobody": "", "absent": "0123456789abcdef", "ended": target} {
			if id, err := p.start(p.config(name, "exec sleep 2000", join(id))); err == nil {
				t.Errorf("%s: container %s runs", name, id)
			}
		}
	})
}

// TestSysctls: safe ones and others, of every namespace that the pod has.
func TestSysctls(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		sysctls := map[string]string{
			"kernel.shm_rmid_forced":              "1",
			"net.ipv4.ip_local_port_range":        "2000\t3000",
			"net.ipv4.ip_unprivileged_port_start": "42",
			"net.core.somaxconn":                  "77",
			"kernel.msgmax":                       "9000",
			"fs.mqueue.msg_max":                   "100",
		}
		p := s.pod(func(cfg *runtime.PodSandboxConfig) { cfg.Linux.Sysctls = sysctls })
		a, b := p.sleeper("a"), p.sleeper("b")
		for name, value := range sysctls {
			for _, id := range []string{a, b} {
				s.expect(id, "cat /proc/sys/"+strings.ReplaceAll(name, ".", "/"), value+"\n")
			}
		}
	})
}

// TestSysctlsRefused: those that are the node's, or none.
func TestSysctlsRefused(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		for name, sysctl := range map[string]string{"node": "vm.swappiness", "absent": "net.ipv4.absent", "climbs": "net.ipv4.../../kernel/sysrq"} {
			cfg := s.PodConfig(runtime.NamespaceMode_POD)
			cfg.Linux.Sysctls = map[string]string{sysctl: "1"}
			if resp, err := s.RunPodSandbox(s.Host.Context(time.Minute), &runtime.RunPodSandboxRequest{Config: cfg, RuntimeHandler: s.Handler}); err == nil {
				t.Errorf("%s: pod %s runs", name, resp.PodSandboxId)
				s.Remove(resp.PodSandboxId)
			}
		}
	})
}
