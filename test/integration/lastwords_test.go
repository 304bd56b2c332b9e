package integration

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"caisson/test/daemon"
	"caisson/test/harness"
)

// TestCrashKeepsLastWords: a container writes and ends while there is no daemon, and so
// nobody who writes its log. The next one does.
func TestCrashKeepsLastWords(t *testing.T) {
	h := harness.Start(t, daemon.Options{Engine: daemon.EngineEmbedded})
	cri := h.CRI()
	trigger := filepath.Join(h.Dir, "trigger")
	if err := syscall.Mkfifo(trigger, 0o600); err != nil {
		t.Fatal(err)
	}
	cfg := cri.PodConfig(runtime.NamespaceMode_NODE)
	pod := cri.RunPod(cfg)
	c := cri.ContainerConfig("speaks", "read _ </trigger; echo last words; echo of an error >&2; exit 3")
	c.Mounts = []*runtime.Mount{{HostPath: trigger, ContainerPath: "/trigger"}}
	id := cri.RunContainer(pod, cfg, c)
	resp, err := cri.ContainerStatus(h.Context(time.Minute), &runtime.ContainerStatusRequest{ContainerId: id, Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	process := pidfd(t, verbosePid(t, resp.Info))
	h.Crash()
	if err := os.WriteFile(trigger, []byte("now\n"), 0); err != nil {
		t.Fatal(err)
	}
	awaitEnd(t, h, process)
	h.StartDaemon()
	if status := cri.AwaitState(id, runtime.ContainerState_CONTAINER_EXITED); status.ExitCode != 3 {
		t.Errorf("exit code %d", status.ExitCode)
	}
	text, err := os.ReadFile(filepath.Join(cfg.LogDirectory, c.LogPath))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{" stdout F last words\n", " stderr F of an error\n"} {
		if !strings.Contains(string(text), want) {
			t.Errorf("the log is %q, without %q", text, want)
		}
	}
}
