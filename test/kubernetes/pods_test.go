package kubernetes

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"caisson/test/daemon"
	"caisson/test/harness"
	"caisson/test/leak"
)

// defaultRuntime makes a stock containerd run pods without a RuntimeClass, which
// static pods cannot have, in Caisson.
const defaultRuntime = `[plugins."io.containerd.cri.v1.runtime".containerd]
default_runtime_name = "caisson"
`

// TestStaticPods runs everything beside one kubelet: pods of all kinds at once
// first, then crashes beside them, and their end.
func TestStaticPods(t *testing.T) {
	needPrograms(t)
	for _, engine := range engines {
		t.Run(engine, func(t *testing.T) { testStaticPods(t, engine) })
	}
}

func testStaticPods(t *testing.T, engine string) {
	opts := daemon.Options{Engine: engine, HostPorts: true}
	if engine == daemon.EngineStock {
		opts.EngineConfig = defaultRuntime
	}
	h := harness.Start(t, opts)
	k := startKubelet(t, h, "")
	k.lasting = []string{"two", "liveness", "shared", "hostnet", "hostport", "counter", "writer"}
	if olderRunc() == "" {
		k.lasting = append(k.lasting, "users")
	}
	pods := append([]string{"oom"}, k.lasting...)
	for _, name := range pods {
		k.run(name)
	}
	t.Run("Containers", k.testContainers)
	t.Run("LivenessProbe", k.testLivenessProbe)
	t.Run("SharedProcesses", k.testSharedProcesses)
	t.Run("UserNamespace", k.testUserNamespace)
	t.Run("OOMKilled", k.testOOMKilled)
	t.Run("HostNetwork", k.testHostNetwork)
	t.Run("HostPort", k.testHostPort)
	t.Run("LogRotation", k.testLogRotation)
	t.Run("NoPause", func(t *testing.T) { expectNoPause(t, h, k.cri) })
	t.Run("KubeletCrash", k.testKubeletCrash)
	if h.Stock() {
		t.Run("ContainerdCrash", k.testContainerdCrash)
	}
	t.Run("DaemonCrash", k.testDaemonCrash)
	// Last: the daemon that started again is to do it.
	k.delete(pods...)
	expectNoHostPort(t)
	t.Run("Deletion", k.testDeletion)
}

// testContainers looks at a pod with an init container, a sidecar, a volume, a
// network of its own and probes of both kinds, and that it is one of ours.
func (k *kubelet) testContainers(t *testing.T) {
	p := k.awaitPod(t, "two", pod.ready)
	if p.Status.Phase != "Running" || len(p.Status.ContainerStatuses) != 2 || len(p.Status.InitContainerStatuses) != 2 {
		t.Fatalf("status: %+v", p.Status)
	}
	if end := p.Status.InitContainerStatuses[0].State.Terminated; end == nil || end.ExitCode != 0 || end.Reason != "Completed" {
		t.Errorf("init container: %+v", end)
	}
	for _, c := range append(p.Status.ContainerStatuses, p.Status.InitContainerStatuses[1]) {
		if !c.Ready || c.RestartCount != 0 || c.State.Running == nil {
			t.Errorf("container: %+v", c)
		}
	}
	if got, err := get("http://" + p.Status.PodIP + ":8080/file"); err != nil || string(got) != "from init\n" {
		t.Errorf("the pod serves %q, %v", got, err)
	}
	log, err := os.ReadFile(k.logFile(p, "client", 0))
	if err != nil || !strings.HasSuffix(string(log), " stdout F from init\n") {
		t.Errorf("log: %q, %v", log, err)
	}
	sandboxes, err := os.ReadDir(filepath.Join(k.h.State, "s"))
	if err != nil || len(sandboxes) == 0 {
		t.Errorf("Caisson's sandboxes: %v, %v", sandboxes, err)
	}
}

func (k *kubelet) testLivenessProbe(t *testing.T) {
	p := k.awaitPod(t, "liveness", func(p pod) bool {
		return p.ready() && p.Status.ContainerStatuses[0].RestartCount > 0
	})
	c := p.Status.ContainerStatuses[0]
	if end := c.LastState.Terminated; c.RestartCount != 1 || end == nil || end.ExitCode != 137 {
		t.Errorf("container: %+v, ended: %+v", c, end)
	}
}

