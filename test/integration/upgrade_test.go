package integration

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"caisson/test/daemon"
	"caisson/test/harness"
)

// earlierPattern is what script/earlier calls the daemons of earlier commits.
const earlierPattern = "caissond-at-*"

// withoutKeeper are the commits whose daemon kept no connections: a stock containerd
// gave up the tasks of one that ended.
var withoutKeeper = []string{"7e6c7c6"}

// TestUpgrade lets this daemon take over what an earlier one runs, with its monitors,
// which speak another version of the protocol, its keeper and its records; and the
// earlier one what this one runs, as after an upgrade that is taken back. Nothing that
// runs notices.
func TestUpgrade(t *testing.T) {
	programs, err := filepath.Glob(filepath.Join("../../build", earlierPattern))
	if err != nil {
		t.Fatal(err)
	}
	if len(programs) == 0 {
		t.Skip("build/ has no earlier caissond: script/earlier COMMIT builds one if this clone has its history")
	}
	for _, program := range programs {
		earlier := filepath.Base(program)
		commit := earlier[strings.LastIndexByte(earlier, '-')+1:]
		for _, engine := range []string{daemon.EngineEmbedded, daemon.EngineStock} {
			if engine == daemon.EngineStock && slices.Contains(withoutKeeper, commit) {
				continue
			}
			t.Run(commit+"/"+engine, func(t *testing.T) { testUpgrade(t, earlier, engine) })
		}
	}
}

func testUpgrade(t *testing.T, earlier, engine string) {
	h := harness.Start(t, daemon.Options{Engine: engine, Program: earlier})
	cri := h.CRI()
	old := startStockPod(t, h, cri, runtime.NamespaceMode_POD)
	oldMonitors := programs(t, h)["caisson-monitor"]
	executable := func(pid int) string { return readlink(t, fmt.Sprintf("/proc/%d/exe", pid)) }
	program := executable(oldMonitors[0])

	replace(t, h, cri, "caissond", old, h.Kill)
	young := startStockPod(t, h, cri, runtime.NamespaceMode_NODE)
	youngMonitors := slices.DeleteFunc(programs(t, h)["caisson-monitor"], func(pid int) bool { return slices.Contains(oldMonitors, pid) })
	if len(youngMonitors) == 0 {
		t.Fatal("the new pod has no monitor")
	}
	for _, pid := range oldMonitors {
		if now := executable(pid); now != program {
			t.Errorf("monitor %d of the old pod runs %s, before it ran %s", pid, now, program)
		}
	}
	if executable(youngMonitors[0]) == program {
		t.Errorf("the monitor of the new pod runs %s, as the old one's", program)
	}
	more := cri.RunContainer(old.id, old.cfg, cri.ContainerConfig("more", "exit 9"))
	if st := cri.AwaitState(more, runtime.ContainerState_CONTAINER_EXITED); st.ExitCode != 9 {
		t.Errorf("a new container in the old pod ended with %d", st.ExitCode)
	}

	gaps := 0
	if engine == daemon.EngineEmbedded {
		gaps = 3 // it ends that often with what writes the log
	}
	stop := func() error { return h.Stop(h.Context(time.Minute)) }
	replace(t, h, cri, earlier, young, stop)
	expectRuns(t, h, cri, old)
	replace(t, h, cri, "caissond", nil, stop)
	for _, p := range []*stockPod{old, young} {
		expectRuns(t, h, cri, p)
		cri.Shell(p.writer, "touch /stop")
		if st := cri.AwaitState(p.writer, runtime.ContainerState_CONTAINER_EXITED); st.ExitCode != 3 {
			t.Errorf("exit code %d", st.ExitCode)
		}
		checkLog(t, filepath.Join(p.cfg.LogDirectory, "writer.log"), gaps)
		cri.Remove(p.id)
	}
	if left := stateFiles(t, h); len(left) > 0 {
		t.Errorf("left in the state directory: %q", left)
	}
}

// replace ends the daemon and starts another program in its place. The ender of the
// pod, if it is not nil, ends while there is none.
func replace(t *testing.T, h *harness.Host, cri *harness.CRI, program string, p *stockPod, end func() error) {
	t.Helper()
	var ender int
	if p != nil {
		ender = pidfd(t, p.enderPid)
	}
	if err := end(); err != nil {
		t.Fatal(err)
	}
	if p != nil {
		if err := unix.PidfdSendSignal(ender, unix.SIGKILL, nil, 0); err != nil {
			t.Fatal(err)
		}
		awaitEnd(t, h, ender)
	}
	h.Use(program)
	h.StartDaemon()
	if p == nil {
		return
	}
	if st := cri.AwaitState(p.ender, runtime.ContainerState_CONTAINER_EXITED); st.ExitCode != 137 {
		t.Errorf("what ended while %s took over has the exit code %d", program, st.ExitCode)
	}
	expectRuns(t, h, cri, p)
}

// expectRuns checks that a pod's container goes on, and does what it is asked for.
func expectRuns(t *testing.T, h *harness.Host, cri *harness.CRI, p *stockPod) {
	t.Helper()
	expectReady(t, h, cri, p.id)
	if now := containerPid(t, h, cri, p.writer); now != p.writerPid {
		t.Errorf("process %d, before %d", now, p.writerPid)
	}
	if out := cri.Shell(p.writer, "echo here"); out != "here\n" {
		t.Errorf("exec: %q", out)
	}
	stats, err := cri.ContainerStats(h.Context(time.Minute), &runtime.ContainerStatsRequest{ContainerId: p.writer})
	if err != nil || stats.Stats.GetMemory().GetWorkingSetBytes().GetValue() == 0 {
		t.Errorf("stats: %v, %v", stats, err)
	}
}
