package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/api/types/runc/options"
	core "github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	api "caisson/api/caisson/sandbox/v1"
	"caisson/internal/stdio"
	"caisson/internal/task"
)

func TestExecExitsComeBeforeTheContainers(t *testing.T) {
	r := newRig(t)
	r.run("sb", &api.Options{})
	r.container("sb", "c", "busybox sleep 1000")
	tasks := r.tasks("sb")
	for i := range 5 {
		id := fmt.Sprintf("e%d", i)
		spec, _ := json.Marshal(specs.Process{Args: []string{"/bin/busybox", "sleep", "1000"}, Cwd: "/"})
		err := tasks.Exec(r.ctx(), task.ExecRequest{ID: "c", ExecID: id, Spec: rawAny(spec)})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := tasks.Start(r.ctx(), "c", id); err != nil {
			t.Fatal(err)
		}
	}
	if err := tasks.Kill(r.ctx(), "c", "", 9, false); err != nil {
		t.Fatal(err)
	}
	r.wait("sb", "c")
	events := r.events.all()
	if last := events[len(events)-1]; last != "exit c c 137" {
		t.Errorf("last event %q of %q", last, events)
	}
	exits := 0
	for _, e := range events {
		if strings.HasPrefix(e, "exit c e") {
			exits++
		}
	}
	if exits != 5 {
		t.Errorf("%d exits of execs in %q", exits, events)
	}
}

// rawAny is a JSON value on its way through the Task API.
type rawAny []byte

func (rawAny) GetTypeUrl() string { return "types.containerd.io/opencontainers/runtime-spec/1/Process" }

func (a rawAny) GetValue() []byte { return a }

// TestStdioIsTheClientsFIFOs: input ends when the client says so, or has gone before
// the start; a client that goes later may come back.
func TestStdioIsTheClientsFIFOs(t *testing.T) {
	r := newRig(t)
	r.run("sb", &api.Options{})
	tasks := r.tasks("sb")
	write := func(f *fifos, text string) {
		t.Helper()
		if _, err := io.WriteString(f.stdin, text); err != nil {
			t.Fatal(err)
		}
	}
	text := strings.Repeat("0123456789abcdef\n", 1000)
	for name, use := range map[string]func(f *fifos, start func()) error{
		"close-io": func(f *fifos, start func()) error {
			start()
			write(f, text)
			return errors.Join(tasks.CloseIO(r.ctx(), "close-io", ""), tasks.CloseIO(r.ctx(), "close-io", ""), f.stdin.Close())
		},
		"gone-before": func(f *fifos, start func()) error {
			write(f, text)
			err := f.stdin.Close()
			start()
			return err
		},
		"gone-after": func(f *fifos, start func()) error {
			start()
			write(f, text[:len(text)/2])
			err := f.stdin.Close()
			if err != nil {
				return err
			}
			if f.stdin, err = os.OpenFile(f.cfg.Stdin, os.O_WRONLY, 0); err != nil {
				return err
			}
			write(f, text[len(text)/2:])
			return errors.Join(tasks.CloseIO(r.ctx(), "gone-after", ""), f.stdin.Close())
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := r.fifos(name, false)
			if _, err := tasks.Create(r.ctx(), task.CreateRequest{ID: name, Bundle: r.bundle(name, "busybox cat; echo end"), Stdio: f.cfg}); err != nil {
				t.Fatal(err)
			}
			err := use(f, func() {
				if _, err := tasks.Start(r.ctx(), name, ""); err != nil {
					t.Error(err)
				}
			})
			if err != nil {
				t.Error(err)
			}
			if got := f.readAll(t); got != text+"end\n" {
				t.Errorf("%d bytes, want %d", len(got), len(text)+4)
			}
			if exit := r.wait("sb", name); exit.Status != 0 {
				t.Errorf("exit %+v", exit)
			}
		})
	}
}

