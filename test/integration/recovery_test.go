package integration

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"

	tasks "github.com/containerd/containerd/api/services/tasks/v1"
	tasktypes "github.com/containerd/containerd/api/types/task"
	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"

	"caisson/test/daemon"
	"caisson/test/harness"
)

// TestCreationIsGivenUp: the OCI runtime takes longer than anybody wants to wait for
// it. Whoever gives up, and whatever containerd says to us then, nothing is left of a
// container without a sandbox.
func TestCreationIsGivenUp(t *testing.T) {
	for _, c := range []struct {
		name   string
		engine string
		giveUp func(h *harness.Host, cancel func(), proceed func() error) error
	}{
		{"the client", daemon.EngineStock, func(_ *harness.Host, cancel func(), _ func() error) error { cancel(); return nil }},
		{"containerd", daemon.EngineStock, func(h *harness.Host, _ func(), _ func() error) error {
			return errors.Join(h.KillContainerd(), h.StartContainerd(h.Context(time.Minute)))
		}},
		{"caissond", daemon.EngineEmbedded, func(h *harness.Host, _ func(), proceed func() error) error {
			return errors.Join(h.Kill(), proceed(), h.Start(h.Context(time.Minute)))
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := harness.Start(t, daemon.Options{Engine: c.engine})
			asked, answer := filepath.Join(h.Dir, "asked"), filepath.Join(h.Dir, "answer")
			if err := errors.Join(syscall.Mkfifo(asked, 0o600), syscall.Mkfifo(answer, 0o600)); err != nil {
				t.Fatal(err)
			}
			f, err := os.OpenFile(answer, os.O_RDWR, 0) // both ways: whoever should read may be gone
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			proceed := func() error {
				_, err := f.WriteString("\n")
				return err
			}
			c2, err := newContainer(h, "c", nil, oci.WithProcessArgs("true"), func(_ context.Context, _ oci.Client, _ *containers.Container, s *specs.Spec) error {
				s.Hooks = &specs.Hooks{CreateRuntime: []specs.Hook{{Path: "/bin/sh", Args: []string{"sh", "-c", ": >" + asked + "; read _ <" + answer}}}}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(h.In(time.Minute))
			created := make(chan error, 1)
			go func() {
				_, err := c2.NewTask(ctx, cio.NullIO)
				created <- err
			}()
			if _, err := os.ReadFile(asked); err != nil { // returns when the runtime is at it
				t.Fatal(err)
			}
			if err := c.giveUp(h, cancel, proceed); err != nil {
				t.Fatal(err)
			}
			cancel()
			if err := <-created; err == nil {
				t.Error("created")
			}
			bundles := filepath.Join(h.Dir, "*", "*", "io.containerd.runtime.v2.task", h.Token, "c")
			gone := func(what, pattern string) {
				t.Helper()
				if err := daemon.Poll(h.Context(time.Minute), time.Minute, func() error {
					left, err := filepath.Glob(pattern)
					if err == nil && len(left) > 0 {
						err = fmt.Errorf("%s: %v is there", what, left)
					}
					return err
				}); err != nil {
					t.Error(err)
				}
			}
			gone("bundle", bundles)
			if err := proceed(); err != nil {
				t.Fatal(err)
			}
			gone("sandbox", filepath.Join(h.State, "s", "*"))
			if _, err := loadTask(h, "c"); !errdefs.IsNotFound(err) {
				t.Errorf("task: %v", err)
			}
		})
	}
}

// load keeps every processor busy until the test is over.
func load(t *testing.T) {
	t.Helper()
	for range 2 * runtime.NumCPU() {
		cmd := exec.Command("/bin/sh", "-c", "while :; do :; done")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			_ = cmd.Process.Kill() // it ends by itself never
			_ = cmd.Wait()         // that it was killed
		})
	}
}

