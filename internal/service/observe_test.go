package service

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/ttrpc"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"

	api "github.com/containerd/containerd/api/services/sandbox/v1"

	"caisson/internal/ceiling"
	"caisson/internal/subject"
)

// told remembers the calls that it is told of.
type told struct {
	mu    sync.Mutex // guards calls
	calls []string
}

func (t *told) Called(method string, took time.Duration, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.calls = append(t.calls, fmt.Sprint(method, " ", took >= 0, " ", err))
}

// seen returns what a fake controller saw of a call's subject.
type seen struct {
	sandbox.Controller
	subject subject.Subject
	err     error
}

func (s *seen) Start(ctx context.Context, _ string) (sandbox.ControllerInstance, error) {
	s.subject = subject.From(ctx)
	return sandbox.ControllerInstance{}, s.err
}

func (s *seen) Wait(ctx context.Context, _ string) (sandbox.ExitStatus, error) {
	s.subject = subject.From(ctx)
	return sandbox.ExitStatus{}, s.err
}

func TestCallsAreTold(t *testing.T) {
	var calls told
	ctl := &seen{}
	o := Observe{Calls: &calls}
	ctx := namespaces.WithNamespace(context.Background(), "ns1")
	service := &controllerService{ctl: ctl}
	start := func(ctx context.Context) error {
		_, err := o.grpcCall(ctx, &api.ControllerStartRequest{SandboxID: "sb1"}, &grpc.UnaryServerInfo{FullMethod: "/c.Controller/Start"},
			func(ctx context.Context, req any) (any, error) {
				return service.Start(ctx, req.(*api.ControllerStartRequest))
			})
		return err
	}
	if err := start(ctx); err != nil {
		t.Fatal(err)
	}
	if want := (subject.Subject{Namespace: "ns1", SandboxID: "sb1"}); ctl.subject != want {
		t.Errorf("the call is about %+v", ctl.subject)
	}
	ctl.err = errdefs.ErrNotFound
	if err := start(ctx); err == nil {
		t.Error("no error")
	}
	if err := start(context.Background()); err == nil {
		t.Error("without a namespace, no error")
	}
	wait := func(ctx context.Context, req any) (any, error) {
		return service.Wait(ctx, req.(*api.ControllerWaitRequest))
	}
	if _, err := o.grpcCall(ctx, &api.ControllerWaitRequest{SandboxID: "sb1"}, &grpc.UnaryServerInfo{FullMethod: "/c.Controller/Wait"}, wait); err == nil {
		t.Error("no error of Wait")
	}
	want := []string{
		"/c.Controller/Start true <nil>", "/c.Controller/Start true not found",
		"/c.Controller/Start true namespace is required: failed precondition",
	}
	if diff := cmp.Diff(want, calls.calls); diff != "" {
		t.Error(diff)
	}
}

// A request of ttrpc is decoded in the method, so what it is about is known only then.
func TestSubjectOfATask(t *testing.T) {
	ctx := context.WithValue(namespaces.WithNamespace(context.Background(), "ns1"), sandboxKey{}, sandboxName{"ns1", "sb1"})
	var got subject.Subject
	call := func(o Observe) {
		t.Helper()
		got = subject.Subject{}
		_, err := o.traced(o.ttrpcCall)(ctx, func(req any) error {
			r := req.(*taskapi.ExecProcessRequest)
			r.ID, r.ExecID = "c1", "e1"
			return nil
		}, &ttrpc.UnaryServerInfo{FullMethod: "/containerd.task.v3.Task/Exec"}, func(ctx context.Context, decode func(any) error) (any, error) {
			var req taskapi.ExecProcessRequest
			err := decode(&req)
			got = subject.From(ctx)
			return &req, err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, o := range []Observe{{}, {Traces: true}} {
		call(o)
		if want := (subject.Subject{Namespace: "ns1", SandboxID: "sb1", ContainerID: "c1", ExecID: "e1"}); got != want {
			t.Errorf("%+v: the call is about %+v", o, got)
		}
	}
}

// BenchmarkCall is what observing adds to a call.
func BenchmarkCall(b *testing.B) {
	ctx := context.WithValue(namespaces.WithNamespace(context.Background(), "ns1"), sandboxKey{}, sandboxName{"ns1", "sb1"})
	decode := func(req any) error { req.(*taskapi.StateRequest).ID = "c1"; return nil }
	answer := &taskapi.StateResponse{}
	defer ceiling.Allocs(b, 10)()
	for b.Loop() {
		_, _ = Observe{}.ttrpcCall(ctx, decode, &ttrpc.UnaryServerInfo{FullMethod: "/containerd.task.v3.Task/State"}, func(_ context.Context, decode func(any) error) (any, error) {
			return answer, decode(&taskapi.StateRequest{})
		})
	}
}
