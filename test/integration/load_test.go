package integration

import (
	"bytes"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"caisson/test/daemon"
	"caisson/test/harness"
)

// How much TestLoad does: a little unless these are set, as `make test-load` does.
const (
	sandboxesEnv = "CAISSON_TEST_SANDBOXES"
	execsEnv     = "CAISSON_TEST_EXECS"
)

// restartLimit is how long a daemon that was killed may take until it has all its
// sandboxes again and answers. It holds for a thousand.
const restartLimit = 2 * time.Second

// TestLoad lets many sandboxes run at once, kills the daemon, and lets the next one
// take them over. When all are gone the daemon is as it was.
func TestLoad(t *testing.T) {
	n := int(envNumber(t, sandboxesEnv, 30))
	h := harness.Start(t, daemon.Options{Engine: daemon.EngineStock})
	cri := h.CRI()
	// Looked at in the end is a daemon that took sandboxes over, and so it is here.
	few := runLoad(t, h, cri, 4)
	h.Crash()
	h.StartDaemon()
	removeLoad(t, cri, few)
	before, kept := usage(t, h), descriptorsOf(t, keeperOf(t, h))

	start := time.Now()
	pods := runLoad(t, h, cri, n)
	peak := usage(t, h)
	t.Logf("%d sandboxes with a container each, after %v: %v", n, time.Since(start).Round(time.Millisecond), peak)
	expectProcesses(t, h, map[string]int{"caissond": 1, "containerd": 1, "keeper": 1, "caisson-monitor": 2 * n})
	took := fastestRestart(t, h, n)
	expectProcesses(t, h, map[string]int{"caissond": 1, "containerd": 1, "keeper": 1, "caisson-monitor": 2 * n})
	inParallel(t, n, func(i int) {
		st, err := cri.ContainerStatus(h.Context(time.Minute), &runtime.ContainerStatusRequest{ContainerId: pods[i].container})
		if err != nil || st.Status.State != runtime.ContainerState_CONTAINER_RUNNING {
			t.Errorf("container %d: %v, %v", i, st.GetStatus().GetState(), err)
		}
	})
	if out := cri.Shell(pods[n-1].container, "echo here"); out != "here\n" {
		t.Errorf("exec after the restart: %q", out)
	}
	t.Logf("taken over: %v", usage(t, h))
	start = time.Now()
	removeLoad(t, cri, pods)
	t.Logf("all are gone after %v", time.Since(start).Round(time.Millisecond))
	expectUsage(t, h, before, peak, fmt.Sprintf("%d sandboxes", n))
	if now := descriptorsOf(t, keeperOf(t, h)); now > kept+8 {
		t.Errorf("the keeper has %d descriptors after %d sandboxes, %d before", now, n, kept)
	}
	if limit := restartLimit * time.Duration(harness.Slow()); took > limit {
		t.Errorf("no daemon took over %d sandboxes within %v, the fastest in %v", n, limit, took)
	}
	expectNothing(t, h, cri)
}

// loadPod is a pod with one container that waits.
type loadPod struct{ pod, container string }

func runLoad(t *testing.T, h *harness.Host, cri *harness.CRI, n int) []loadPod {
	t.Helper()
	pods, configs := make([]loadPod, n), make([]*runtime.PodSandboxConfig, n)
	for i := range n {
		configs[i] = cri.PodConfig(runtime.NamespaceMode_NODE)
	}
	inParallel(t, n, func(i int) {
		pods[i].pod = cri.RunPod(configs[i])
		cfg := cri.ContainerConfig("c", "")
		cfg.Command = []string{"/bin/sleep", "100000"}
		pods[i].container = cri.RunContainer(pods[i].pod, configs[i], cfg)
	})
	return pods
}

func removeLoad(t *testing.T, cri *harness.CRI, pods []loadPod) {
	t.Helper()
	inParallel(t, len(pods), func(i int) { cri.Remove(pods[i].pod) })
}

