package crisuite

import (
	"archive/tar"
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"caisson/test/harness"
	"caisson/test/image"
)

func adds(capabilities ...string) func(*runtime.ContainerConfig) {
	return security(func(c *runtime.LinuxContainerSecurityContext) {
		c.Capabilities = &runtime.Capability{AddCapabilities: capabilities}
	})
}

// expectReady: the attack did not take the pod down.
func (p *pod) expectReady() {
	p.s.t.Helper()
	status, err := p.s.PodSandboxStatus(p.s.Host.Context(time.Minute), &runtime.PodSandboxStatusRequest{PodSandboxId: p.id})
	if err != nil || status.Status.State != runtime.PodSandboxState_SANDBOX_READY {
		p.s.t.Errorf("the pod is %v, %v", status, err)
	}
}

// noPermission is in what EACCES and EPERM are called.
const noPermission = "ermi"

// TestSharedPIDNamespaceIsNoWayOut: process 1 of the pod is ours and runs outside
// of all containers. They see it, and cannot use it, not even with the privileges
// that people add for debuggers.
func TestSharedPIDNamespaceIsNoWayOut(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		secret := filepath.Join(s.Host.Dir, "secret-"+s.Name)
		if err := os.WriteFile(secret, []byte("of the host"), 0o644); err != nil {
			t.Fatal(err)
		}
		p := s.pod(namespaces(func(o *runtime.NamespaceOption) { o.Pid = runtime.NamespaceMode_POD }))
		plain := p.sleeper("plain")
		tracer := p.sleeper("tracer", adds("SYS_PTRACE"))
		admin := p.sleeper("admin", adds("SYS_PTRACE", "SYS_ADMIN", "SYS_CHROOT"))

		for _, id := range []string{plain, tracer, admin} {
			if s.Name != reference { // whose pause ends when it is told to
				s.Shell(id, "for s in TERM INT HUP STOP KILL SEGV; do kill -$s 1; done; sleep 0.1; test -d /proc/1")
				s.expect(id, "cat /proc/1/comm", "caisson-holder\n")
			}
			s.expect(id, "grep -l caisson-monitor /proc/[0-9]*/comm || true", "")
			for _, up := range []string{"", "/..", "/../.."} {
				s.expect(id, "cat /proc/1/root"+up+secret+" 2>/dev/null || cat /proc/1/cwd"+up+secret+" 2>/dev/null || echo none", "none\n")
			}
		}
		if s.Name != reference { // whose pause is the containers' own
			for _, file := range []string{"root", "cwd", "exe", "ns/mnt", "ns/net"} {
				s.refused(plain, "", "readlink", "/proc/1/"+file)
			}
			for _, file := range []string{"mem", "environ", "maps", "syscall"} {
				s.refused(plain, noPermission, "dd", "if=/proc/1/"+file, "count=1")
			}
		}
		s.refused(admin, "", "nsenter", "-t", "1", "-m", "cat", secret)
		s.refused(admin, "", "nsenter", "-t", "1", "-m", "-r", "-w", "cat", "."+secret)
		p.expectReady()
	})
}

// TestHostPIDDoesNotOpenTheMonitor: a container that sees the node's processes
// cannot read or trace those of the pod, and signal them only as the node's root.
func TestHostPIDDoesNotOpenTheMonitor(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		if s.Name == reference {
			s.lacks("there is no monitor")
		}
		p := s.pod(namespaces(func(o *runtime.NamespaceOption) { o.Pid = runtime.NamespaceMode_NODE }))
		root := p.sleeper("root")
		user := p.sleeper("user", security(func(c *runtime.LinuxContainerSecurityContext) {
			c.RunAsUser = &runtime.Int64Value{Value: 1000}
		}))
		for _, name := range []string{"caisson-monitor", "caisson-holder"} {
			find := "for p in /proc/[0-9]*; do case \"$(tr '\\0' ' ' <$p/cmdline 2>/dev/null)\" in '" + name + " k8s.io/" + p.id + " '*) echo $p; esac; done"
			proc := strings.TrimSpace(s.Shell(root, find))
			if !strings.HasPrefix(proc, "/proc/") || strings.Contains(proc, "\n") {
				t.Fatalf("%s: found %q", name, proc)
			}
			for _, id := range []string{root, user} {
				for _, file := range []string{"root", "cwd", "exe", "ns/mnt", "fd/3"} {
					s.refused(id, "", "readlink", proc+"/"+file)
				}
				for _, file := range []string{"mem", "environ", "maps", "syscall"} {
					s.refused(id, noPermission, "dd", "if="+proc+"/"+file, "count=1")
				}
			}
			for _, signal := range []string{"0", "TERM", "STOP", "KILL"} {
				s.refused(user, "Operation not permitted", "kill", "-"+signal, filepath.Base(proc))
			}
		}
		p.expectReady()
	})
}

// TestManyMounts: a container that mounts as much as it can neither holds up the
// others nor is it hard to end.
func TestManyMounts(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		p := s.pod()
		a, b := p.sleeper("a", adds("SYS_ADMIN")), p.sleeper("b")
		// Each round doubles what is there.
		s.Shell(a, "mkdir /m; mount -t tmpfs m /m; i=0; while [ $i -lt 14 ]; do mkdir /m/$i && mount --rbind /m /m/$i || exit 1; i=$((i+1)); done; test $(wc -l </proc/self/mountinfo) -gt 10000")
		s.expect(a, "echo still here", "still here\n")
		s.expect(b, "test $(wc -l </proc/self/mountinfo) -lt 100 && echo spared", "spared\n")
		if _, err := s.StopContainer(s.Host.Context(20*time.Second), &runtime.StopContainerRequest{ContainerId: a}); err != nil {
			t.Error(err)
		}
		if status := s.AwaitState(a, runtime.ContainerState_CONTAINER_EXITED); status.ExitCode != 137 {
			t.Errorf("exit code %d", status.ExitCode)
		}
		p.expectReady()
	})
}

