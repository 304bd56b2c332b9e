package integration

import (
	"bytes"
	"fmt"
	"io"
	"path/filepath"
	"sync"
	"testing"
	"time"

	sandboxapi "github.com/containerd/containerd/api/services/sandbox/v1"
	"github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/containerd/v2/core/sandbox/proxy"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"caisson/test/harness"
)

// stockPod is a pod that goes through restarts.
type stockPod struct {
	id            string
	cfg           *runtime.PodSandboxConfig
	writer, ender string // containers
	writerPid     int
	enderPid      int
}

func startStockPod(t *testing.T, h *harness.Host, cri *harness.CRI, network runtime.NamespaceMode) *stockPod {
	t.Helper()
	p := runStockPod(t, h, cri, cri.PodConfig(network), harness.Handler)
	p.ender = cri.RunContainer(p.id, p.cfg, cri.ContainerConfig("ender", "exec sleep 1000"))
	p.enderPid = containerPid(t, h, cri, p.ender)
	return p
}

// runStockPod runs a pod of one container through a runtime handler.
func runStockPod(t *testing.T, h *harness.Host, cri *harness.CRI, cfg *runtime.PodSandboxConfig, handler string) *stockPod {
	t.Helper()
	resp, err := cri.RunPodSandbox(h.Context(time.Minute), &runtime.RunPodSandboxRequest{Config: cfg, RuntimeHandler: handler})
	if err != nil {
		t.Fatalf("RunPodSandbox: %v", err)
	}
	p := &stockPod{id: resp.PodSandboxId, cfg: cfg}
	t.Cleanup(func() { cri.Remove(p.id) })
	writer := cri.ContainerConfig("writer", `i=0; while [ ! -e /stop ]; do i=$((i+1)); echo line $i; usleep 20000; done; exit 3`)
	writer.Metadata.Attempt = cfg.Metadata.Attempt
	p.writer = cri.RunContainer(p.id, cfg, writer)
	p.writerPid = containerPid(t, h, cri, p.writer)
	return p
}

// inParallel calls f for 0 to n-1, four at a time, and stops the test if it has
// failed then.
func inParallel(t *testing.T, n int, f func(i int)) {
	t.Helper()
	numbers := make(chan int, n)
	for i := range n {
		numbers <- i
	}
	close(numbers)
	var workers sync.WaitGroup
	for range 4 {
		workers.Go(func() {
			for i := range numbers {
				f(i)
			}
		})
	}
	workers.Wait()
	if t.Failed() {
		t.FailNow()
	}
}

// restarts are the ways a containerd ends before it is started again.
var restarts = []struct {
	name string
	end  func(*harness.Host) error
}{
	{"TERM", func(h *harness.Host) error { return h.StopContainerd(h.Context(time.Minute)) }},
	{"KILL", func(h *harness.Host) error { return h.KillContainerd() }},
}