// fastestRestart kills the daemon, a few times, and tells how long the next one
// takes until it has all n sandboxes and is there to be asked. What else the machine
// does only makes it slower, so the fastest counts.
func fastestRestart(t *testing.T, h *harness.Host, n int) time.Duration {
	t.Helper()
	fastest := time.Hour
	for range 3 {
		h.Crash()
		seen := len(h.LogTail(math.MaxInt64))
		start := time.Now()
		h.StartDaemon() // the last of its sockets is there
		took := time.Since(start)
		fastest = min(fastest, took)
		text := fmt.Sprintf("restarted with %d sandboxes: %v, %v of a processor's time", n, took.Round(time.Millisecond), processorTime(t, h.Pid()))
		for line := range strings.Lines(h.LogTail(math.MaxInt64)[seen:]) {
			for _, step := range []string{"caissond starts", "sandboxes taken over", "connections taken over", "caissond is ready"} {
				if strings.Contains(line, step) {
					text += fmt.Sprintf("; %s at %v", step, timeOf(t, line).Sub(start).Round(time.Millisecond))
				}
			}
		}
		t.Log(text)
	}
	return fastest
}

// timeOf is the time in a line of the daemon's log.
func timeOf(t *testing.T, line string) time.Time {
	t.Helper()
	_, rest, _ := strings.Cut(line, `time="`)
	stamp, _, _ := strings.Cut(rest, `"`)
	at, err := time.Parse(time.RFC3339Nano, stamp)
	if err != nil {
		t.Fatalf("line %q: %v", line, err)
	}
	return at
}

// processorTime is what a process has used since it was started.
func processorTime(t *testing.T, pid int) time.Duration {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	var ticks time.Duration
	for _, field := range fields[11:13] {
		n, err := strconv.Atoi(field)
		if err != nil {
			t.Fatal(err)
		}
		ticks += time.Duration(n)
	}
	return ticks * 10 * time.Millisecond // USER_HZ
}

func keeperOf(t *testing.T, h *harness.Host) int {
	t.Helper()
	pids := programs(t, h)["keeper"]
	if len(pids) != 1 {
		t.Fatalf("keepers: %v", pids)
	}
	return pids[0]
}

// TestManyExecs: an exec leaves nothing in the daemon, nor in the monitor.
func TestManyExecs(t *testing.T) {
	n := int(envNumber(t, execsEnv, 100))
	h := harness.Start(t, daemon.Options{Engine: daemon.EngineStock})
	cri := h.CRI()
	pod := runLoad(t, h, cri, 1)[0]
	exec := func(i int) {
		resp, err := cri.ExecSync(h.Context(time.Minute), &runtime.ExecSyncRequest{
			ContainerId: pod.container, Cmd: []string{"/bin/sh", "-c", fmt.Sprintf("echo %d; exit %d", i, i%7)},
		})
		if err != nil || resp.ExitCode != int32(i%7) || string(resp.Stdout) != fmt.Sprintln(i) {
			t.Errorf("exec %d: %v, %v", i, resp, err)
		}
	}
	monitors := func() (r resources) {
		for _, pid := range programs(t, h)["caisson-monitor"] {
			r.descriptors += descriptorsOf(t, pid)
			r.heap += pss(t, pid) << 10
		}
		return r
	}
	inParallel(t, max(50, n/5), exec)
	// The monitor gets the sandbox's files a second after the last container was made.
	if err := daemon.Poll(h.Context(time.Minute), 10*time.Second, func() error {
		mounts, err := os.ReadFile("/proc/self/mountinfo")
		if err == nil && bytes.Contains(mounts, []byte(filepath.Join(h.State, "s")+"/")) {
			err = fmt.Errorf("the files of the sandbox are still mounted")
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	before, beside := usage(t, h), monitors()
	before.heap += 1 << 20 // so much the journal of events has before it forgets any key
	inParallel(t, n, exec)
	expectUsage(t, h, before, before, fmt.Sprintf("%d execs", n))
	if now := monitors(); now.descriptors > beside.descriptors || now.heap > beside.heap+64<<10 {
		t.Errorf("monitor and holder have %d descriptors and %d bytes after %d execs, %d and %d before",
			now.descriptors, now.heap, n, beside.descriptors, beside.heap)
	}
	cri.Remove(pod.pod)
	expectNothing(t, h, cri)
}
