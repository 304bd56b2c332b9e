package service

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/runtime"
	"github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"

	"caisson/internal/ceiling"
	"caisson/internal/subject"
	"caisson/internal/task"
)

// foundTask is a task as containerd's manager of tasks finds it.
type foundTask struct {
	runtime.Task
	address string
}

func (t foundTask) ID() string              { return "c1" }
func (t foundTask) Namespace() string       { return "ns" }
func (t foundTask) Endpoint() (string, int) { return t.address, 3 }

// noTasks fails each question for a sandbox's tasks; asked is done before.
type noTasks struct {
	sandbox.Controller
	err   error
	asked func(ctx context.Context, sandboxID string)
}

func (n *noTasks) Tasks(ctx context.Context, sandboxID string) (*task.Set, error) {
	n.asked(ctx, sandboxID)
	return nil, n.err
}

func (n *noTasks) CreateTask(context.Context, string, task.CreateRequest) (int, error) {
	return 0, n.err
}
func (n *noTasks) Release(context.Context, string) error { return n.err }
func (n *noTasks) Started(context.Context, string) (sandbox.ControllerInstance, error) {
	return sandbox.ControllerInstance{}, n.err
}

// serveTasks serves a sandbox "sb" whose tasks are ctl's, and returns its address too.
func serveTasks(t *testing.T, ctl Tasks, observe Observe) (*Endpoints, string) {
	t.Helper()
	e, err := NewEndpoints(t.Context(), ctl, nil, observe)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "s")
	served, err := e.Serve("ns", "sb", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(served.Remove(), e.Close()); err != nil {
			t.Error(err)
		}
		if _, ok := e.at(path); ok {
			t.Error("an endpoint that was removed is served")
		}
	})
	return e, "ttrpc+unix://" + path
}

// TestLocalTask: the calls for a task in this process reach its sandbox and the observers
// as those of clients do.
func TestLocalTask(t *testing.T) {
	var calls told
	var got subject.Subject
	ctl := &noTasks{
		err: fmt.Errorf("the reason: %w", errdefs.ErrNotFound),
		asked: func(ctx context.Context, sandboxID string) {
			got = subject.From(ctx)
			if sandboxID != "sb" {
				t.Errorf("asked for sandbox %q", sandboxID)
			}
		},
	}
	e, address := serveTasks(t, ctl, Observe{Calls: &calls})
	found := foundTask{address: address}
	local := e.Local(found)
	if local.ID() != "c1" || local.Namespace() != "ns" {
		t.Errorf("task %q in %q", local.ID(), local.Namespace())
	}
	exec := &localProcess{e, sandboxName{"ns", "sb"}, "c1", "e1"}
	if exec.ID() != "e1" {
		t.Errorf("process %q", exec.ID())
	}
	ctx := namespaces.WithNamespace(context.Background(), "ns")
	var want []string
	for _, verb := range []struct {
		name, exec string
		call       func() error
	}{
		{"State", "", func() error { _, err := local.State(ctx); return err }},
		{"Connect", "", func() error { _, err := local.PID(ctx); return err }},
		{"Stats", "", func() error { _, err := local.Stats(ctx); return err }},
		{"Exec", "e1", func() error { _, err := local.Exec(ctx, "e1", runtime.ExecOpts{}); return err }},
		{"State", "e1", func() error { _, err := local.Process(ctx, "e1"); return err }},
		{"Start", "", func() error { return local.Start(ctx) }},
		{"Start", "e1", func() error { return exec.Start(ctx) }},
		{"Kill", "", func() error { return local.Kill(ctx, 9, true) }},
		{"ResizePty", "e1", func() error { return exec.ResizePty(ctx, runtime.ConsoleSize{}) }},
		{"CloseIO", "e1", func() error { return exec.CloseIO(ctx) }},
		{"Wait", "", func() error { _, err := local.Wait(ctx); return err }},
		{"Delete", "e1", func() error { _, err := exec.Delete(ctx); return err }},
	} {
		// In one piece, or CRI's clients get a list of its parts.
		if err := verb.call(); !errdefs.IsNotFound(err) || errors.Unwrap(err) != nil || err.Error() != "the reason: not found" {
			t.Errorf("%s: %#v", verb.name, err)
		}
		if about := (subject.Subject{Namespace: "ns", SandboxID: "sb", ContainerID: "c1", ExecID: verb.exec}); got != about {
			t.Errorf("%s is about %+v", verb.name, got)
		}
		if verb.name != "Wait" {
			want = append(want, "/containerd.task.v3.Task/"+verb.name+" true the reason: not found")
		}
	}
	if diff := cmp.Diff(want, calls.calls); diff != "" {
		t.Error(diff)
	}
	if err := local.Start(namespaces.WithNamespace(context.Background(), "other")); !errdefs.IsInvalidArgument(err) {
		t.Errorf("in another namespace: %v", err)
	}

	for _, other := range []runtime.Task{foundTask{address: address + "x"}, foundTask{}, struct{ runtime.Task }{found}} {
		if e.Local(other) != other {
			t.Errorf("the task at %v is not returned as it is", other)
		}
	}
}

// TestLocalTaskGivenUp: a caller who goes does not leave a change half made, but one who
// waits may go.
func TestLocalTaskGivenUp(t *testing.T) {
	ctl := &noTasks{err: errdefs.ErrUnavailable}
	e, address := serveTasks(t, ctl, Observe{})
	local := e.Local(foundTask{address: address})

	ctx, cancel := context.WithTimeout(namespaces.WithNamespace(context.Background(), "ns"), time.Hour)
	deadline, _ := ctx.Deadline()
	cancel()
	ctl.asked = func(ctx context.Context, _ string) {
		if at, ok := ctx.Deadline(); !ok || !at.Equal(deadline) || ctx.Err() != nil {
			t.Errorf("a call whose caller went: until %v, %v", at, ctx.Err())
		}
	}
	if err := local.Start(ctx); !errdefs.IsUnavailable(err) {
		t.Error(err)
	}
	ctl.asked = func(context.Context, string) {}
	if _, err := local.Wait(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("a wait whose caller went: %v", err)
	}
}

// TestLocalTaskLater: a wait for what cannot be told of yet goes on.
func TestLocalTaskLater(t *testing.T) {
	asked := 0
	ctl := &noTasks{err: errdefs.ErrUnavailable}
	ctl.asked = func(context.Context, string) {
		if asked++; asked == 2 {
			ctl.err = errdefs.ErrNotFound
		}
	}
	e, address := serveTasks(t, ctl, Observe{})
	if _, err := e.Local(foundTask{address: address}).Wait(namespaces.WithNamespace(t.Context(), "ns")); !errdefs.IsNotFound(err) || asked != 2 {
		t.Errorf("asked %d times: %v", asked, err)
	}
}

// BenchmarkLocalTask is what a call for a task in this process costs beside what it
// asks for.
func BenchmarkLocalTask(b *testing.B) {
	ctl := &noTasks{err: errdefs.ErrNotFound, asked: func(context.Context, string) {}}
	e, err := NewEndpoints(b.Context(), ctl, nil, Observe{})
	if err != nil {
		b.Fatal(err)
	}
	p := &localProcess{e, sandboxName{"ns", "sb"}, "c1", ""}
	ctx := namespaces.WithNamespace(b.Context(), "ns")
	defer ceiling.Allocs(b, 12)()
	for b.Loop() {
		if _, err := p.State(ctx); !errdefs.IsNotFound(err) {
			b.Fatal(err)
		}
	}
}