// TestStockContainerdRestarts: twenty pods go on when a stock containerd is told
// to stop, and when it is killed, and starts again: the same processes, whole
// logs, streams, new containers in old pods. One container ends while it is
// away.
func TestStockContainerdRestarts(t *testing.T) {
	h := harness.Start(t, stock)
	cri := h.CRI()
	pods := make([]*stockPod, 20)
	if harness.Slow() > 1 {
		pods = pods[:5] // containerd gives up on a container that it cannot load within 10 s
	}
	configs := make([]*runtime.PodSandboxConfig, len(pods))
	for i := range configs {
		configs[i] = cri.PodConfig([]runtime.NamespaceMode{runtime.NamespaceMode_POD, runtime.NamespaceMode_NODE}[i%2])
	}
	inParallel(t, len(pods), func(i int) {
		p := runStockPod(t, h, cri, configs[i], harness.Handler)
		if i < len(restarts) {
			p.ender = cri.RunContainer(p.id, p.cfg, cri.ContainerConfig("ender", "exec sleep 1000"))
			p.enderPid = containerPid(t, h, cri, p.ender)
		}
		pods[i] = p
	})
	reader := cri.ContainerConfig("reader", "exec cat")
	reader.Stdin = true
	readerID := cri.RunContainer(pods[0].id, pods[0].cfg, reader)

	for i, restart := range restarts {
		if err := restart.end(h); err != nil {
			t.Fatal(err)
		}
		before := time.Now()
		process := pidfd(t, pods[i].enderPid)
		kill(t, pods[i].enderPid)
		awaitEnd(t, h, process)
		after := time.Now()
		if err := h.StartContainerd(h.Context(time.Minute)); err != nil {
			t.Fatal(err)
		}
		status := cri.AwaitState(pods[i].ender, runtime.ContainerState_CONTAINER_EXITED)
		checkExit(t, status, 137, before, after)
		attached(t, h, cri, readerID, "after "+restart.name+"\n")
		inParallel(t, len(pods), func(n int) {
			expectSame(t, h, cri, pods[n])
			late := cri.RunContainer(pods[n].id, pods[n].cfg, cri.ContainerConfig("late-"+restart.name, "exec sleep 1000"))
			cri.Shell(late, "true")
		})
	}
	stats, err := cri.ListPodSandboxStats(h.Context(time.Minute), &runtime.ListPodSandboxStatsRequest{})
	if err != nil || len(stats.Stats) != len(pods) {
		t.Errorf("stats of %d pods: %v", len(stats.GetStats()), err)
	}
	inParallel(t, len(pods), func(i int) {
		endWriter(t, cri, pods[i])
		cri.Remove(pods[i].id)
	})
	expectNothing(t, h, cri)
}

// TestStockShimRestarts: the same without a proxy plugin, for pods of
// containerd's own sandboxer and for containers without a sandbox.
func TestStockShimRestarts(t *testing.T) {
	h := harness.Start(t, stock)
	cri := h.CRI()
	configs := []*runtime.PodSandboxConfig{cri.PodConfig(runtime.NamespaceMode_POD), cri.PodConfig(runtime.NamespaceMode_NODE), cri.PodConfig(runtime.NamespaceMode_POD)}
	pods := make([]*stockPod, len(configs))
	inParallel(t, len(pods), func(i int) { pods[i] = runStockPod(t, h, cri, configs[i], "caisson-shim") })
	singles := make([]uint32, 3)
	name := func(i int) string { return fmt.Sprintf("single%d", i) }
	for i := range singles {
		h.Ctr(append(ctrRun(h, "-d"), harness.Image, name(i), "sh", "-c", "exec sleep 1000")...)
		task, err := loadTask(h, name(i))
		if err != nil {
			t.Fatal(err)
		}
		singles[i] = task.Pid()
	}
	for _, restart := range restarts {
		if err := restart.end(h); err != nil {
			t.Fatal(err)
		}
		if err := h.StartContainerd(h.Context(time.Minute)); err != nil {
			t.Fatal(err)
		}
		for _, p := range pods {
			expectSame(t, h, cri, p)
			late := cri.RunContainer(p.id, p.cfg, cri.ContainerConfig("late-"+restart.name, "exec sleep 1000"))
			cri.Shell(late, "true")
		}
		for i, pid := range singles {
			task, err := loadTask(h, name(i))
			if err != nil {
				t.Fatal(err)
			}
			if task.Pid() != pid {
				t.Errorf("pid %d was %d before", task.Pid(), pid)
			}
			exec := h.TryCtr("task", "exec", "--fifo-dir", filepath.Join(h.Dir, "fifo"), "--exec-id", restart.name, name(i), "echo", "hello")
			if exec.Code != 0 || exec.Stdout != "hello\n" {
				t.Errorf("exec after %s: %+v", restart.name, exec)
			}
		}
	}
	for _, p := range pods {
		endWriter(t, cri, p)
		cri.Remove(p.id)
	}
	for i := range singles {
		remove(t, h, name(i))
	}
	expectNothing(t, h, cri)
}

