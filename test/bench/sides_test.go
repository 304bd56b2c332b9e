package bench

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"caisson/test/daemon"
	"caisson/test/harness"
	"caisson/test/image"
)

// side is one of those that are compared: a CRI, and a handler of it.
type side struct {
	name string
	*harness.Host
	cri *harness.CRI
}

var runtimes = []string{"runc", "crun"}

func sideNames() (names []string) {
	for _, rt := range runtimes {
		names = append(names, "containerd+"+rt, "caisson+"+rt, "caisson in containerd+"+rt)
	}
	return names
}

// startSides starts the servers of the chosen sides. They run until the test ends.
func startSides(t *testing.T) (sides []side) {
	t.Helper()
	for _, rt := range runtimes {
		peer, ours, both := "containerd+"+rt, "caisson+"+rt, "caisson in containerd+"+rt
		if chosen(*only, peer) || chosen(*only, both) {
			h := harness.Start(t, daemon.Options{Engine: daemon.EngineStock, Runtime: rt, EngineConfig: pauseConfig})
			h.CRI() // gives it the image
			h.ImportArchive(harness.CRINamespace, pauseImage(t))
			if chosen(*only, peer) {
				sides = append(sides, side{peer, h, h.ConnectCRI("runc")})
			}
			if chosen(*only, both) {
				sides = append(sides, side{both, h, h.ConnectCRI(harness.Handler)})
			}
		}
		if chosen(*only, ours) {
			h := harness.Start(t, daemon.Options{Engine: daemon.EngineEmbedded, Runtime: rt})
			sides = append(sides, side{ours, h, h.CRI()})
		}
	}
	if len(sides) == 0 {
		t.Fatalf("no side is called %q", *only)
	}
	return sides
}

// The pause image of containerd's own pods: a program that sleeps, as small as it gets.
const (
	pauseRef    = "docker.io/library/caisson-pause:latest"
	pauseConfig = "[plugins.'io.containerd.cri.v1.images'.pinned_images]\nsandbox = '" + pauseRef + "'\n"
	pauseSource = "#include <unistd.h>\nint main(void) { for (;;) pause(); }\n"
)

func pauseImage(t *testing.T) []byte {
	t.Helper()
	dir := t.TempDir()
	source, program := filepath.Join(dir, "pause.c"), filepath.Join(dir, "pause")
	if err := os.WriteFile(source, []byte(pauseSource), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("musl-gcc", "-static", "-Os", "-s", "-o", program, source).CombinedOutput(); err != nil {
		t.Fatalf("build the pause program: %v: %s", err, out)
	}
	content, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	var archive bytes.Buffer
	err = image.Write(&archive, image.Options{
		Ref: pauseRef, Entrypoint: []string{"/pause"},
		Files: map[string]string{"/pause": string(content)}, Modes: map[string]int64{"/pause": 0o755},
	})
	if err != nil {
		t.Fatal(err)
	}
	return archive.Bytes()
}

// waits is what a container runs that does nothing until it is told to end.
const waits = "trap 'exit 0' TERM; sleep 1000000 & wait"

// runPod runs an empty pod.
func (s side) runPod(t testing.TB, cfg *runtime.PodSandboxConfig) string {
	t.Helper()
	resp, err := s.cri.RunPodSandbox(s.Context(2*time.Minute), &runtime.RunPodSandboxRequest{Config: cfg, RuntimeHandler: s.cri.Handler})
	if err != nil {
		t.Fatalf("%s: RunPodSandbox: %v", s.name, err)
	}
	return resp.PodSandboxId
}

func (s side) createContainer(t testing.TB, pod string, cfg *runtime.PodSandboxConfig, script string) string {
	t.Helper()
	ctr := s.cri.ContainerConfig("c", script)
	ctr.Linux.SecurityContext.NamespaceOptions.Network = cfg.Linux.SecurityContext.NamespaceOptions.Network
	resp, err := s.cri.CreateContainer(s.Context(2*time.Minute), &runtime.CreateContainerRequest{PodSandboxId: pod, Config: ctr, SandboxConfig: cfg})
	if err != nil {
		t.Fatalf("%s: CreateContainer: %v", s.name, err)
	}
	return resp.ContainerId
}

func (s side) startContainer(t testing.TB, id string) {
	t.Helper()
	if _, err := s.cri.StartContainer(s.Context(2*time.Minute), &runtime.StartContainerRequest{ContainerId: id}); err != nil {
		t.Fatalf("%s: StartContainer: %v", s.name, err)
	}
}

func (s side) exec(t testing.TB, id string, cmd ...string) {
	t.Helper()
	resp, err := s.cri.ExecSync(s.Context(2*time.Minute), &runtime.ExecSyncRequest{ContainerId: id, Cmd: cmd})
	if err != nil || resp.ExitCode != 0 {
		t.Fatalf("%s: ExecSync: %v, %v", s.name, resp, err)
	}
}

func (s side) stopContainer(t testing.TB, id string) {
	t.Helper()
	if _, err := s.cri.StopContainer(s.Context(2*time.Minute), &runtime.StopContainerRequest{ContainerId: id, Timeout: 30}); err != nil {
		t.Fatalf("%s: StopContainer: %v", s.name, err)
	}
}

func (s side) stopPod(t testing.TB, id string) {
	t.Helper()
	if _, err := s.cri.StopPodSandbox(s.Context(2*time.Minute), &runtime.StopPodSandboxRequest{PodSandboxId: id}); err != nil {
		t.Fatalf("%s: StopPodSandbox: %v", s.name, err)
	}
}

func (s side) removePod(t testing.TB, id string) {
	t.Helper()
	if _, err := s.cri.RemovePodSandbox(s.Context(2*time.Minute), &runtime.RemovePodSandboxRequest{PodSandboxId: id}); err != nil {
		t.Fatalf("%s: RemovePodSandbox: %v", s.name, err)
	}
}

// execStdin gives a process one MiB of input and waits for its end.
func (s side) execStdin(t testing.TB, id string, input []byte) {
	t.Helper()
	resp, err := s.cri.Exec(s.Context(2*time.Minute), &runtime.ExecRequest{
		ContainerId: id, Cmd: []string{"/bin/sh", "-c", "cat >/dev/null"}, Stdin: true, Stdout: true, Stderr: true,
	})
	if err != nil {
		t.Fatalf("%s: Exec: %v", s.name, err)
	}
	session := s.Session(resp.Url, "stdin", "stdout", "stderr")
	if _, err := session.Stdin.Write(input); err != nil {
		t.Fatalf("%s: stdin: %v", s.name, err)
	}
	if err := session.Stdin.Close(); err != nil {
		t.Fatalf("%s: close stdin: %v", s.name, err)
	}
	if code := session.Wait(); code != 0 {
		t.Fatalf("%s: exit code %d", s.name, code)
	}
	session.Close()
}

var networks = []struct {
	name string
	mode runtime.NamespaceMode
}{{"host network", runtime.NamespaceMode_NODE}, {"CNI bridge", runtime.NamespaceMode_POD}}

func group(what, network string) string { return fmt.Sprintf("%s, %s", what, network) }