// TestMegabytes: values that nobody expects to be large are passed on, or fail what
// they belong to, and nothing else.
func TestMegabytes(t *testing.T) {
	const megabyte = 1 << 20
	large := strings.Repeat("x", megabyte)
	each(t, func(t *testing.T, s *server) {
		p := s.pod(func(cfg *runtime.PodSandboxConfig) {
			cfg.Annotations = map[string]string{"large": large}
		})
		c := p.config("c", "exec sleep 1000")
		c.Annotations = map[string]string{"large": large}
		for range 10 { // execve(2) takes no string over 128 KiB
			c.Envs = append(c.Envs, &runtime.KeyValue{Key: "V" + string(rune('0'+len(c.Envs))), Value: []byte(large[:100<<10])})
		}
		id, err := p.start(c)
		if err != nil {
			t.Fatal(err)
		}
		s.expect(id, "echo ${#V0} ${#V9}", "102400 102400\n")
		status, err := s.PodSandboxStatus(s.Host.Context(time.Minute), &runtime.PodSandboxStatusRequest{PodSandboxId: p.id, Verbose: true})
		if err != nil || status.Status.Annotations["large"] != large {
			t.Errorf("status: %d bytes, %v", len(status.GetStatus().GetAnnotations()["large"]), err)
		}

		// Its program cannot be executed, which the runtime learns too late to say.
		long := p.config("long", "exec sleep 1000")
		long.Envs = []*runtime.KeyValue{{Key: "LONG", Value: []byte(large)}}
		if id, err := p.start(long); err == nil {
			if status := s.AwaitState(id, runtime.ContainerState_CONTAINER_EXITED); status.ExitCode == 0 {
				t.Errorf("with a variable that no program can have: %v", status)
			}
		}
		resp, err := s.ExecSync(s.Host.Context(time.Minute), &runtime.ExecSyncRequest{ContainerId: id, Cmd: []string{"echo", large}, Timeout: 20})
		if err == nil && resp.ExitCode == 0 {
			t.Error("an argument that no program can have was passed on")
		}
		s.expect(id, "echo still here", "still here\n")
	})
}

// TestHostileImages: what an image has in the place of a file that the server or the
// runtime reads or mounts over leads to no file of the host, and holds nobody up.
func TestHostileImages(t *testing.T) {
	node := func(kind byte) tar.Header { return tar.Header{Typeflag: kind, Mode: 0o666, Devmajor: 1, Devminor: 5} }
	each(t, func(t *testing.T, s *server) {
		secret := filepath.Join(s.Host.Dir, "hostile-"+s.Name)
		if err := os.WriteFile(secret, []byte("of the host"), 0o644); err != nil {
			t.Fatal(err)
		}
		up := strings.Repeat("../", 20)
		link := func(to string) tar.Header { return tar.Header{Typeflag: tar.TypeSymlink, Linkname: to} }
		p := s.pod()
		for name, nodes := range map[string]map[string]tar.Header{
			"passwd-device": {"/etc/passwd": node(tar.TypeChar)},
			"passwd-link":   {"/etc/passwd": link(up + secret)},
			"hosts-fifo":    {"/etc/hosts": node(tar.TypeFifo)},
			"hosts-link":    {"/etc/hosts": link(up + secret)},
			"etc-link":      {"/etc": link(up + filepath.Dir(secret))},
			"dev-link":      {"/dev": link(filepath.Dir(secret))},
			"sys-link":      {"/sys": link(up + filepath.Dir(secret))},
		} {
			if s.Name == reference && name == "dev-link" {
				continue // runc 1.1 makes links on the host
			}
			t.Run(name, func(t *testing.T) {
				var archive bytes.Buffer
				ref := "docker.io/library/hostile-" + name + ":latest"
				if err := image.Write(&archive, image.Options{Ref: ref, Nodes: nodes}); err != nil {
					t.Fatal(err)
				}
				harness.Share(t, running[s.Name]).ImportArchive(harness.CRINamespace, archive.Bytes())
				cfg := p.config(name, "exec sleep 1000")
				cfg.Image.Image = ref
				ctx, cancel := context.WithTimeout(s.Host.Context(time.Minute), 10*time.Second)
				defer cancel()
				created, err := s.CreateContainer(ctx, &runtime.CreateContainerRequest{PodSandboxId: p.id, Config: cfg, SandboxConfig: p.cfg})
				if err == nil {
					_, err = s.StartContainer(ctx, &runtime.StartContainerRequest{ContainerId: created.ContainerId})
				}
				// It may be refused, or serve the image's user with what it has.
				if ctx.Err() != nil {
					t.Errorf("it hangs: %v", err)
				}
				if err == nil {
					s.expect(created.ContainerId, "cat /etc/passwd /etc/hosts 2>/dev/null | grep 'of the host' || true", "")
				}
				files, err := os.ReadDir(filepath.Dir(secret))
				if err != nil {
					t.Fatal(err)
				}
				for _, f := range files {
					if f.Type()&(os.ModeSymlink|os.ModeDevice|os.ModeNamedPipe) != 0 {
						t.Errorf("the host has %v", f)
					}
				}
				if data, err := os.ReadFile(secret); err != nil || string(data) != "of the host" {
					t.Errorf("the host's file has %q, %v", data, err)
				}
			})
		}
		p.expectReady()
	})
}
