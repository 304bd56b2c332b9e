package integration

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"caisson/test/daemon"
	"caisson/test/harness"
)

// TestReboot: after a restart of the node everything that ran is reported as
// gone, can be removed, and leaves its name and its addresses to others.
func TestReboot(t *testing.T) {
	for _, c := range []struct {
		name    string
		opts    daemon.Options
		handler string
	}{
		{"embedded", daemon.Options{Engine: daemon.EngineEmbedded}, harness.Handler},
		{"stock", stock, harness.Handler},
		{"stock by shim", stock, "caisson-shim"},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := harness.Start(t, c.opts)
			cri := h.CRI()
			configs := []*runtime.PodSandboxConfig{cri.PodConfig(runtime.NamespaceMode_POD), cri.PodConfig(runtime.NamespaceMode_NODE), cri.PodConfig(runtime.NamespaceMode_POD)}
			pods := make([]*stockPod, len(configs))
			inParallel(t, len(pods), func(i int) { pods[i] = runStockPod(t, h, cri, configs[i], c.handler) })
			h.Ctr(append(ctrRun(h, "-d"), harness.Image, "single", "sh", "-c", "exec sleep 1000")...)
			h.Caisson("sandbox", "create", "--net", "cni", "box")
			h.Caisson("sandbox", "start", "box")
			if len(leases(t, h)) == 0 {
				t.Fatal("no address is taken")
			}

			if err := h.Reboot(h.Context(time.Minute)); err != nil {
				t.Fatal(err)
			}
			h.StartDaemon()

			for _, p := range pods {
				expectGone(t, h, cri, p)
			}
			if _, err := loadTask(h, "single"); !errdefs.IsNotFound(err) {
				t.Errorf("task of a container without a sandbox: %v", err)
			}
			if out := h.Caisson("sandbox", "inspect", "box"); !strings.Contains(out, "the host was restarted") {
				t.Errorf("sandbox inspect: %s", out)
			}
			// kubelet makes the pods anew before it removes the old ones.
			again := func(attempt uint32) {
				inParallel(t, len(pods), func(i int) {
					configs[i].Metadata.Attempt = attempt
					p := runStockPod(t, h, cri, configs[i], c.handler)
					cri.Remove(pods[i].id)
					expectReady(t, h, cri, p.id)
					cri.Shell(p.writer, "true")
					pods[i] = p
				})
			}
			again(1)
			for _, p := range pods {
				cri.Remove(p.id)
			}
			again(1) // of the very same name
			for _, p := range pods {
				cri.Remove(p.id)
			}
			h.Ctr("containers", "rm", "single")
			h.Caisson("sandbox", "rm", "box")
			h.Caisson("sandbox", "create", "--net", "cni", "box")
			h.Caisson("sandbox", "start", "box")
			h.Caisson("sandbox", "rm", "-f", "box")
			expectNothing(t, h, cri)
			if left := leases(t, h); len(left) > 0 {
				t.Errorf("addresses still taken: %q", left)
			}
		})
	}
}

// expectGone: CRI knows a pod and its container and says that they ended.
func expectGone(t *testing.T, h *harness.Host, cri *harness.CRI, p *stockPod) {
	t.Helper()
	status, err := cri.PodSandboxStatus(h.Context(time.Minute), &runtime.PodSandboxStatusRequest{PodSandboxId: p.id})
	if err != nil || status.Status.State != runtime.PodSandboxState_SANDBOX_NOTREADY {
		t.Errorf("pod: %v, %v", status, err)
	}
	container := cri.AwaitState(p.writer, runtime.ContainerState_CONTAINER_EXITED)
	if container.ExitCode != 255 {
		t.Errorf("exit code %d of a container that the restart ended", container.ExitCode)
	}
	if resp, err := cri.ExecSync(h.Context(time.Minute), &runtime.ExecSyncRequest{ContainerId: p.writer, Cmd: []string{"true"}}); err == nil {
		t.Errorf("exec in a container that is gone: %v", resp)
	}
}

// leases are the addresses that the test's network has given away.
func leases(t *testing.T, h *harness.Host) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(h.Dir, "ipam", "*", "10.*"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(h.Dir, "ipam")); err != nil {
		t.Fatal(err)
	}
	return found
}