// TestRuntimesOtherThanRuncGetAnOldVersion runs a container with runc by another
// name: nobody refuses to run a specification that claims an old version.
func TestRuntimesOtherThanRuncGetAnOldVersion(t *testing.T) {
	r := newRig(t)
	r.run("box", &api.Options{})
	runc, err := exec.LookPath("runc")
	if err != nil {
		t.Fatal(err)
	}
	other := filepath.Join(r.dir, "other")
	if err := os.Symlink(runc, other); err != nil {
		t.Fatal(err)
	}
	opts, err := typeurl.MarshalAny(&options.Options{BinaryName: other})
	if err != nil {
		t.Fatal(err)
	}
	bundle := r.bundle("c", "true")
	r.editSpec(bundle, func(spec *specs.Spec) { spec.Version = "1.3.0" })
	r.start("box", task.CreateRequest{ID: "c", Bundle: bundle, Options: opts})
	r.editSpec(bundle, func(spec *specs.Spec) {
		if spec.Version != "1.0.2" {
			t.Errorf("the runtime got a specification of version %s", spec.Version)
		}
	})
	r.wait("box", "c")
	if _, err := r.tasks("box").Delete(r.ctx(), "c", ""); err != nil {
		t.Error(err)
	}
}

func TestFailedCreateLeavesNothing(t *testing.T) {
	r := newRig(t)
	r.run("sb", &api.Options{})
	tasks := r.tasks("sb")
	for name, tc := range map[string]struct {
		req  func(bundle string) task.CreateRequest
		edit func(*specs.Spec)
		is   func(error) bool
		want string
	}{
		"no such program": {
			edit: func(s *specs.Spec) { s.Process.Args = []string{"nosuch"} },
			is:   errdefs.IsNotFound, want: "nosuch",
		},
		"not executable": {
			edit: func(s *specs.Spec) { s.Process.Args = []string{"/etc"} },
			is:   errdefs.IsInvalidArgument, want: "permission denied",
		},
		"no such runtime": {
			req: func(bundle string) task.CreateRequest {
				any, _ := typeurl.MarshalAny(&options.Options{BinaryName: "no-such-runtime"})
				return task.CreateRequest{ID: "c", Bundle: bundle, Options: any}
			},
			is: errdefs.IsNotFound, want: "no-such-runtime",
		},
		"options of another kind": {
			req: func(bundle string) task.CreateRequest {
				any, _ := typeurl.MarshalAny(&options.CheckpointOptions{})
				return task.CreateRequest{ID: "c", Bundle: bundle, Options: any}
			},
			is: errdefs.IsInvalidArgument, want: "CheckpointOptions",
		},
		"missing FIFO": {
			req: func(bundle string) task.CreateRequest {
				return task.CreateRequest{ID: "c", Bundle: bundle, Stdio: stdio.Config{Stdout: bundle + "/none"}}
			},
			is: errdefs.IsFailedPrecondition, want: "none",
		},
		"ID with a slash": {
			req: func(bundle string) task.CreateRequest { return task.CreateRequest{ID: "../c", Bundle: bundle} },
			is:  errdefs.IsInvalidArgument, want: "../c",
		},
		"no bundle": {
			req: func(string) task.CreateRequest { return task.CreateRequest{ID: "c", Bundle: "/no/bundle"} },
			is:  errdefs.IsInvalidArgument, want: "/no/bundle",
		},
		"relative bundle": {
			req: func(string) task.CreateRequest { return task.CreateRequest{ID: "c", Bundle: "bundle"} },
			is:  errdefs.IsInvalidArgument, want: "absolute",
		},
	} {
		bundle := r.bundle("c", "true")
		if tc.edit != nil {
			r.editSpec(bundle, tc.edit)
		}
		req := task.CreateRequest{ID: "c", Bundle: bundle}
		if tc.req != nil {
			req = tc.req(bundle)
		}
		_, err := tasks.Create(r.ctx(), req)
		if !tc.is(err) || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := tasks.State(r.ctx(), "c", ""); !errdefs.IsNotFound(err) {
			t.Errorf("%s: the task is there: %v", name, err)
		}
		if left, _ := filepath.Glob(filepath.Join(r.dir, "s/*/t/*")); len(left) > 0 {
			t.Errorf("%s: left over: %v", name, left)
		}
		if left, _ := filepath.Glob(filepath.Join(r.dir, "runc/*/*")); len(left) > 0 {
			t.Errorf("%s: left over in the runtime: %v", name, left)
		}
	}
	if events := r.events.all(); len(events) > 0 {
		t.Errorf("events of what never was: %q", events)
	}
	// After all that the ID is free, and the sandbox as good as new.
	r.container("sb", "c", "exit 6")
	if exit := r.wait("sb", "c"); exit.Status != 6 {
		t.Errorf("exit %+v", exit)
	}
	if _, err := tasks.Create(r.ctx(), task.CreateRequest{ID: "c", Bundle: r.bundle("c", "true")}); !errdefs.IsAlreadyExists(err) {
		t.Errorf("second create: %v", err)
	}
}