// TestCrashForgetsNoTask: many containers end while there is no daemon, others run
// on. The next one, on a busy machine, is asked for all of them from the moment at
// which it answers at all, and never says that one of them is not there.
func TestCrashForgetsNoTask(t *testing.T) {
	h := harness.Start(t, daemon.Options{})
	ctx := h.In(4 * time.Minute)
	startSandbox(t, h, "box", nil)
	const n = 12
	ids, pids := make([]string, n), make([]int, n)
	for i := range n {
		id, more := fmt.Sprintf("c%d", i), []containerd.NewContainerOpts(nil)
		ids[i] = id
		if i%2 == 0 {
			more = append(more, containerd.WithSandbox("box"))
		}
		c, err := newContainer(h, id, more, oci.WithProcessArgs("sleep", "1000"))
		if err != nil {
			t.Fatal(err)
		}
		var task containerd.Task
		if i%2 == 0 {
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
		pids[i] = int(task.Pid())
		spec, err := c.Spec(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for x := range 4 { // a container's end waits for those of its execs
			exec, err := task.Exec(ctx, fmt.Sprintf("x%d", x), spec.Process, cio.NullIO)
			if err == nil {
				err = exec.Start(ctx)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	load(t)
	for ended := n / 3; ended <= n; ended += n / 3 {
		h.Crash()
		for _, pid := range pids[ended-n/3 : ended] {
			kill(t, pid)
		}
		if err := h.Launch(); err != nil {
			t.Fatal(err)
		}
		conn, err := h.Conn()
		if err != nil {
			t.Fatal(err)
		}
		var all sync.WaitGroup
		for i, id := range ids {
			all.Go(func() {
				want, code := tasktypes.Status_RUNNING, uint32(0)
				if i < ended {
					want, code = tasktypes.Status_STOPPED, 128+uint32(syscall.SIGKILL)
				}
				err := daemon.Poll(ctx, 2*time.Minute, func() error {
					resp, err := tasks.NewTasksClient(conn).Get(ctx, &tasks.GetRequest{ContainerID: id}, grpc.WaitForReady(true))
					if err != nil {
						t.Errorf("task %s: %v", id, errgrpc.ToNative(err))
						return nil
					}
					if p := resp.Process; p.Status != want || p.ExitStatus != code {
						return fmt.Errorf("task %s: %s, exit status %d", id, p.Status, p.ExitStatus)
					}
					return nil
				})
				if err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
	}
	for _, id := range ids {
		remove(t, h, id)
	}
}

// TestStockRestartKeepsTheEndOfAZombie: containerd restarts in the moment between the
// end of a container and that in which caissond knows of it.
func TestStockRestartKeepsTheEndOfAZombie(t *testing.T) {
	h := harness.Start(t, stock)
	ctx := h.In(2 * time.Minute)
	task, err := container(t, h, "c", "exec sleep 1000").NewTask(ctx, cio.NullIO)
	if err != nil {
		t.Fatal(err)
	}
	if err := task.Start(ctx); err != nil {
		t.Fatal(err)
	}
	monitors := programs(t, h)["caisson-monitor"]
	if len(monitors) != 1 {
		t.Fatalf("monitors %v", monitors)
	}
	monitor := pidfd(t, monitors[0])
	signal := func(sig syscall.Signal) error { return unix.PidfdSendSignal(monitor, sig, nil, 0) }
	init := pidfd(t, int(task.Pid()))
	if err := signal(syscall.SIGSTOP); err != nil { // it does not tell what it sees
		t.Fatal(err)
	}
	defer signal(syscall.SIGCONT) // whatever fails
	kill(t, int(task.Pid()))
	awaitEnd(t, h, init)
	if err := h.KillContainerd(); err != nil {
		t.Fatal(err)
	}
	if err := h.StartContainerd(ctx); err != nil {
		t.Fatal(err)
	}
	if task, err = loadTask(h, "c"); err != nil {
		t.Fatal(err)
	}
	exited, err := task.Wait(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if status := <-exited; status.ExitCode() != 137 {
		t.Errorf("exit code %d (%v)", status.ExitCode(), status.Error())
	}
	remove(t, h, "c")
}
