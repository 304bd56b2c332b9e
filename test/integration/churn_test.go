package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"caisson/test/daemon"
	"caisson/test/harness"
)

// churnPods is how many pods TestChurn makes; CAISSON_TEST_PODS overrides it.
const churnPods = 40

// TestChurn runs whole lives of pods, four at a time. Nothing may be left of
// them, in the daemon least of all: it holds as many descriptors
// after the last as after the first few. (Goroutines that wait for a process or
// a connection hold a descriptor.)
func TestChurn(t *testing.T) {
	pods := churnPods
	if s := os.Getenv("CAISSON_TEST_PODS"); s != "" {
		var err error
		if pods, err = strconv.Atoi(s); err != nil {
			t.Fatalf("CAISSON_TEST_PODS: %v", err)
		}
	}
	h := harness.Start(t, daemon.Options{})
	cri := h.CRI()
	live := func(n int) {
		cfg := cri.PodConfig(runtime.NamespaceMode_NODE)
		cfg.Metadata.Name = fmt.Sprintf("churn-%d", n)
		cfg.Metadata.Uid = cfg.Metadata.Name
		pod := cri.RunPod(cfg)
		id := cri.RunContainer(pod, cfg, cri.ContainerConfig("c", fmt.Sprintf("exit %d", n%7)))
		if st := cri.AwaitState(id, runtime.ContainerState_CONTAINER_EXITED); st.ExitCode != int32(n%7) {
			t.Errorf("pod %d: exit code %d", n, st.ExitCode)
		}
		cri.Remove(pod)
	}
	run := func(from, to int) {
		numbers := make(chan int, to-from)
		for n := from; n < to; n++ {
			numbers <- n
		}
		close(numbers)
		var workers sync.WaitGroup
		for range 4 {
			workers.Go(func() {
				for n := range numbers {
					live(n)
				}
			})
		}
		workers.Wait()
	}
	run(0, 8)
	before := openDescriptors(t, h)
	run(8, pods)
	// Clients close their connections when they like.
	err := daemon.Poll(h.In(time.Minute), 20*time.Second, func() error {
		if now := openDescriptors(t, h); now > before+8 {
			return fmt.Errorf("%d descriptors after %d pods, %d after 8", now, pods, before)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	if left := stateFiles(t, h); len(left) > 0 {
		t.Errorf("left in the state directory: %q", left)
	}
	if list, err := h.Client("k8s.io").SandboxStore().List(h.In(time.Minute)); err != nil || len(list) > 0 {
		t.Errorf("records of sandboxes: %v, %v", list, err)
	}
}

func openDescriptors(t *testing.T, h *harness.Host) int {
	t.Helper()
	fds, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", h.Pid()))
	if err != nil || len(fds) == 0 {
		t.Fatalf("descriptors of caissond: %v, %v", fds, err)
	}
	return len(fds)
}