func TestVerbsInTheWrongState(t *testing.T) {
	r := newRig(t)
	r.run("sb", &api.Options{})
	tasks, ctx := r.tasks("sb"), r.ctx()
	spec, _ := json.Marshal(specs.Process{Args: []string{"/bin/sh"}, Cwd: "/"})
	exec := task.ExecRequest{ID: "c", ExecID: "e", Spec: rawAny(spec)}
	if _, err := tasks.Create(ctx, task.CreateRequest{ID: "c", Bundle: r.bundle("c", "busybox sleep 1000")}); err != nil {
		t.Fatal(err)
	}
	for name, err := range map[string]error{
		"pause of a created task":  tasks.Pause(ctx, "c"),
		"resume of a created task": tasks.Resume(ctx, "c"),
		"resize without terminal":  tasks.ResizePty(ctx, "c", "", 1, 1),
		"checkpoint when created":  tasks.Checkpoint(ctx, "c", r.dir, nil),
	} {
		if !errdefs.IsFailedPrecondition(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := tasks.Start(ctx, "c", ""); err != nil {
		t.Fatal(err)
	}
	if _, err := tasks.Start(ctx, "c", ""); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("second start: %v", err)
	}
	if _, err := tasks.Delete(ctx, "c", ""); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("delete of a running task: %v", err)
	}
	if err := tasks.Kill(ctx, "c", "", 0, false); !errdefs.IsInvalidArgument(err) {
		t.Errorf("signal 0: %v", err)
	}
	if err := tasks.Exec(ctx, exec); err != nil {
		t.Fatal(err)
	}
	if err := tasks.Exec(ctx, exec); !errdefs.IsAlreadyExists(err) {
		t.Errorf("second exec: %v", err)
	}
	if err := tasks.Kill(ctx, "c", "e", 15, false); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("kill of an exec that was not started: %v", err)
	}
	if _, err := tasks.Delete(ctx, "c", "e"); err != nil {
		t.Errorf("delete of an exec that was not started: %v", err)
	}
	if err := tasks.Kill(ctx, "c", "", 9, true); err != nil {
		t.Errorf("kill all: %v", err)
	}
	r.wait("sb", "c")
	if err := tasks.Kill(ctx, "c", "", 9, true); !errdefs.IsNotFound(err) {
		t.Errorf("kill of an ended task: %v", err)
	}
	if err := tasks.Exec(ctx, exec); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("exec in an ended task: %v", err)
	}
	if pids, err := tasks.Pids(ctx, "c"); err != nil || len(pids) != 1 {
		t.Errorf("pids of an ended task: %v, %v", pids, err)
	}
	exit, err := tasks.Delete(ctx, "c", "")
	if err != nil || exit.Status != 137 {
		t.Errorf("delete: %+v, %v", exit, err)
	}
	if _, err := tasks.Delete(ctx, "c", ""); !errdefs.IsNotFound(err) {
		t.Errorf("second delete: %v", err)
	}
}