func (k *kubelet) testSharedProcesses(t *testing.T) {
	p := k.awaitPod(t, "shared", pod.ready)
	one := p.Status.ContainerStatuses[0].id()
	seen := k.sharedProcesses(p)
	for _, want := range []string{"sleep 9001", "sleep 9002"} {
		if !strings.Contains(seen, want) {
			t.Errorf("no %q among the processes that a container sees:\n%s", want, seen)
		}
	}
	if first := k.cri.Shell(one, "tr '\\0' ' ' </proc/1/cmdline"); strings.Contains(first, "sleep") {
		t.Errorf("process 1 is a container's: %s", first)
	}
}

// sharedProcesses is what a container of the pod sees.
func (k *kubelet) sharedProcesses(p pod) string {
	k.t.Helper()
	return k.cri.Shell(p.Status.ContainerStatuses[0].id(), "for p in /proc/[0-9]*; do tr '\\0' ' ' <$p/cmdline; echo; done")
}

func (k *kubelet) testUserNamespace(t *testing.T) {
	if why := olderRunc(); why != "" {
		t.Skip(why)
	}
	p := k.awaitPod(t, "users", pod.ready)
	id := p.Status.ContainerStatuses[0].id()
	ids := strings.Fields(k.cri.Shell(id, "cat /proc/self/uid_map"))
	if len(ids) != 3 || ids[0] != "0" || ids[1] == "0" {
		t.Errorf("uid_map: %q", ids)
	}
	if owner := k.cri.Shell(id, "stat -c %u:%g /data/file"); owner != "0:0\n" {
		t.Errorf("owner of a file in a volume: %s", owner)
	}
}

// olderRunc says why pods cannot have user namespaces, if they cannot: kubelet
// mounts files into each container, which needs mounts with mapped ids.
func olderRunc() string {
	out, err := exec.Command("runc", "--version").Output()
	if err != nil {
		return fmt.Sprintf("hostUsers: false needs runc 1.2 or newer in PATH: %v", err)
	}
	var major, minor int
	if _, err := fmt.Sscanf(string(out), "runc version %d.%d", &major, &minor); err != nil || major < 1 || major == 1 && minor < 2 {
		line, _, _ := strings.Cut(string(out), "\n")
		return fmt.Sprintf("hostUsers: false needs runc 1.2 or newer in PATH, which has %q", line)
	}
	return ""
}

func (k *kubelet) testOOMKilled(t *testing.T) {
	p := k.awaitPod(t, "oom", func(p pod) bool { return p.Status.Phase == "Failed" })
	end := p.Status.ContainerStatuses[0].State.Terminated
	if end == nil || end.Reason != "OOMKilled" || end.ExitCode != 137 {
		t.Errorf("ended: %+v", end)
	}
}

func (k *kubelet) testHostNetwork(t *testing.T) {
	p := k.awaitPod(t, "hostnet", pod.ready)
	want, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.TrimSpace(k.cri.Shell(p.Status.ContainerStatuses[0].id(), "readlink /proc/self/ns/net")); got != want {
		t.Errorf("network namespace: %s, the host's is %s", got, want)
	}
}

// testHostPort asks a pod's web server by way of its node.
func (k *kubelet) testHostPort(t *testing.T) {
	k.awaitPod(t, "hostport", pod.ready)
	for _, host := range []string{nodeIP, "127.0.0.1"} {
		if got, err := get("http://" + host + ":" + hostPort + "/name"); err != nil || string(got) != "hostport-"+node+"\n" {
			t.Errorf("%s serves %q, %v", host, got, err)
		}
	}
}

// hostPort is the one of testdata/hostport.yaml.
const hostPort = "18080"

// expectNoHostPort looks for rules of a host port whose pod is gone.
func expectNoHostPort(t *testing.T) {
	t.Helper()
	res := command(t, "iptables-save", "", nil)
	if res.Code != 0 || strings.Contains(res.Stdout, hostPort) {
		t.Errorf("iptables-save: exit code %d\n%s%s", res.Code, res.Stdout, res.Stderr)
	}
}

