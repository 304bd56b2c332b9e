package integration

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"caisson/test/daemon"
	"caisson/test/harness"
)

func containerPid(t *testing.T, h *harness.Host, cri *harness.CRI, id string) int {
	t.Helper()
	resp, err := cri.ContainerStatus(h.Context(time.Minute), &runtime.ContainerStatusRequest{ContainerId: id, Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	return verbosePid(t, resp.Info)
}

func expectReady(t *testing.T, h *harness.Host, cri *harness.CRI, pod string) {
	t.Helper()
	status, err := cri.PodSandboxStatus(h.Context(time.Minute), &runtime.PodSandboxStatusRequest{PodSandboxId: pod})
	if err != nil || status.Status.State != runtime.PodSandboxState_SANDBOX_READY {
		t.Errorf("pod: %v, %v", status, err)
	}
}

// TestStockDaemonRestarts: a caissond without containers may go and come back at
// any time. Its pods stay, and take containers afterwards.
func TestStockDaemonRestarts(t *testing.T) {
	h := harness.Start(t, stock)
	cri := h.CRI()
	cfg := cri.PodConfig(runtime.NamespaceMode_POD)
	pod := cri.RunPod(cfg)
	for _, end := range []func() error{h.Kill, func() error { return h.Stop(h.Context(time.Minute)) }} {
		if err := end(); err != nil {
			t.Fatal(err)
		}
		h.StartDaemon()
		// containerd finds the daemon again when it next tries to connect.
		if err := daemon.Poll(h.Context(time.Minute), 10*time.Second, func() error {
			other := cri.PodConfig(runtime.NamespaceMode_NODE)
			resp, err := cri.RunPodSandbox(h.Context(10*time.Second), &runtime.RunPodSandboxRequest{Config: other, RuntimeHandler: harness.Handler})
			if err == nil {
				cri.Remove(resp.PodSandboxId)
			}
			return err
		}); err != nil {
			t.Fatalf("RunPodSandbox after the restart: %v", err)
		}
		expectReady(t, h, cri, pod)
		id := cri.RunContainer(pod, cfg, cri.ContainerConfig("c", "exec sleep 1000"))
		cri.Shell(id, "true")
		if _, err := cri.StopContainer(h.Context(time.Minute), &runtime.StopContainerRequest{ContainerId: id}); err != nil {
			t.Error(err)
		}
		if _, err := cri.RemoveContainer(h.Context(time.Minute), &runtime.RemoveContainerRequest{ContainerId: id}); err != nil {
			t.Error(err)
		}
	}
}

// unkept is a daemon that nobody starts again, such as one that the shim binary has
// started: connections break with it.
func unkept() daemon.Options {
	opts := stock
	opts.Args = []string{"--keep-connections=false"}
	return opts
}

// TestStockDaemonCrash: a stock containerd takes a broken connection for a
// container's end. So when a daemon goes away that does not keep them, its
// containers are lost; what must hold then is that they really end, that they are
// reported as ended, that their pod can be used and removed, and that nothing is
// left. Who starts the daemon again, the init system or the shim binary, makes no
// difference. TestStockDaemonAway is the case in which nobody does in time.
func TestStockDaemonCrash(t *testing.T) {
	for _, byShim := range []bool{false, true} {
		t.Run(fmt.Sprintf("started by the shim binary=%t", byShim), func(t *testing.T) {
			h := harness.Start(t, unkept())
			cri := h.CRI()
			p := startStockPod(t, h, cri, runtime.NamespaceMode_POD)
			h.Ctr(append(ctrRun(h, "-d"), harness.Image, "single", "sleep", "1000")...)
			single, err := loadTask(h, "single")
			if err != nil {
				t.Fatal(err)
			}
			processes := []int{pidfd(t, p.writerPid), pidfd(t, p.enderPid), pidfd(t, int(single.Pid()))}

			h.Crash()
			if !byShim {
				h.StartDaemon()
			}
			for _, process := range processes {
				awaitEnd(t, h, process)
			}
			for _, id := range []string{p.writer, p.ender} {
				status := cri.AwaitState(id, runtime.ContainerState_CONTAINER_EXITED)
				t.Logf("CRI reports exit code %d, %s", status.ExitCode, status.Reason)
				if status.ExitCode != 137 && status.ExitCode != 255 {
					t.Errorf("exit code %d", status.ExitCode)
				}
			}
			pid, err := h.Started()
			if err != nil || pid == 0 {
				t.Fatalf("caissond does not run: %v", err)
			}
			if !byShim && pid != h.Pid() {
				t.Error("the shim binary started a daemon beside the one that was started in time")
			}

			// The pod has outlived its containers; kubelet starts them again in it.
			expectReady(t, h, cri, p.id)
			again := cri.ContainerConfig("writer", "exec sleep 1000")
			again.Metadata.Attempt = 1
			var id string
			if err := daemon.Poll(h.Context(time.Minute), 10*time.Second, func() error {
				created, err := cri.CreateContainer(h.Context(10*time.Second), &runtime.CreateContainerRequest{PodSandboxId: p.id, Config: again, SandboxConfig: p.cfg})
				if err == nil {
					id = created.ContainerId
				}
				return err // until containerd has found the daemon again
			}); err != nil {
				t.Fatal(err)
			}
			if _, err := cri.StartContainer(h.Context(time.Minute), &runtime.StartContainerRequest{ContainerId: id}); err != nil {
				t.Fatal(err)
			}
			cri.Shell(id, "true")
			cri.Remove(p.id)
			h.Ctr("containers", "rm", "single")
			expectProcesses(t, h, map[string]int{"caissond": 1, "containerd": 1})
			if left := stateFiles(t, h); len(left) > 0 {
				t.Errorf("left in the state directory: %q", left)
			}
			if byShim {
				if log, err := os.ReadFile(filepath.Join(h.State, "caissond.log")); err != nil || len(log) == 0 {
					t.Errorf("log of the daemon that the shim binary started: %d bytes, %v", len(log), err)
				}
			}
		})
	}
}

// TestStockDaemonAway: if no daemon comes back in time, containerd forgets the
// containers and nobody ends them; removing their pod does.
func TestStockDaemonAway(t *testing.T) {
	opts := unkept()
	opts.Env = []string{"CAISSON_SHIM_CONFIG="} // the shim binary must not start one
	h := harness.Start(t, opts)
	cri := h.CRI()
	p := startStockPod(t, h, cri, runtime.NamespaceMode_POD)
	processes := []int{pidfd(t, p.writerPid), pidfd(t, p.enderPid)}
	h.Crash()
	for _, id := range []string{p.writer, p.ender} {
		if status := cri.AwaitState(id, runtime.ContainerState_CONTAINER_EXITED); status.ExitCode != 255 {
			t.Errorf("exit code %d", status.ExitCode)
		}
	}
	h.StartDaemon()
	for _, pid := range []int{p.writerPid, p.enderPid} {
		if err := syscall.Kill(pid, 0); err != nil {
			t.Errorf("process %d: %v", pid, err)
		}
	}
	if err := daemon.Poll(h.Context(time.Minute), 10*time.Second, func() error {
		// It takes ten seconds: containers that do not end by SIGTERM are given so much.
		_, err := cri.StopPodSandbox(h.Context(time.Minute), &runtime.StopPodSandboxRequest{PodSandboxId: p.id})
		return err // until containerd has found the daemon again
	}); err != nil {
		t.Error(err)
	}
	for _, process := range processes {
		awaitEnd(t, h, process)
	}
	cri.Remove(p.id)
	expectProcesses(t, h, map[string]int{"caissond": 1, "containerd": 1})
	if left := stateFiles(t, h); len(left) > 0 {
		t.Errorf("left in the state directory: %q", left)
	}
}

// TestStockShimStartsDaemon runs containers under a containerd that has nothing
// but programs in its PATH: in a mount namespace whose /run and /var/lib are
// empty, so that the default directories are the test's.
func TestStockShimStartsDaemon(t *testing.T) {
	lib, err := os.MkdirTemp("", "c")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(lib) })
	opts := stock
	opts.Under = []string{"unshare", "-m", "sh", "-c",
		`mount --make-rprivate / && mount -t tmpfs -o mode=755 run /run && mount --bind ` + lib + ` /var/lib && exec "$0" "$@"`}
	h := harness.New(t, opts)
	if err := h.StartContainerd(h.Context(time.Minute)); err != nil {
		t.Fatal(err)
	}
	ns := readlink(t, fmt.Sprintf("/proc/%d/ns/mnt", h.ContainerdPid()))
	t.Cleanup(func() { endInMountNamespace(t, h, ns) })
	t.Cleanup(func() {
		if t.Failed() {
			text, err := os.ReadFile(fmt.Sprintf("/proc/%d/root/run/caisson/caissond.log", h.ContainerdPid()))
			t.Logf("log of the daemons that were started (%v):\n%s", err, text)
		}
	})
	h.Import("", harness.Image)

	// Several at once get one daemon.
	done := make(chan harness.Result)
	const n = 4
	for i := range n {
		args := append(ctrRun(h, "--rm"), harness.Image, fmt.Sprintf("c%d", i), "sh", "-c", fmt.Sprintf("echo hello; exit %d", 10+i))
		cmd, err := h.Command(h.Context(time.Minute), "ctr", args...)
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			out, _ := cmd.Output() // the exit code is looked at
			done <- harness.Result{Code: cmd.ProcessState.ExitCode(), Stdout: string(out)}
		}()
	}
	codes := map[int]bool{}
	for range n {
		res := <-done
		codes[res.Code] = true
		if res.Stdout != "hello\n" {
			t.Errorf("exit code %d: %s", res.Code, res.Stdout)
		}
	}
	if len(codes) != n || !codes[10] || !codes[13] {
		t.Errorf("exit codes %v", codes)
	}
	if daemons := inMountNamespace(t, ns)["caissond"]; len(daemons) != 1 {
		t.Fatalf("daemons: %v", daemons)
	}

	// The daemon was started for -info, which does not tell where containerd is;
	// the others did: the events arrive.
	ctx := h.In(time.Minute)
	collect := taskEvents(t, ctx, h.Client(""), "short")
	h.Ctr(append(ctrRun(h, "--rm"), harness.Image, "short", "true")...)
	if events, err := collect(); err != nil || !slices.Equal(events, []string{"create", "start", "exit init 0", "delete init 0"}) {
		t.Errorf("events %q: %v", events, err)
	}
	collect = taskEvents(t, ctx, h.Client(""), "ev")
	h.Ctr(append(ctrRun(h, "-d"), harness.Image, "ev", "sleep", "1000")...)
	task, err := loadTask(h, "ev")
	if err != nil {
		t.Fatal(err)
	}
	process := pidfd(t, int(task.Pid()))

	// And when it dies, the next one ends what it ran.
	old := inMountNamespace(t, ns)["caissond"][0]
	kill(t, old)
	awaitEnd(t, h, process)
	events, err := collect()
	if err != nil {
		t.Errorf("events %q: %v", events, err)
	}
	if !slices.Contains(events, "exit init 137") {
		t.Errorf("events of a container that the daemon's end took along: %q", events)
	}
	if daemons := inMountNamespace(t, ns)["caissond"]; len(daemons) != 1 || daemons[0] == old {
		t.Errorf("daemons: %v, before %d", daemons, old)
	}
	h.Ctr("containers", "rm", "ev")
}