func TestPauseStatsUpdateAndOOM(t *testing.T) {
	r := newRig(t)
	r.run("sb", &api.Options{Resources: &api.Resources{MemoryLimit: 64 << 20}})
	r.container("sb", "c", "busybox sleep 1000")
	tasks, ctx := r.tasks("sb"), r.ctx()
	if err := tasks.Pause(ctx, "c"); err != nil {
		t.Fatal(err)
	}
	if st, err := tasks.State(ctx, "c", ""); err != nil || !st.Paused {
		t.Errorf("state %+v, %v", st, err)
	}
	// A new daemon knows that it is paused.
	r.close()
	r.open()
	tasks = r.tasks("sb")
	if st, err := tasks.State(ctx, "c", ""); err != nil || !st.Paused {
		t.Errorf("state after a restart %+v, %v", st, err)
	}
	if err := tasks.Resume(ctx, "c"); err != nil {
		t.Fatal(err)
	}
	if stats, err := tasks.Stats(ctx, "c"); err != nil || !strings.Contains(stats.GetTypeUrl(), "Metrics") {
		t.Errorf("stats %v, %v", stats, err)
	}
	if m, err := r.ctl.Metrics(ctx, "sb"); err != nil || m.GetID() != "sb" {
		t.Errorf("metrics %v, %v", m, err)
	}
	limit := int64(32 << 20)
	res, _ := json.Marshal(specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit}})
	if err := tasks.Update(ctx, "c", rawAny(res)); err != nil {
		t.Errorf("update: %v", err)
	}
	if err := tasks.Update(ctx, "c", rawAny("{")); !errdefs.IsInvalidArgument(err) {
		t.Errorf("update with a torn message: %v", err)
	}
	change, _ := typeurl.MarshalAny(&api.Options{Resources: &api.Resources{MemoryLimit: 48 << 20}, Annotations: map[string]string{"a": "b"}})
	sb := core.Sandbox{ID: "sb", Labels: map[string]string{"l": "m"}, Extensions: map[string]typeurl.Any{"caisson.sandbox.v1.Options": change}}
	if err := r.ctl.Update(ctx, "sb", sb, "labels", "extensions"); err != nil {
		t.Fatal(err)
	}
	if got, err := r.store.Get(ctx, "sb"); err != nil || got.Labels["l"] != "m" {
		t.Errorf("record %+v, %v", got, err)
	}
	// The sandbox's new limit holds for its containers.
	r.container("sb", "hog", "busybox head -c 60000000 /dev/zero | busybox tail; exit 3")
	r.wait("sb", "hog")
	events := r.events.all()
	if oom := slices.Index(events, "*events.TaskOOM"); oom < 0 || oom > slices.Index(events, "exit hog hog 3") {
		t.Errorf("no OOM before the exit in %q", events)
	}
}

func TestCancelledCreateEndsTheRuntime(t *testing.T) {
	r := newRig(t)
	r.run("sb", &api.Options{})
	ctx, cancel := context.WithTimeout(r.ctx(), 5*time.Millisecond) // runc takes longer
	defer cancel()
	_, err := r.tasks("sb").Create(ctx, task.CreateRequest{ID: "c", Bundle: r.bundle("c", "true")})
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("create: %v", err)
	}
	r.container("sb", "c", "exit 1")
	r.wait("sb", "c")
}