// expectNoPause: no image of a pause container was pulled, and no process of a
// shim runs.
func expectNoPause(t *testing.T, h *harness.Host, cri *harness.CRI) {
	t.Helper()
	resp, err := cri.Images.ListImages(h.Context(time.Minute), &runtime.ListImagesRequest{})
	if err != nil || len(resp.Images) == 0 {
		t.Fatalf("images: %v, %v", resp, err)
	}
	for _, image := range resp.Images {
		if strings.Contains(fmt.Sprint(image.RepoTags), "pause") {
			t.Errorf("image %v", image)
		}
	}
	limit := 20 * time.Second // containerd-shim-caisson-v2 runs for a moment when a container ends
	if err := daemon.Poll(h.Context(limit), limit, func() error {
		if found := shims(t); len(found) > 0 {
			return fmt.Errorf("processes: %q", found)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
}

// shims are the processes of shims of this test, which all are in its mount namespace.
func shims(t *testing.T) (found []string) {
	t.Helper()
	links, err := filepath.Glob("/proc/[0-9]*/exe")
	if err != nil {
		t.Error(err)
	}
	for _, link := range links {
		program, _ := os.Readlink(link) // it ended
		if !strings.HasPrefix(filepath.Base(program), "containerd-shim") {
			continue
		}
		if ours, _ := sameFile("/proc/self/ns/mnt", filepath.Join(filepath.Dir(link), "ns/mnt")); ours {
			found = append(found, program)
		}
	}
	return found
}

func sameFile(a, b string) (bool, error) {
	one, err := os.Stat(a)
	if err != nil {
		return false, err
	}
	other, err := os.Stat(b)
	return err == nil && os.SameFile(one, other), err
}

// testLogRotation finds a full log renamed, and what is written later in a new one.
func (k *kubelet) testLogRotation(t *testing.T) {
	p := k.awaitPod(t, "writer", pod.ready)
	path := k.logFile(p, "main", 0)
	limit := 30 * time.Second
	err := daemon.Poll(harness.Context(t, limit), limit, func() error {
		files, err := filepath.Glob(path + ".*")
		if err != nil || len(files) == 0 {
			return fmt.Errorf("no rotated log beside %s: %v", path, err)
		}
		log, err := os.ReadFile(path)
		if err == nil && (!strings.Contains(string(log), " stdout F more\n") || strings.Contains(string(log), " stdout F 1\n")) {
			err = fmt.Errorf("the new log has %d bytes: %.200q", len(log), log)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// testDeletion takes away a pod's file, and expects a graceful end after which
// nothing is left of the pod. No other pod runs: it would have new processes all
// the time, such as those of its probes.
func (k *kubelet) testDeletion(t *testing.T) {
	before, err := leak.Take()
	if err != nil {
		t.Fatal(err)
	}
	k.run("graceful")
	p := k.awaitPod(t, "graceful", pod.ready)
	if running, err := leftOf(before, k.h); err != nil || len(running) < 5 {
		t.Errorf("of a running pod we see %q only, %v", running, err)
	}
	log, err := os.Open(k.logFile(p, "main", 0)) // the file goes with the pod
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	k.delete("graceful")

	text := make([]byte, 4096)
	n, err := log.Read(text)
	if err != nil {
		t.Fatal(err)
	}
	var said []string
	for line := range strings.Lines(string(text[:n])) {
		_, word, _ := strings.Cut(strings.TrimSpace(line), " stdout F ")
		said = append(said, word)
	}
	if want := []string{"started", "preStop", "terminating", "done"}; !slices.Equal(said, want) {
		t.Errorf("the container wrote %q, not %q", said, want)
	}

	awaitNothingLeft(t, before, k.h, 20*time.Second)
	if _, err := os.Stat(filepath.Join(k.dir, "root/pods", p.Metadata.UID)); !os.IsNotExist(err) {
		t.Errorf("kubelet's directory of the pod: %v", err)
	}
}
