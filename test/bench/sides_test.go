package bench

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
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

// ours tells whether the side's pods are Caisson's.
func (s side) ours() bool { return s.cri.Handler == harness.Handler }

// logLevel is what people run servers with.
const logLevel = "info"

var runtimes = []string{"runc", "crun"}

func sideNames() (names []string) {
	for _, rt := range runtimes {
		names = append(names, "containerd+"+rt, "caisson+"+rt, "caisson in containerd+"+rt)
	}
	return names
}

// startSides starts the servers of the chosen sides with those OCI runtimes. They run
// until the test ends.
func startSides(t *testing.T, runtimes ...string) (sides []side) {
	t.Helper()
	for _, rt := range runtimes {
		peer, ours, both := "containerd+"+rt, "caisson+"+rt, "caisson in containerd+"+rt
		if chosen(*only, peer) || chosen(*only, both) {
			config, handler := pauseConfig, "runc"
			if rt == "crun" {
				config, handler = config+claimConfig(t), claimHandler
			}
			h := harness.Start(t, daemon.Options{Engine: daemon.EngineStock, Runtime: rt, EngineConfig: config, LogLevel: logLevel, Volatile: true})
			h.CRI() // gives it the image
			h.ImportArchive(harness.CRINamespace, pauseImage(t))
			if chosen(*only, peer) {
				sides = append(sides, side{peer, h, h.ConnectCRI(handler)})
			}
			if chosen(*only, both) {
				sides = append(sides, side{both, h, h.ConnectCRI(harness.Handler)})
			}
		}
		if chosen(*only, ours) {
			h := harness.Start(t, daemon.Options{Engine: daemon.EngineEmbedded, Runtime: rt, LogLevel: logLevel, Volatile: true})
			sides = append(sides, side{ours, h, h.CRI()})
		}
	}
	if len(sides) == 0 {
		t.Skipf("no side with %v is called %q", runtimes, *only)
	}
	return sides
}

// The pause image of containerd's own pods: a program that sleeps, as small as it gets.
const (
	pauseRef    = "docker.io/library/caisson-pause:latest"
	pauseConfig = "[plugins.'io.containerd.cri.v1.images'.pinned_images]\nsandbox = '" + pauseRef + "'\n"
	pauseSource = "#include <unistd.h>\nint main(void) { for (;;) pause(); }\n"
)

// claimHandler is containerd's own way with a crun that takes its specifications.
const claimHandler = "crun"

func claimConfig(t *testing.T) string {
	t.Helper()
	return fmt.Sprintf(`
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.%[1]s]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.%[1]s.options]
BinaryName = %[2]q
`, claimHandler, compile(t, "crun/crun.c"))
}

func pauseImage(t *testing.T) []byte {
	t.Helper()
	source := filepath.Join(t.TempDir(), "pause.c")
	if err := os.WriteFile(source, []byte(pauseSource), 0o600); err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(compile(t, source))
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

// compile makes a small program of a file in C.
func compile(t *testing.T, source string) (program string) {
	t.Helper()
	program = filepath.Join(t.TempDir(), strings.TrimSuffix(filepath.Base(source), ".c"))
	out, err := exec.Command("musl-gcc", "-static", "-Os", "-s", "-Wall", "-Wextra", "-Werror", "-o", program, source).CombinedOutput()
	if err != nil {
		t.Fatalf("build %s: %v: %s", source, err, out)
	}
	return program
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
	return s.create(t, pod, cfg, s.containerConfig(cfg, script))
}

func (s side) containerConfig(pod *runtime.PodSandboxConfig, script string) *runtime.ContainerConfig {
	ctr := s.cri.ContainerConfig("c", script)
	ctr.Linux.SecurityContext.NamespaceOptions.Network = pod.Linux.SecurityContext.NamespaceOptions.Network
	return ctr
}

func (s side) create(t testing.TB, pod string, cfg *runtime.PodSandboxConfig, ctr *runtime.ContainerConfig) string {
	t.Helper()
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

// execStdin gives a process input, which it counts, and waits for its end.
func (s side) execStdin(t testing.TB, id string, input []byte) {
	t.Helper()
	resp, err := s.cri.Exec(s.Context(2*time.Minute), &runtime.ExecRequest{
		ContainerId: id, Cmd: []string{"/bin/sh", "-c", fmt.Sprintf("[ $(wc -c) = %d ]", len(input))}, Stdin: true, Stdout: true, Stderr: true,
	})
	if err != nil {
		t.Fatalf("%s: Exec: %v", s.name, err)
	}
	session := s.Session(resp.Url, "stdin", "stdout", "stderr")
	if _, err := session.Stdin.Write(input); err != nil {
		t.Fatalf("%s: stdin: %v", s.name, err)
	}
	_ = session.Stdin.Close() // the connection may end before it returns; the code says how it went
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
