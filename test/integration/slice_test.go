package integration

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	cgroup1 "github.com/containerd/cgroups/v3/cgroup1/stats"
	cgroup2 "github.com/containerd/cgroups/v3/cgroup2/stats"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/typeurl/v2"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"caisson/test/daemon"
	"caisson/test/harness"
)

// TestCRISlice runs a pod below a slice of systemd, whose name kubelet's systemd
// driver gives: CRI then writes slice:prefix:name as the cgroup of a container.
// No systemd is asked here; with one the OCI runtime asks it.
func TestCRISlice(t *testing.T) {
	h := harness.Start(t, daemon.Options{})
	cri := h.CRI()
	cfg := cri.PodConfig(runtime.NamespaceMode_NODE)
	slice := "/" + h.Token + ".slice/" + h.Token + "-pod1.slice"
	for _, path := range []string{"/" + h.Token + ".slice", slice} {
		if err := h.AddCgroup(path); err != nil {
			t.Fatal(err)
		}
	}
	cfg.Linux.CgroupParent = slice
	pod := cri.RunPod(cfg)
	// What it takes of memory is its own: 8 MiB in the pod's /dev/shm.
	id := cri.RunContainer(pod, cfg, cri.ContainerConfig("c", "dd if=/dev/zero of=/dev/shm/f bs=1M count=8 2>/dev/null; exec sleep 1000"))
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", containerPid(t, h, cri, id)))
	if err != nil {
		t.Fatal(err)
	}
	if want := slice + "/cri-containerd-" + id + ".scope\n"; !strings.Contains(string(text), want) {
		t.Errorf("cgroups of the container:\n%s, want %s", text, want)
	}
	if err := daemon.Poll(h.Context(time.Minute), 20*time.Second, func() error { // CRI collects by the second
		stats, err := cri.PodSandboxStats(h.Context(time.Minute), &runtime.PodSandboxStatsRequest{PodSandboxId: pod})
		if err != nil {
			return err
		}
		linux := stats.GetStats().GetLinux()
		if used := linux.GetMemory().GetUsageBytes().GetValue(); used < 8<<20 || len(linux.GetContainers()) != 1 {
			return fmt.Errorf("the pod uses %d bytes, with the containers %v", used, linux.GetContainers())
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
	metric, err := controller(h).Metrics(namespaces.WithNamespace(h.Context(time.Minute), harness.CRINamespace), pod)
	if err != nil {
		t.Fatal(err)
	}
	stats, err := typeurl.UnmarshalAny(metric.Data)
	if err != nil {
		t.Fatal(err)
	}
	used := uint64(0)
	switch m := stats.(type) {
	case *cgroup1.Metrics:
		used = m.GetMemory().GetUsage().GetUsage()
	case *cgroup2.Metrics:
		used = m.GetMemory().GetUsage()
	}
	if used < 8<<20 {
		t.Errorf("metrics of the pod: %v", stats)
	}
}
