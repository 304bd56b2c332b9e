package crisuite

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/sys/mountinfo"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// cgroup is the path of a container's cgroup below the root of the hierarchies:
// that of the memory controller, which is the same as that of all others.
func (s *server) cgroup(containerID string) string {
	s.t.Helper()
	content := s.proc(containerID, "cgroup")
	for line := range strings.Lines(content) {
		fields := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(fields) == 3 && (fields[1] == "memory" || (fields[1] == "" && !strings.Contains(content, ":memory:"))) {
			return fields[2]
		}
	}
	s.t.Fatalf("no memory controller in\n%s", content)
	return ""
}

// memoryDir is where the memory controller has a cgroup's files.
func (s *server) memoryDir(cgroup string) string {
	s.t.Helper()
	mounts, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup", "cgroup2"))
	if err != nil {
		s.t.Fatal(err)
	}
	for _, m := range mounts {
		for _, file := range []string{"memory.limit_in_bytes", "memory.max"} {
			if _, err := os.Stat(filepath.Join(m.Mountpoint, cgroup, file)); err == nil {
				return filepath.Join(m.Mountpoint, cgroup)
			}
		}
	}
	s.t.Fatalf("cgroup %s has no memory controller", cgroup)
	return ""
}

// memoryLimit is the file of a cgroup that has its limit.
func (s *server) memoryLimit(cgroup string) string {
	s.t.Helper()
	dir := s.memoryDir(cgroup)
	if path := filepath.Join(dir, "memory.max"); exists(path) {
		return path
	}
	return filepath.Join(dir, "memory.limit_in_bytes")
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// TestCgroupParent: containers are below the cgroup that kubelet made for the
// pod, whose limits hold for all of them.
func TestCgroupParent(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		p := s.pod()
		id := p.sleeper("c", func(cfg *runtime.ContainerConfig) {
			cfg.Linux.Resources = &runtime.LinuxContainerResources{MemoryLimitInBytes: 48 << 20, CpuShares: 300}
		})
		parent := p.cfg.Linux.CgroupParent
		if got, want := s.cgroup(id), filepath.Join(parent, id); got != want {
			t.Errorf("cgroup %s, want %s", got, want)
		}
		limit, err := os.ReadFile(s.memoryLimit(s.cgroup(id)))
		if err != nil || string(limit) != fmt.Sprintln(48<<20) {
			t.Errorf("memory limit: %q, %v", limit, err)
		}
		// Nothing but the parent's limit is in the way of a container without one.
		if err := os.WriteFile(s.memoryLimit(parent), []byte(fmt.Sprint(64<<20)), 0); err != nil {
			t.Fatal(err)
		}
		free := p.config("free", "head -c 100m /dev/zero | tail -c 90m | wc -c")
		free.Linux.Resources = nil
		id, err = p.start(free)
		if err != nil {
			t.Fatal(err)
		}
		s.AwaitState(id, runtime.ContainerState_CONTAINER_EXITED)
		if failures, err := s.failures(parent); err != nil || failures == 0 {
			t.Errorf("the pod's limit was never met: %d, %v", failures, err)
		}
	})
}

// failures counts how often a cgroup's memory did not suffice.
func (s *server) failures(cgroup string) (int, error) {
	dir := s.memoryDir(cgroup)
	if content, err := os.ReadFile(filepath.Join(dir, "memory.failcnt")); err == nil {
		return strconv.Atoi(strings.TrimSpace(string(content)))
	}
	content, err := os.ReadFile(filepath.Join(dir, "memory.events"))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(content)) {
		if value, ok := strings.CutPrefix(line, "max "); ok {
			return strconv.Atoi(strings.TrimSpace(value))
		}
	}
	return 0, nil
}

// TestCgroupSlice: without systemd's driver, a path in systemd's style is no
// error. The reference takes all of it for one name, Caisson for the directories
// that systemd would have made of it.
func TestCgroupSlice(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		slice := ""
		p := s.pod(func(cfg *runtime.PodSandboxConfig) {
			slice = s.Host.Token + "-" + cfg.Metadata.Name + ".slice"
			for _, path := range []string{"/" + s.Host.Token + ".slice", "/" + s.Host.Token + ".slice/" + slice} {
				if err := s.Host.AddCgroup(path); err != nil {
					t.Fatal(err)
				}
				cfg.Linux.CgroupParent = path
			}
		})
		id := p.sleeper("c")
		s.matches("cgroup", s.cgroup(id), regexp.QuoteMeta(slice)+"[:/]cri-containerd[:-]"+id)
	})
}

