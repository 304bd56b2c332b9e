package integration

import (
	"testing"
	"time"

	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/google/go-cmp/cmp"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"caisson/test/daemon"
	"caisson/test/harness"
)

// TestProcesses: no pause container and no process of a shim. Beside caissond
// there are a monitor and a holder per sandbox, which run the same program, and
// a monitor per container without a sandbox.
func TestProcesses(t *testing.T) {
	h := harness.Start(t, daemon.Options{})
	cri := h.CRI()
	expect := func(what string, monitors int) {
		t.Helper()
		want := map[string]int{"caissond": 1}
		if monitors > 0 {
			want["caisson-monitor"] = monitors
		}
		// A runtime or shim binary that has just answered may still be exiting.
		var diff string
		if err := daemon.Poll(t.Context(), 5*time.Second, func() error {
			if diff = cmp.Diff(want, hostProcesses(t, h)); diff != "" {
				return errNotEnded
			}
			return nil
		}); err != nil {
			t.Errorf("%s: %s", what, diff)
		}
	}
	expect("idle", 0)

	cfg := cri.PodConfig(runtime.NamespaceMode_POD)
	pod := cri.RunPod(cfg)
	expect("a pod", 2)
	cri.RunContainer(pod, cfg, cri.ContainerConfig("a", "exec sleep 1000"))
	cri.RunContainer(pod, cfg, cri.ContainerConfig("b", "exec sleep 1000"))
	expect("a pod of two containers", 2)

	startSandbox(t, h, "second", nil)
	expect("a pod and a sandbox", 4)

	ctx := h.In(time.Minute)
	task, err := container(t, h, "single", "exec sleep 1000").NewTask(ctx, cio.NullIO)
	if err != nil {
		t.Fatal(err)
	}
	if err := task.Start(ctx); err != nil {
		t.Fatal(err)
	}
	expect("a container without a sandbox, too", 5)
	remove(t, h, "single")
	expect("the container is gone", 4)
}
