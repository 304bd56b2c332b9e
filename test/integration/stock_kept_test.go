package integration

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"caisson/test/harness"
)

// TestStockDaemonGone: a stock containerd does not notice that caissond goes away
// and comes back, killed or stopped: pods through the sandboxer, pods through
// containerd's own, and containers without a pod run on, what ends meanwhile is
// reported as it ended, and what is asked for meanwhile waits.
func TestStockDaemonGone(t *testing.T) {
	for _, end := range []struct {
		name string
		end  func(*harness.Host) error
	}{
		{"KILL", (*harness.Host).Kill},
		{"TERM", func(h *harness.Host) error { return h.Stop(h.Context(time.Minute)) }},
	} {
		t.Run(end.name, func(t *testing.T) {
			h := harness.Start(t, stock)
			cri := h.CRI()
			p := startStockPod(t, h, cri, runtime.NamespaceMode_POD)
			viaShim := runStockPod(t, h, cri, cri.PodConfig(runtime.NamespaceMode_NODE), "caisson-shim")
			h.Ctr(append(ctrRun(h, "-d"), harness.Image, "single", "sleep", "1000")...)
			single, err := loadTask(h, "single")
			if err != nil {
				t.Fatal(err)
			}
			brief := cri.RunContainer(p.id, p.cfg, cri.ContainerConfig("brief", "while [ ! -e /go ]; do usleep 10000; done; exit 42"))
			briefProcess := pidfd(t, containerPid(t, h, cri, brief))
			waiting := waitExit(t, h, "single")

			cri.Shell(brief, "(usleep 300000; touch /go) & true")
			if err := end.end(h); err != nil {
				t.Fatal(err)
			}
			awaitEnd(t, h, briefProcess)
			answers := make(chan error, 2)
			for _, id := range []string{p.writer, viaShim.writer} {
				go func() { answers <- askMeanwhile(cri, id) }()
			}
			select {
			case err := <-answers:
				t.Errorf("an exec was answered while no daemon was there: %v", err)
			case <-time.After(time.Second): // that nothing happens has no event
			}
			h.StartDaemon()
			for range 2 {
				if err := <-answers; err != nil {
					t.Error(err)
				}
			}

			if st := cri.AwaitState(brief, runtime.ContainerState_CONTAINER_EXITED); st.ExitCode != 42 {
				t.Errorf("exit code %d of what ended meanwhile", st.ExitCode)
			}
			for _, pod := range []*stockPod{p, viaShim} {
				expectReady(t, h, cri, pod.id)
				if now := containerPid(t, h, cri, pod.writer); now != pod.writerPid {
					t.Errorf("process %d, before %d", now, pod.writerPid)
				}
			}
			if now, err := loadTask(h, "single"); err != nil || now.Pid() != single.Pid() {
				t.Errorf("the container without a pod: %v, %v", now, err)
			}
			h.Ctr("tasks", "kill", "-s", "KILL", "single")
			if code, err := waiting(); err != nil || code != 137 {
				t.Errorf("exit code %d, %v", code, err)
			}
			h.Ctr("containers", "rm", "single")
			for _, pod := range []*stockPod{p, viaShim} {
				cri.Shell(pod.writer, "touch /stop")
				if st := cri.AwaitState(pod.writer, runtime.ContainerState_CONTAINER_EXITED); st.ExitCode != 3 {
					t.Errorf("exit code %d", st.ExitCode)
				}
				cri.Remove(pod.id)
			}
			expectProcesses(t, h, map[string]int{"caissond": 1, "keeper": 1, "containerd": 1})
			if left := stateFiles(t, h); len(left) > 0 {
				t.Errorf("left in the state directory: %q", left)
			}
		})
	}
}

// TestStockShimLeavesKept: beside a keeper the shim binary starts no daemon, which
// would leave the kept connections unanswered and be in the way of the next one.
func TestStockShimLeavesKept(t *testing.T) {
	h := harness.Start(t, stock)
	h.Ctr(append(ctrRun(h, "-d"), harness.Image, "old", "sleep", "1000")...)
	ended := waitExit(t, h, "old")
	if err := h.Kill(); err != nil {
		t.Fatal(err)
	}
	res := h.TryCtr(append(ctrRun(h, "--rm"), harness.Image, "new", "true")...)
	if res.Code == 0 || !strings.Contains(res.Stderr, "its keeper waits for it: start it, or end the keeper") {
		t.Errorf("a task beside a keeper: exit code %d: %s", res.Code, res.Stderr)
	}
	if pid, err := h.Started(); err != nil || pid != 0 {
		t.Errorf("caissond %d was started, %v", pid, err)
	}
	h.StartDaemon()
	h.Ctr("tasks", "kill", "-s", "KILL", "old")
	if code, err := ended(); err != nil || code != 137 {
		t.Errorf("exit code %d, %v", code, err)
	}
	h.Ctr(append(ctrRun(h, "--rm"), harness.Image, "new", "true")...)
	h.Ctr("containers", "rm", "old")
}

func askMeanwhile(cri *harness.CRI, id string) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	resp, err := cri.ExecSync(ctx, &runtime.ExecSyncRequest{ContainerId: id, Cmd: []string{"/bin/sh", "-c", "echo here; exit 5"}})
	if err == nil && (resp.ExitCode != 5 || string(resp.Stdout) != "here\n") {
		err = fmt.Errorf("exit code %d, output %q", resp.ExitCode, resp.Stdout)
	}
	return err
}

// waitExit asks for a task's end now; the returned function waits for the answer.
func waitExit(t *testing.T, h *harness.Host, id string) func() (uint32, error) {
	t.Helper()
	task, err := loadTask(h, id)
	if err != nil {
		t.Fatal(err)
	}
	ctx := h.In(2 * time.Minute)
	exits, err := task.Wait(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return func() (uint32, error) {
		select {
		case exit := <-exits:
			_, err := task.Delete(ctx)
			return exit.ExitCode(), err
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
}
