package integration

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"caisson/test/daemon"
	"caisson/test/harness"
)

// TestStockVersions smokes out other versions of containerd, whose names are in
// CAISSON_TEST_CONTAINERDS: v2.2.9 is the program containerd-v2.2.9 in build/.
// `make test-containerd-versions` builds and names them.
func TestStockVersions(t *testing.T) {
	versions := strings.Fields(os.Getenv("CAISSON_TEST_CONTAINERDS"))
	if len(versions) == 0 {
		t.Skip("CAISSON_TEST_CONTAINERDS names no versions: see make test-containerd-versions")
	}
	// Those before 2.3 make it, wherever they are told to work.
	const theirs = "/run/containerd"
	if err := os.Mkdir(theirs, 0o711); err == nil {
		t.Cleanup(func() {
			if err := os.Remove(theirs); err != nil {
				t.Error(err)
			}
		})
	}
	for _, version := range versions {
		t.Run(version, func(t *testing.T) {
			opts := stock
			opts.Containerd = "containerd-" + version
			t.Run("ctr", func(t *testing.T) { smokeCtr(t, opts) })
			t.Run("CRI", func(t *testing.T) { smokeCRI(t, opts) })
			t.Run("restart", func(t *testing.T) { smokeRestart(t, opts) })
		})
	}
}

func smokeCtr(t *testing.T, opts daemon.Options) {
	h := harness.Start(t, opts)
	t.Log(h.Ctr("version"))
	res := h.TryCtr(append(ctrRun(h, "--rm"), harness.Image, "fg", "sh", "-c", "echo hello; exit 7")...)
	if res.Code != 7 || res.Stdout != "hello\n" {
		t.Errorf("ctr run: %+v", res)
	}
	cfg := filepath.Join(h.Dir, "pod.json")
	if err := os.WriteFile(cfg, []byte(`{"hostname": "box"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	h.Ctr("sandboxes", "create", "--runtime", harness.Runtime, cfg, "sb")
	if out := h.Ctr(append(ctrRun(h, "--rm", "--sandbox", "sb"), harness.Image, "in", "echo", "inside")...); out != "inside\n" {
		t.Errorf("in a sandbox: %q", out)
	}
	h.Ctr("sandboxes", "remove", "sb")
	if res := h.TryCaisson("doctor", "--config", h.ConfigFile, "--containerd-address", h.Address); res.Code != 0 {
		t.Errorf("caisson doctor: %s", res.Stdout)
	}
}

func smokeCRI(t *testing.T, opts daemon.Options) {
	h := harness.Start(t, opts)
	cri := h.CRI()
	cfg := cri.PodConfig(runtime.NamespaceMode_POD)
	pod := cri.RunPod(cfg)
	checkPod(t, h, cri, cfg, pod)
	one := cri.ContainerConfig("one", "echo hello from one; echo oops >&2; exec sleep 1000")
	one.Envs = []*runtime.KeyValue{{Key: "GREETING", Value: []byte("hi")}}
	one.WorkingDir = "/tmp"
	id := cri.RunContainer(pod, cfg, one)
	checkContainer(t, h, cri, cfg, pod, id)
	checkLogs(t, h, cri, cfg, id)
	expectProcesses(t, h, map[string]int{"caissond": 1, "keeper": 1, opts.Containerd: 1, "caisson-monitor": 2})
	stopPod(t, h, cri, cfg, pod, id)
}

func smokeRestart(t *testing.T, opts daemon.Options) {
	h := harness.Start(t, opts)
	cri := h.CRI()
	p := startStockPod(t, h, cri, runtime.NamespaceMode_POD)
	if err := h.KillContainerd(); err != nil {
		t.Fatal(err)
	}
	if err := h.StartContainerd(h.Context(time.Minute)); err != nil {
		t.Fatal(err)
	}
	expectReady(t, h, cri, p.id)
	cri.AwaitState(p.ender, runtime.ContainerState_CONTAINER_RUNNING)
	// In the background: the end of the container ends what is in it.
	cri.Shell(p.writer, "(usleep 100000; touch /stop) >/dev/null 2>&1 &")
	if status := cri.AwaitState(p.writer, runtime.ContainerState_CONTAINER_EXITED); status.ExitCode != 3 {
		t.Errorf("exit code of the writer %d", status.ExitCode)
	}
	checkLog(t, filepath.Join(p.cfg.LogDirectory, "writer.log"), 1)
	cri.Remove(p.id)
}
