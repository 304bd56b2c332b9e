package integration

import (
	"bufio"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/oci"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"caisson/test/daemon"
	"caisson/test/harness"
)

// TestCrashKeepsOutput kills the daemon while a container writes as fast as its
// output is read, and compares every byte. The test reads only a part before it
// kills the daemon, so the container is in the middle of a write at that time.
func TestCrashKeepsOutput(t *testing.T) {
	h := harness.Start(t, daemon.Options{})
	for _, inSandbox := range []bool{false, true} {
		t.Run(fmt.Sprintf("sandbox=%t", inSandbox), func(t *testing.T) {
			ctx := h.In(2 * time.Minute)
			id, more := "writer", []containerd.NewContainerOpts(nil)
			if inSandbox {
				startSandbox(t, h, "crash", nil)
				id, more = "member", []containerd.NewContainerOpts{containerd.WithSandbox("crash")}
			}
			c, err := newContainer(h, id, more, oci.WithProcessArgs("/bin/sh", "-c", "seq 1 500000; exit 23"))
			if err != nil {
				t.Fatal(err)
			}
			r, w := io.Pipe()
			creator := cio.NewCreator(cio.WithStreams(nil, w, io.Discard), fifos(h))
			var task containerd.Task
			if inSandbox {
				task, err = taskIn(ctx, h, "crash", c, creator)
			} else {
				task, err = c.NewTask(ctx, creator)
			}
			if err != nil {
				t.Fatal(err)
			}
			if err := task.Start(ctx); err != nil {
				t.Fatal(err)
			}
			pid := int(task.Pid())

			lines := bufio.NewReader(r)
			got := sha256.New()
			size := int64(0)
			read := func(limit int64) {
				n, err := io.CopyN(got, lines, limit)
				size += n
				if err != nil && err != io.EOF {
					t.Error(err)
				}
			}
			read(300_000)
			h.Crash()
			read(300_000) // the container does not need the daemon
			h.StartDaemon()

			task, err = loadTask(h, id)
			if err != nil {
				t.Fatal(err)
			}
			if int(task.Pid()) != pid {
				t.Errorf("pid %d was %d before", task.Pid(), pid)
			}
			exited, err := task.Wait(ctx)
			if err != nil {
				t.Fatal(err)
			}
			want := sha256.New()
			total := int64(0)
			for i := 1; i <= 500000; i++ {
				n, _ := fmt.Fprintf(want, "%d\n", i) // a hash never fails
				total += int64(n)
			}
			read(total - size)
			if status := <-exited; status.ExitCode() != 23 {
				t.Errorf("exit code %d (%v)", status.ExitCode(), status.Error())
			}
			if size != total || string(got.Sum(nil)) != string(want.Sum(nil)) {
				t.Errorf("%d bytes of output, want %d; or they differ", size, total)
			}
			go io.Copy(io.Discard, lines) // the copier of the first task's FIFOs ends with them
			remove(t, h, id)
			_ = w.Close() // never fails
		})
	}
}

