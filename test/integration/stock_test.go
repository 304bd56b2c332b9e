package integration

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"caisson/test/daemon"
	"caisson/test/harness"
)

// stock is an unmodified containerd beside caissond, with the configuration that
// `caisson config containerd` prints.
var stock = daemon.Options{Engine: daemon.EngineStock}

// TestStock runs tests of the embedded engine against a stock containerd that
// has Caisson as proxy plugin, and by its shim binary. CAISSON_TEST_ENGINE=stock
// does so for any test.
func TestStock(t *testing.T) {
	t.Setenv("CAISSON_TEST_ENGINE", daemon.EngineStock)
	t.Run("CtrRunForeground", TestCtrRunForeground)
	t.Run("CtrRunDetached", TestCtrRunDetached)
	t.Run("CtrSandboxes", TestCtrSandboxes)
	t.Run("TaskEvents", TestTaskEvents)
	t.Run("CLISandbox", TestCLISandbox)
	t.Run("CRINode", TestCRINode)
	t.Run("CRIPod", TestCRIPod)
	t.Run("CRIShared", TestCRIShared)
	t.Run("CRIStreams", TestCRIStreams)
	t.Run("CRIEvents", TestCRIEvents)
	t.Run("CRIBadInput", TestCRIBadInput)
}

// TestStockProcesses: a pod through a stock containerd has no pause image pulled
// and no process of a shim.
func TestStockProcesses(t *testing.T) {
	h := harness.Start(t, stock)
	cri := h.CRI()
	cfg := cri.PodConfig(runtime.NamespaceMode_POD)
	pod := cri.RunPod(cfg)
	cri.RunContainer(pod, cfg, cri.ContainerConfig("a", "exec sleep 1000"))
	cri.RunContainer(pod, cfg, cri.ContainerConfig("b", "exec sleep 1000"))
	expectProcesses(t, h, map[string]int{"caissond": 1, "keeper": 1, "containerd": 1, "caisson-monitor": 2})

	images, err := cri.Images.ListImages(h.Context(time.Minute), &runtime.ListImagesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, image := range images.Images {
		if !cmp.Equal(image.RepoTags, []string{harness.Image}) {
			t.Errorf("image %v", image.RepoTags)
		}
	}
}

// expectProcesses waits for exactly these: a runtime or shim binary that has
// just answered may still be exiting.
func expectProcesses(t *testing.T, h *harness.Host, want map[string]int) {
	t.Helper()
	var diff string
	if err := daemon.Poll(t.Context(), 5*time.Second, func() error {
		if diff = cmp.Diff(want, hostProcesses(t, h)); diff != "" {
			return errNotEnded
		}
		return nil
	}); err != nil {
		t.Error(diff)
	}
}

// TestStockDoctor asks for advice beside a containerd that is as it should be,
// and one that is not.
func TestStockDoctor(t *testing.T) {
	h := harness.Start(t, stock)
	args := []string{"doctor", "--config", h.ConfigFile, "--containerd-address", h.Address}
	res := h.TryCaisson(append(args, "--state", h.State)...)
	if res.Code != 0 {
		t.Errorf("exit code %d:\n%s%s", res.Code, res.Stdout, res.Stderr)
	}
	for _, line := range []string{
		"ok    caissond             answers at " + h.State + "/shim.sock\n",
		"ok    containerd           ",
		"ok    containerd plugin    sandboxer \"caisson\"\n",
		"ok    CRI handler caisson  sandboxer \"caisson\"\n",
		"ok    shim binary          ",
		"ok    CNI configuration    network " + h.Token,
		" OCI runtime runc     runc version ",
	} {
		if !strings.Contains(res.Stdout, line) {
			t.Errorf("no line %q in\n%s", line, res.Stdout)
		}
	}

	res = h.TryCaisson(append(args, "--state", h.Dir+"/elsewhere")...)
	if res.Code != 1 || !strings.Contains(res.Stdout, "fail  containerd plugin    sandboxer \"caisson\" is expected at "+h.State) ||
		!strings.Contains(res.Stdout, "-> print it again: caisson config containerd --state "+h.Dir+"/elsewhere\n") {
		t.Errorf("with another state directory: exit code %d:\n%s%s", res.Code, res.Stdout, res.Stderr)
	}
	// The keeper of connections does not count as a daemon.
	h.Crash()
	if res = h.TryCaisson(append(args, "--state", h.State)...); !strings.Contains(res.Stdout, "does not run: nothing answers at "+h.State+"/shim.sock") {
		t.Errorf("without a daemon: exit code %d:\n%s%s", res.Code, res.Stdout, res.Stderr)
	}
}

// TestStockShimSandboxer runs a pod through containerd's own sandboxer for
// shims, which needs no proxy plugin.
func TestStockShimSandboxer(t *testing.T) {
	h := harness.Start(t, stock)
	cri := h.CRI()
	for name, mode := range modes {
		t.Run(name, func(t *testing.T) {
			cfg := cri.PodConfig(mode)
			resp, err := cri.RunPodSandbox(h.Context(time.Minute), &runtime.RunPodSandboxRequest{Config: cfg, RuntimeHandler: "caisson-shim"})
			if err != nil {
				t.Fatal(err)
			}
			expectReady(t, h, cri, resp.PodSandboxId)
			a := cri.RunContainer(resp.PodSandboxId, cfg, cri.ContainerConfig("a", "exec sleep 1000"))
			b := cri.RunContainer(resp.PodSandboxId, cfg, cri.ContainerConfig("b", "exec sleep 1000"))
			const look = "readlink /proc/self/ns/net; readlink /proc/self/ns/ipc; hostname; cat /etc/hostname"
			if one, two := cri.Shell(a, look), cri.Shell(b, look); one != two {
				t.Errorf("the containers see different pods:\n%s\n%s", one, two)
			}
			cri.Remove(resp.PodSandboxId)
			expectProcesses(t, h, map[string]int{"caissond": 1, "keeper": 1, "containerd": 1})
			if left := stateFiles(t, h); len(left) > 0 {
				t.Errorf("left in the state directory: %q", left)
			}
		})
	}
}