// TestAStreamDoesNotWaitForTheOther: the end of one is seen while nobody reads the other,
// by a daemon that was there and by one that was not.
func TestAStreamDoesNotWaitForTheOther(t *testing.T) {
	for _, away := range []bool{false, true} {
		r := newRig(t)
		r.run("sb", &api.Options{})
		cfg := stdio.Config{Stdout: filepath.Join(r.dir, "out"), Stderr: filepath.Join(r.dir, "err")}
		for _, path := range []string{cfg.Stdout, cfg.Stderr} {
			if err := unix.Mkfifo(path, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		r.start("sb", task.CreateRequest{ID: "c", Bundle: r.bundle("c", "echo unread; echo read >&2; exit 5"), Stdio: cfg})
		read := func(path, want string) {
			t.Helper()
			f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
			if err != nil {
				t.Fatal(err)
			}
			if got := (&fifos{stdout: f}).readAll(t); got != want {
				t.Errorf("%s: %q, want %q", filepath.Base(path), got, want)
			}
			f.Close()
		}
		if exit := r.wait("sb", "c"); exit.Status != 5 {
			t.Errorf("exit %+v", exit)
		}
		if away {
			r.close()
			r.open()
		}
		read(cfg.Stderr, "read\n")
		read(cfg.Stdout, "unread\n")
	}
}

// TestStateOfWhatWasStarted: who starts a process and then asks for its state, as
// containerd does, may begin to read its output after that.
func TestStateOfWhatWasStarted(t *testing.T) {
	r := newRig(t)
	r.run("sb", &api.Options{})
	r.container("sb", "c", "exec busybox sleep 1000")
	out := filepath.Join(r.dir, "exec")
	if err := unix.Mkfifo(out, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(out, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	tasks := r.tasks("sb")
	spec := rawAny(`{"args": ["/bin/sh", "-c", "echo words"], "cwd": "/", "env": ["PATH=/bin"]}`)
	if err := tasks.Exec(r.ctx(), task.ExecRequest{ID: "c", ExecID: "e", Stdio: stdio.Config{Stdout: out}, Spec: spec}); err != nil {
		t.Fatal(err)
	}
	if _, err := tasks.State(r.ctx(), "c", "e"); err != nil {
		t.Error(err)
	}
	if _, err := tasks.Start(r.ctx(), "c", "e"); err != nil {
		t.Fatal(err)
	}
	if _, err := tasks.Wait(r.ctx(), "c", "e"); err != nil {
		t.Error(err)
	}
	begin := time.Now()
	if st, err := tasks.State(r.ctx(), "c", "e"); err != nil || st.State != task.Stopped {
		t.Errorf("state %+v, %v", st, err)
	}
	if took := time.Since(begin); took > time.Second { // it waited for two
		t.Errorf("the state was told after %v", took)
	}
	if got := (&fifos{stdout: f}).readAll(t); got != "words\n" {
		t.Errorf("output %q", got)
	}
}

// TestStateWaitsForTheReader: a client that asks again whether a process has ended has
// had the time to open its output, and does not wait for longer than that.
func TestStateWaitsForTheReader(t *testing.T) {
	r := newRig(t)
	r.run("sb", &api.Options{})
	out := filepath.Join(r.dir, "out")
	if err := unix.Mkfifo(out, 0o600); err != nil {
		t.Fatal(err)
	}
	r.start("sb", task.CreateRequest{ID: "c", Bundle: r.bundle("c", "echo words; exit 5"), Stdio: stdio.Config{Stdout: out}})
	r.wait("sb", "c")
	r.close()
	r.open()
	state := func() {
		t.Helper()
		if st, err := r.tasks("sb").State(r.ctx(), "c", ""); err != nil || st.Exit.Status != 5 {
			t.Errorf("state %+v, %v", st, err)
		}
	}
	state()
	told := make(chan struct{})
	go func() {
		defer close(told)
		state()
	}()
	select {
	case <-told:
		t.Error("told that it ended to a client that is opening its output")
	case <-time.After(100 * time.Millisecond): // nothing happens, which takes time to see
	}
	f, err := os.Open(out)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	<-told
	if got := (&fifos{stdout: f}).readAll(t); got != "words\n" {
		t.Errorf("output %q", got)
	}
}