// inMountNamespace lists the processes in a mount namespace by program.
func inMountNamespace(t *testing.T, ns string) map[string][]int {
	t.Helper()
	links, err := filepath.Glob("/proc/[0-9]*/ns/mnt")
	if err != nil {
		t.Fatal(err)
	}
	found := map[string][]int{}
	for _, link := range links {
		if target, err := os.Readlink(link); err != nil || target != ns {
			continue // another's, or it ended
		}
		dir := filepath.Dir(filepath.Dir(link))
		exe, err := os.Readlink(dir + "/exe")
		if err != nil {
			continue
		}
		var pid int
		if _, err := fmt.Sscanf(filepath.Base(dir), "%d", &pid); err != nil {
			t.Fatal(err)
		}
		found[filepath.Base(exe)] = append(found[filepath.Base(exe)], pid)
	}
	return found
}

// endInMountNamespace stops the servers in a mount namespace, which must be all
// that is left there.
func endInMountNamespace(t *testing.T, h *harness.Host, ns string) {
	if err := h.KillContainerd(); err != nil {
		t.Error(err)
	}
	for _, pid := range inMountNamespace(t, ns)["caissond"] {
		if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
			t.Error(err)
		}
	}
	err := daemon.Poll(context.Background(), 10*time.Second, func() error {
		if rest := inMountNamespace(t, ns); len(rest) > 0 {
			return fmt.Errorf("still there: %v", rest)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// TestStockShimSandboxerCrash: through containerd's own sandboxer a pod is lost
// with its daemon like a container, and must end like one.
func TestStockShimSandboxerCrash(t *testing.T) {
	h := harness.Start(t, unkept())
	cri := h.CRI()
	cfg := cri.PodConfig(runtime.NamespaceMode_POD)
	resp, err := cri.RunPodSandbox(h.Context(time.Minute), &runtime.RunPodSandboxRequest{Config: cfg, RuntimeHandler: "caisson-shim"})
	if err != nil {
		t.Fatal(err)
	}
	id := cri.RunContainer(resp.PodSandboxId, cfg, cri.ContainerConfig("a", "exec sleep 1000"))
	process := pidfd(t, containerPid(t, h, cri, id))
	h.Crash()
	h.StartDaemon()
	awaitEnd(t, h, process)
	cri.AwaitState(id, runtime.ContainerState_CONTAINER_EXITED)
	cri.Remove(resp.PodSandboxId)
	expectProcesses(t, h, map[string]int{"caissond": 1, "containerd": 1})
	if left := stateFiles(t, h); len(left) > 0 {
		t.Errorf("left in the state directory: %q", left)
	}
}