// expectSame: a pod is ready and its writer is the process it was.
func expectSame(t *testing.T, h *harness.Host, cri *harness.CRI, p *stockPod) {
	t.Helper()
	expectReady(t, h, cri, p.id)
	cri.AwaitState(p.writer, runtime.ContainerState_CONTAINER_RUNNING)
	if pid := containerPid(t, h, cri, p.writer); pid != p.writerPid {
		t.Errorf("pid %d was %d before", pid, p.writerPid)
	}
	if got := cri.Shell(p.writer, "echo hello"); got != "hello\n" {
		t.Errorf("exec: %q", got)
	}
}

// endWriter ends the writer and looks for a gap in what it wrote.
func endWriter(t *testing.T, cri *harness.CRI, p *stockPod) {
	t.Helper()
	// In the background: the end of the container ends what is in it.
	cri.Shell(p.writer, "(usleep 100000; touch /stop) >/dev/null 2>&1 &")
	if status := cri.AwaitState(p.writer, runtime.ContainerState_CONTAINER_EXITED); status.ExitCode != 3 {
		t.Errorf("exit code of the writer %d", status.ExitCode)
	}
	checkLog(t, filepath.Join(p.cfg.LogDirectory, "writer.log"), len(restarts))
}

// checkExit compares when a container ended with when it was ended.
func checkExit(t *testing.T, status *runtime.ContainerStatus, code int32, before, after time.Time) {
	t.Helper()
	const tick = 20 * time.Millisecond // the kernel's time stamps are coarser than ours
	finished := time.Unix(0, status.FinishedAt)
	if status.ExitCode != code || finished.Before(before.Add(-tick)) || finished.After(after.Add(tick)) {
		t.Errorf("exit code %d at %s; it ended between %s and %s", status.ExitCode, finished, before, after)
	}
}

// attached types to a container that runs cat, and reads what that answers.
func attached(t *testing.T, h *harness.Host, cri *harness.CRI, id, text string) {
	t.Helper()
	resp, err := cri.RuntimeServiceClient.Attach(h.Context(time.Minute), &runtime.AttachRequest{ContainerId: id, Stdin: true, Stdout: true, Stderr: true})
	if err != nil {
		t.Fatal(err)
	}
	s := h.Attach(resp.Url, false)
	if _, err := io.WriteString(s.Stdin, text); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(text))
	if _, err := io.ReadFull(s.Stdout, got); err != nil || !bytes.Equal(got, []byte(text)) {
		t.Errorf("attached: %q, %v", got, err)
	}
}

// expectNothing: no pod, no record, no process and no file of one is there.
func expectNothing(t *testing.T, h *harness.Host, cri *harness.CRI) {
	t.Helper()
	list, err := cri.ListPodSandbox(h.Context(time.Minute), &runtime.ListPodSandboxRequest{})
	if err != nil || len(list.GetItems()) > 0 {
		t.Errorf("ListPodSandbox: %v, %v", list, err)
	}
	if left := stateFiles(t, h); len(left) > 0 {
		t.Errorf("left in the state directory: %q", left)
	}
	if left := records(t, h); len(left) > 0 {
		t.Errorf("left in the store: %q", left)
	}
	want := map[string]int{"caissond": 1}
	if h.Stock() {
		want["containerd"], want["keeper"] = 1, 1
	}
	expectProcesses(t, h, want)
}

// records lists the sandboxes in our own store and in containerd's.
func records(t *testing.T, h *harness.Host) []string {
	t.Helper()
	var ids []string
	ours := proxy.NewSandboxStore(sandboxapi.NewStoreClient(h.SandboxerConn()))
	for _, namespace := range []string{harness.CRINamespace, h.Token} {
		ctx := namespaces.WithNamespace(h.Context(time.Minute), namespace)
		for _, store := range []sandbox.Store{ours, h.Client(namespace).SandboxStore()} {
			list, err := store.List(ctx)
			if err != nil {
				t.Fatal(err)
			}
			for _, sb := range list {
				ids = append(ids, namespace+"/"+sb.ID)
			}
		}
	}
	return ids
}
