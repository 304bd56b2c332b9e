package crisuite

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moby/sys/mountinfo"
	"google.golang.org/protobuf/proto"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// limits reads the files of a container's cgroup that resources end up in, as
// far as the host has them.
func (s *server) limits(id string) map[string]string {
	s.t.Helper()
	mounts, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup", "cgroup2"))
	if err != nil {
		s.t.Fatal(err)
	}
	cgroup, got := s.cgroup(id), map[string]string{}
	for _, file := range []string{
		"cpu.shares", "cpu.cfs_quota_us", "cpu.cfs_period_us", "cpuset.cpus", "memory.limit_in_bytes", "memory.memsw.limit_in_bytes", "pids.max",
		"cpu.weight", "cpu.max", "memory.max", "memory.high", "memory.swap.max",
	} {
		for _, m := range mounts {
			if content, err := os.ReadFile(filepath.Join(m.Mountpoint, cgroup, file)); err == nil {
				got[file] = strings.TrimSpace(string(content))
			}
		}
	}
	if len(got) < 4 {
		s.t.Errorf("limits of cgroup %s: %v", cgroup, got)
	}
	return got
}

// limited is what is told of a container's resources.
type limited struct {
	Status *runtime.ContainerResources
	Cgroup map[string]string
}

func (s *server) update(id string, r *runtime.LinuxContainerResources) {
	s.t.Helper()
	ask(s, s.UpdateContainerResources, &runtime.UpdateContainerResourcesRequest{ContainerId: id, Linux: r})
}

func (s *server) limited(id string) limited {
	s.t.Helper()
	return limited{Status: s.status(id).Resources, Cgroup: s.limits(id)}
}

// TestUpdate changes the resources of a running container, one after the other
// and all at once, and compares what the cgroup and the status then say.
func TestUpdate(t *testing.T) {
	steps := []*runtime.LinuxContainerResources{
		{MemoryLimitInBytes: 80 << 20},
		{CpuShares: 512},
		{CpuPeriod: 50000, CpuQuota: 20000},
		{CpuQuota: -1},
		{CpusetCpus: "0"},
		{MemoryLimitInBytes: 32 << 20, MemorySwapLimitInBytes: 32 << 20},
		{MemoryLimitInBytes: 96 << 20, MemorySwapLimitInBytes: 128 << 20, CpuShares: 100, CpuPeriod: 100000, CpuQuota: 30000, CpusetCpus: "0-1", OomScoreAdj: 500},
	}
	compare(t, func(t *testing.T, s *server) []limited {
		p := s.pod()
		id := p.sleeper("c")
		answers := []limited{s.limited(id)}
		for _, r := range steps {
			s.update(id, r)
			answers = append(answers, s.limited(id))
		}
		last := answers[len(answers)-1]
		if got := last.Status.GetLinux(); got.GetMemoryLimitInBytes() != 96<<20 || got.GetCpuShares() != 100 || got.GetCpuQuota() != 30000 || got.GetCpusetCpus() != "0-1" {
			t.Errorf("status: %v", got)
		}
		memory := last.Cgroup["memory.limit_in_bytes"] + last.Cgroup["memory.max"]
		cpu := last.Cgroup["cpu.cfs_quota_us"] + last.Cgroup["cpu.max"]
		if memory != fmt.Sprint(96<<20) || !strings.HasPrefix(cpu, "30000") || last.Cgroup["cpuset.cpus"] != "0-1" {
			t.Errorf("cgroup: %v", last.Cgroup)
		}
		return answers
	})
}

// TestUpdateUnified sets a file of cgroup v2 by its name.
func TestUpdateUnified(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		id := s.pod().sleeper("c")
		if _, v2 := s.limits(id)["memory.max"]; !v2 {
			s.lacks("the host has no memory controller of cgroup v2")
		}
		s.update(id, &runtime.LinuxContainerResources{Unified: map[string]string{"memory.high": "41943040"}})
		if got := s.limits(id)["memory.high"]; got != "41943040" {
			t.Errorf("memory.high: %s", got)
		}
	})
}

// TestUpdateCreated: what is asked of a container before it runs holds when it does.
func TestUpdateCreated(t *testing.T) {
	compare(t, func(t *testing.T, s *server) []limited {
		p := s.pod()
		id := p.create("c", "exec sleep 1000")
		s.update(id, &runtime.LinuxContainerResources{MemoryLimitInBytes: 72 << 20, CpuShares: 333})
		before := s.status(id).Resources
		s.startContainer(id)
		after := s.limited(id)
		if got := after.Status.GetLinux(); got.GetMemoryLimitInBytes() != 72<<20 || got.GetCpuShares() != 333 {
			t.Errorf("status: %v", got)
		}
		return []limited{{Status: before}, after}
	})
}

// TestUpdateRefused: what cannot be is refused, and changes nothing.
func TestUpdateRefused(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		id := s.pod().sleeper("c")
		before := s.limited(id)
		for _, r := range []*runtime.LinuxContainerResources{
			{CpusetCpus: "4000"},
			{CpusetCpus: "no processor"},
			{CpuPeriod: 1},
		} {
			refuse(s, s.UpdateContainerResources, &runtime.UpdateContainerResourcesRequest{ContainerId: id, Linux: r})
			after := s.limited(id)
			if !proto.Equal(before.Status, after.Status) {
				t.Errorf("status after %v: %v", r, after.Status)
			}
			equal(t, fmt.Sprint("cgroup after ", r), before.Cgroup, after.Cgroup)
		}
		s.expect(id, "echo alive", "alive\n")
	})
}