// TestCrashKeepsExit ends a container while there is no daemon.
func TestCrashKeepsExit(t *testing.T) {
	h := harness.Start(t, daemon.Options{})
	ctx := h.In(2 * time.Minute)
	startSandbox(t, h, "box", nil)
	trigger := filepath.Join(h.Dir, "trigger")
	if err := syscall.Mkfifo(trigger, 0o600); err != nil {
		t.Fatal(err)
	}
	mount := oci.WithMounts([]specs.Mount{{Source: trigger, Destination: "/trigger", Type: "bind", Options: []string{"bind", "rw"}}})
	for _, more := range [][]containerd.NewContainerOpts{nil, {containerd.WithSandbox("box")}} {
		id := fmt.Sprintf("ends%d", len(more))
		collect := taskEvents(t, ctx, h.Client(""), id)
		c, err := newContainer(h, id, more, mount, oci.WithProcessArgs("/bin/sh", "-c", "read code </trigger; exit $code"))
		if err != nil {
			t.Fatal(err)
		}
		var task containerd.Task
		if len(more) > 0 {
			task, err = taskIn(ctx, h, "box", c, cio.NullIO)
		} else {
			task, err = c.NewTask(ctx, cio.NullIO)
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := task.Start(ctx); err != nil {
			t.Fatal(err)
		}
		process := pidfd(t, int(task.Pid()))
		h.Crash()
		if _, err := collect(); err == nil {
			t.Error("the subscription outlived the daemon")
		}

		before := time.Now()
		if err := os.WriteFile(trigger, []byte("42\n"), 0); err != nil {
			t.Fatal(err)
		}
		awaitEnd(t, h, process)
		after := time.Now()
		h.StartDaemon()

		task, err = loadTask(h, id)
		if err != nil {
			t.Fatal(err)
		}
		exited, err := task.Wait(ctx)
		if err != nil {
			t.Fatal(err)
		}
		status := <-exited
		// The clock of the kernel's time stamps is coarser than ours.
		const tick = 20 * time.Millisecond
		if status.ExitCode() != 42 || status.ExitTime().Before(before.Add(-tick)) || status.ExitTime().After(after.Add(tick)) {
			t.Errorf("exit code %d at %s (%v); it ended between %s and %s", status.ExitCode(), status.ExitTime(), status.Error(), before, after)
		}
		remove(t, h, id)
	}
}

// TestCrashKeepsExec leaves an exec alone with its container.
func TestCrashKeepsExec(t *testing.T) {
	h := harness.Start(t, daemon.Options{})
	ctx := h.In(2 * time.Minute)
	c := container(t, h, "c", "exec sleep 1000")
	task, err := c.NewTask(ctx, cio.NullIO)
	if err != nil {
		t.Fatal(err)
	}
	if err := task.Start(ctx); err != nil {
		t.Fatal(err)
	}
	spec, err := c.Spec(ctx)
	if err != nil {
		t.Fatal(err)
	}
	p := *spec.Process
	p.Args = []string{"sleep", "1000"}
	exec, err := task.Exec(ctx, "e", &p, cio.NullIO)
	if err != nil {
		t.Fatal(err)
	}
	if err := exec.Start(ctx); err != nil {
		t.Fatal(err)
	}
	h.Crash()
	h.StartDaemon()
	if task, err = loadTask(h, "c"); err != nil {
		t.Fatal(err)
	}
	if exec, err = task.LoadProcess(ctx, "e", nil); err != nil {
		t.Fatal(err)
	}
	exited, err := exec.Wait(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := exec.Kill(ctx, syscall.SIGTERM); err != nil {
		t.Error(err)
	}
	if status := <-exited; status.ExitCode() != 143 {
		t.Errorf("exit code of the exec %d (%v)", status.ExitCode(), status.Error())
	}
	if status, err := task.Status(ctx); err != nil || status.Status != containerd.Running {
		t.Errorf("the container: %+v, %v", status, err)
	}
	if _, err := exec.Delete(ctx); err != nil {
		t.Error(err)
	}
	remove(t, h, "c")
}

// TestStopKeepsSandboxes: a daemon that is told to stop leaves its sandboxes
// alone, as one that crashes does.
func TestStopKeepsSandboxes(t *testing.T) {
	h := harness.Start(t, daemon.Options{})
	started := startSandbox(t, h, "stays", nil)
	if err := h.Stop(h.Context(time.Minute)); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(int(started.Pid), 0); err != nil {
		t.Errorf("the sandbox has ended: %v", err)
	}
	h.StartDaemon()
	status, err := controller(h).Status(h.In(time.Minute), "stays", false)
	if err != nil || status.State != "SANDBOX_READY" || status.Pid != started.Pid {
		t.Errorf("status: %+v, %v", status, err)
	}
}

// TestCrashCRI: a pod goes through the crash as kubelet sees it.
func TestCrashCRI(t *testing.T) {
	h := harness.Start(t, daemon.Options{})
	cri := h.CRI()
	ctx := h.Context(2 * time.Minute)
	cfg := cri.PodConfig(runtime.NamespaceMode_POD)
	pod := cri.RunPod(cfg)
	writer := cri.RunContainer(pod, cfg, cri.ContainerConfig("writer", `i=0; while [ ! -e /stop ]; do i=$((i+1)); echo line $i; usleep 5000; done; exit 3`))
	ended := cri.RunContainer(pod, cfg, cri.ContainerConfig("ended", "exec sleep 1000"))
	resp, err := cri.ContainerStatus(ctx, &runtime.ContainerStatusRequest{ContainerId: ended, Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	pid := verbosePid(t, resp.Info)
	cri.Shell(writer, "usleep 100000")

	h.Crash()
	process := pidfd(t, pid)
	before := time.Now()
	kill(t, pid)
	awaitEnd(t, h, process)
	after := time.Now()
	h.StartDaemon()

	if status, err := cri.PodSandboxStatus(ctx, &runtime.PodSandboxStatusRequest{PodSandboxId: pod}); err != nil || status.Status.State != runtime.PodSandboxState_SANDBOX_READY {
		t.Errorf("pod: %v, %v", status, err)
	}
	status := cri.AwaitState(ended, runtime.ContainerState_CONTAINER_EXITED)
	finished := time.Unix(0, status.FinishedAt)
	const tick = 20 * time.Millisecond
	if status.ExitCode != 137 || finished.Before(before.Add(-tick)) || finished.After(after.Add(tick)) {
		t.Errorf("exit code %d at %s; it ended between %s and %s", status.ExitCode, finished, before, after)
	}

	cri.AwaitState(writer, runtime.ContainerState_CONTAINER_RUNNING)
	// In the background: the end of the container ends what is in it.
	cri.Shell(writer, "(usleep 100000; touch /stop) >/dev/null 2>&1 &")
	if status := cri.AwaitState(writer, runtime.ContainerState_CONTAINER_EXITED); status.ExitCode != 3 {
		t.Errorf("exit code of the writer %d", status.ExitCode)
	}
	checkLog(t, filepath.Join(cfg.LogDirectory, "writer.log"), 0)
}

// checkLog looks for each of the numbered lines in a log of CRI's format. Gaps are
// how many times a line may be missing: the containerd that writes the log loses
// what it has read and not yet written when it ends.
func checkLog(t *testing.T, path string, gaps int) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	next := 1
	for i, line := range lines {
		want := fmt.Sprintf(" stdout F line %d", next)
		if after := fmt.Sprintf(" stdout F line %d", next+1); gaps > 0 && strings.HasSuffix(line, after) {
			gaps, next, want = gaps-1, next+1, after
		}
		if !strings.HasSuffix(line, want) {
			t.Fatalf("line %d of %d of the log is %q", i+1, len(lines), line)
		}
		next++
	}
	if len(lines) < 10 {
		t.Errorf("only %d lines in the log", len(lines))
	}
}