// TestPodResources: what kubelet says of the pod as a whole is kept, changed and
// told; the pod's cgroup is kubelet's.
func TestPodResources(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		p := s.pod(func(cfg *runtime.PodSandboxConfig) {
			cfg.Linux.Resources = &runtime.LinuxContainerResources{MemoryLimitInBytes: 96 << 20, CpuShares: 512, CpuPeriod: 100000, CpuQuota: 50000}
			cfg.Linux.Overhead = &runtime.LinuxContainerResources{MemoryLimitInBytes: 8 << 20}
		})
		id := p.sleeper("c")
		file := s.memoryLimit(p.cfg.Linux.CgroupParent)
		if err := os.WriteFile(file, []byte(fmt.Sprint(96<<20)), 0); err != nil {
			t.Fatal(err)
		}
		overhead := &runtime.LinuxContainerResources{MemoryLimitInBytes: 16 << 20}
		resources := &runtime.LinuxContainerResources{MemoryLimitInBytes: 128 << 20, CpuShares: 1024, CpuPeriod: 100000, CpuQuota: 100000}
		if _, err := s.UpdatePodSandboxResources(s.Host.Context(time.Minute), &runtime.UpdatePodSandboxResourcesRequest{
			PodSandboxId: p.id, Overhead: overhead, Resources: resources,
		}); err != nil {
			t.Fatalf("UpdatePodSandboxResources: %v", err)
		}
		resp, err := s.PodSandboxStatus(s.Host.Context(time.Minute), &runtime.PodSandboxStatusRequest{PodSandboxId: p.id, Verbose: true})
		if err != nil {
			t.Fatal(err)
		}
		var info struct{ Overhead, Resources runtime.ContainerResources }
		if err := json.Unmarshal([]byte(resp.Info["info"]), &info); err != nil {
			t.Fatalf("verbose status: %v\n%v", err, resp.Info)
		}
		if info.Overhead.GetLinux().GetMemoryLimitInBytes() != 16<<20 || info.Resources.GetLinux().GetMemoryLimitInBytes() != 128<<20 || info.Resources.GetLinux().GetCpuQuota() != 100000 {
			t.Errorf("verbose status: overhead %v, resources %v", info.Overhead.GetLinux(), info.Resources.GetLinux())
		}
		if limit, err := os.ReadFile(file); err != nil || string(limit) != fmt.Sprintln(96<<20) {
			t.Errorf("limit of the pod's cgroup: %q, %v", limit, err)
		}
		s.expect(id, "echo alive", "alive\n")
		if _, err := s.UpdatePodSandboxResources(s.Host.Context(time.Minute), &runtime.UpdatePodSandboxResourcesRequest{PodSandboxId: "absent"}); err == nil {
			t.Error("resources of a pod that is not there were changed")
		}
	})
}

// TestOOM: a container that takes more memory than it may is killed, and the
// status says by whom.
func TestOOM(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		p := s.pod()
		id, err := p.start(p.config("c", "exec dd if=/dev/zero of=/dev/null bs=40M", func(cfg *runtime.ContainerConfig) {
			cfg.Linux.Resources = &runtime.LinuxContainerResources{MemoryLimitInBytes: 20 << 20, MemorySwapLimitInBytes: 20 << 20}
		}))
		if err != nil {
			t.Fatal(err)
		}
		if status := s.AwaitState(id, runtime.ContainerState_CONTAINER_EXITED); status.Reason != "OOMKilled" || status.ExitCode != 137 {
			t.Errorf("status: %v", status)
		}
		// The exit code alone says nothing.
		id, err = p.start(p.config("same", "exit 137"))
		if err != nil {
			t.Fatal(err)
		}
		if status := s.AwaitState(id, runtime.ContainerState_CONTAINER_EXITED); status.Reason != "Error" {
			t.Errorf("status: %v", status)
		}
	})
}

// TestOOMScore: whom the kernel kills first.
func TestOOMScore(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		p := s.pod()
		own, err := os.ReadFile("/proc/self/oom_score_adj")
		if err != nil {
			t.Fatal(err)
		}
		floor, err := strconv.ParseInt(strings.TrimSpace(string(own)), 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		const sysResource = 1 << 24
		if parseHex(t, s.hostCapabilities())&sysResource != 0 && s.Name == embedded {
			floor = -1000 // the configuration of the other two does not go below their own
		}
		for _, score := range []int64{1000, 500, max(floor, 0), -500} {
			id := p.sleeper(fmt.Sprint(score), func(cfg *runtime.ContainerConfig) { cfg.Linux.Resources.OomScoreAdj = score })
			want := fmt.Sprintln(max(score, floor))
			if got := s.proc(id, "oom_score_adj"); got != want {
				t.Errorf("%d: the score is %q, want %q", score, got, want)
			}
			s.expect(id, "cat /proc/self/oom_score_adj", want)
		}
	})
}

// TestRlimits: CRI sets none, so that containers have those that the server was
// started with.
func TestRlimits(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		want, err := exec.Command("cat", "/proc/self/limits").Output()
		if err != nil {
			t.Fatal(err)
		}
		p := s.pod()
		id := p.sleeper("c")
		if diff := cmp.Diff(string(want), s.proc(id, "limits")); diff != "" {
			t.Errorf("first process (-want +got):\n%s", diff)
		}
		if diff := cmp.Diff(string(want), s.Shell(id, "exec cat /proc/self/limits")); diff != "" {
			t.Errorf("another (-want +got):\n%s", diff)
		}
	})
}

// TestCheckpointFails: without a CRIU that works here, an error says so, and the
// container goes on.
func TestCheckpointFails(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		if err := exec.Command("criu", "check").Run(); err == nil {
			s.lacks("CRIU works here")
		}
		p := s.pod()
		id := p.sleeper("c")
		archive := filepath.Join(s.dir(), "checkpoint.tar")
		_, err := s.CheckpointContainer(s.Host.Context(time.Minute), &runtime.CheckpointContainerRequest{ContainerId: id, Location: archive, Timeout: 30})
		if err == nil {
			t.Fatal("a checkpoint was made")
		}
		s.matches("error", strings.ToLower(err.Error()), `criu|checkpoint`)
		if exists(archive) {
			t.Error("there is an archive")
		}
		s.expect(id, "echo alive", "alive\n")
		if got := s.status(id).State; got != runtime.ContainerState_CONTAINER_RUNNING {
			t.Errorf("the container is %s", got)
		}
	})
}
