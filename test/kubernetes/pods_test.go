package kubernetes

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"caisson/test/daemon"
	"caisson/test/harness"
	"caisson/test/leak"
)

// TestStaticPods runs everything beside one kubelet: pods of all kinds at once
// first, then crashes beside them, and their end.
func TestStaticPods(t *testing.T) {
	if os.Getenv("CAISSON_TEST_KUBELET") == "" {
		t.Skip("no kubelet: run make test-kubernetes")
	}
	h := harness.Start(t, daemon.Options{})
	k := startKubelet(t, h)

	k.lasting = []string{"two", "liveness", "shared", "hostnet", "counter", "writer"}
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
	t.Run("LogRotation", k.testLogRotation)
	t.Run("KubeletCrash", k.testKubeletCrash)
	t.Run("DaemonCrash", k.testDaemonCrash)
	t.Run("Deletion", k.testDeletion) // last: the daemon that started again is to do it
	k.delete(pods...)
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
	seen := k.cri.Shell(one, "for p in /proc/[0-9]*; do tr '\\0' ' ' <$p/cmdline; echo; done")
	for _, want := range []string{"sleep 9001", "sleep 9002"} {
		if !strings.Contains(seen, want) {
			t.Errorf("no %q among the processes that a container sees:\n%s", want, seen)
		}
	}
	if first := k.cri.Shell(one, "tr '\\0' ' ' </proc/1/cmdline"); strings.Contains(first, "sleep") {
		t.Errorf("process 1 is a container's: %s", first)
	}
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

// runs is the container ids and restart counts of the pods that run on through crashes.
func (k *kubelet) runs(t *testing.T) []string {
	t.Helper()
	var all []string
	for _, name := range k.lasting {
		p := k.awaitPod(t, name, pod.ready)
		for _, c := range p.Status.ContainerStatuses {
			all = append(all, fmt.Sprintf("%s/%s: %s, restarts: %d", name, c.Name, c.id(), c.RestartCount))
		}
	}
	return all
}

// testKubeletCrash also has the counter count some seconds beside the new
// kubelet, in which that looks at all pods.
func (k *kubelet) testKubeletCrash(t *testing.T) {
	before := k.runs(t)
	k.kill()
	k.start()
	k.awaitCount(t, k.awaitCount(t, 0)+150)
	k.compareRuns(t, before)
}

// testDaemonCrash kills the daemon while the counter writes, and reads every
// number of it, before, without and after the daemon.
func (k *kubelet) testDaemonCrash(t *testing.T) {
	before := k.runs(t)
	n := k.awaitCount(t, 10)
	k.h.Crash()
	k.h.StartDaemon()
	k.awaitCount(t, n+150)
	k.compareRuns(t, before)
	k.cri.Shell(k.awaitPod(t, "counter", pod.ready).Status.ContainerStatuses[0].id(), "true")
}

func (k *kubelet) compareRuns(t *testing.T, before []string) {
	t.Helper()
	if after := k.runs(t); !slices.Equal(before, after) {
		t.Errorf("containers:\n%s\nwere:\n%s", strings.Join(after, "\n"), strings.Join(before, "\n"))
	}
}

// awaitCount waits until the log of the counter has so many lines, and returns
// how many it has.
func (k *kubelet) awaitCount(t *testing.T, atLeast int) (n int) {
	t.Helper()
	path := k.logFile(k.awaitPod(t, "counter", pod.ready), "main", 0)
	limit := time.Minute
	err := daemon.Poll(harness.Context(t, limit), limit, func() (err error) {
		if n, err = counted(path); err == nil && n < atLeast {
			err = fmt.Errorf("the counter is at %d, not at %d", n, atLeast)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// counted is how many lines a log of the counter has, each the one after the
// other; the last line may not be whole.
func counted(path string) (int, error) {
	log, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	lines := strings.Split(string(log), "\n")
	for n, line := range lines[:len(lines)-1] {
		if _, got, _ := strings.Cut(line, " stdout F "); got != strconv.Itoa(n) {
			return n, fmt.Errorf("log of the counter: line %d is %q", n, line)
		}
	}
	return len(lines) - 1, nil
}

// testDeletion takes away a pod's file, and expects a graceful end after which
// nothing is left of the pod.
func (k *kubelet) testDeletion(t *testing.T) {
	before, err := leak.Take()
	if err != nil {
		t.Fatal(err)
	}
	k.run("graceful")
	p := k.awaitPod(t, "graceful", pod.ready)
	if running, err := before.New(k.h.Token); err != nil || len(running) < 5 {
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

	limit := 20 * time.Second // kubelet removes the pod's cgroup and volumes after CRI has done its part
	err = daemon.Poll(harness.Context(t, limit), limit, func() error {
		left, err := before.New(k.h.Token)
		if err == nil && len(left) > 0 {
			err = fmt.Errorf("left of the pod: %q", left)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(k.dir, "root/pods", p.Metadata.UID)); !os.IsNotExist(err) {
		t.Errorf("kubelet's directory of the pod: %v", err)
	}
}
