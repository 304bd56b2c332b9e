package service

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	api "github.com/containerd/containerd/api/services/sandbox/v1"
	"github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"

	"caisson/internal/subject"
)

// TestLocal: calls in the process reach the controller and its observers as those of
// clients do.
func TestLocal(t *testing.T) {
	var calls told
	f := &fakeController{}
	l := Local(f, Observe{Calls: &calls})
	verbs := []struct {
		name string
		call func(ctx context.Context) error
	}{
		{"Create", func(ctx context.Context) error {
			return l.Create(ctx, sandbox.Sandbox{ID: "sb"}, sandbox.WithNetNSPath("/n"))
		}},
		{"Start", func(ctx context.Context) error { _, err := l.Start(ctx, "sb"); return err }},
		{"Platform", func(ctx context.Context) error { _, err := l.Platform(ctx, "sb"); return err }},
		{"Status", func(ctx context.Context) error { _, err := l.Status(ctx, "sb", true); return err }},
		{"Metrics", func(ctx context.Context) error { _, err := l.Metrics(ctx, "sb"); return err }},
		{"Update", func(ctx context.Context) error { return l.Update(ctx, "sb", sandbox.Sandbox{ID: "sb"}, "labels") }},
		{"Stop", func(ctx context.Context) error { return l.Stop(ctx, "sb", sandbox.WithTimeout(time.Second)) }},
		{"Shutdown", func(ctx context.Context) error { return l.Shutdown(ctx, "sb") }},
	}
	ctx := namespaces.WithNamespace(context.Background(), "ns")
	var want []string
	for _, verb := range verbs {
		method := "/" + api.Controller_ServiceDesc.ServiceName + "/" + verb.name
		want = append(want, method+" true <nil>", method+" true the reason: not found", method+" true namespace is required: failed precondition")
		f.fail(nil)
		if err := verb.call(ctx); err != nil {
			t.Errorf("%s: %v", verb.name, err)
		}
		if got := f.last(); got.Verb != verb.name || got.Namespace != "ns" || got.ID != "sb" {
			t.Errorf("%s came as %+v", verb.name, got)
		}
		f.fail(fmt.Errorf("the reason: %w", errdefs.ErrNotFound))
		// In one piece, or CRI's clients get a list of its parts.
		if err := verb.call(ctx); !errdefs.IsNotFound(err) || errors.Unwrap(err) != nil || err.Error() != "the reason: not found" {
			t.Errorf("%s: %#v", verb.name, err)
		}
		if err := verb.call(context.Background()); !errdefs.IsFailedPrecondition(err) {
			t.Errorf("%s without a namespace: %v", verb.name, err)
		}
	}
	if diff := cmp.Diff(want, calls.calls); diff != "" {
		t.Error(diff)
	}
}

// TestLocalSubject: the log says of which sandbox it speaks.
func TestLocalSubject(t *testing.T) {
	ctl := &seen{}
	if _, err := Local(ctl, Observe{}).Start(namespaces.WithNamespace(context.Background(), "ns"), "sb"); err != nil {
		t.Fatal(err)
	}
	if want := (subject.Subject{Namespace: "ns", SandboxID: "sb"}); ctl.subject != want {
		t.Errorf("the call is about %+v", ctl.subject)
	}
}

// TestLocalWait: the end of the daemon is not that of its sandboxes.
func TestLocalWait(t *testing.T) {
	ctl := &seen{}
	l := Local(ctl, Observe{})
	ctx, cancel := context.WithCancel(namespaces.WithNamespace(context.Background(), "ns"))
	if _, err := l.Wait(ctx, "sb"); err != nil {
		t.Error(err)
	}
	ctl.err = errdefs.ErrNotFound
	if _, err := l.Wait(ctx, "sb"); !errdefs.IsNotFound(err) {
		t.Error(err)
	}
	ctl.err = errdefs.ErrUnavailable // closed
	answered := make(chan error, 1)
	go func() {
		_, err := l.Wait(ctx, "sb")
		answered <- err
	}()
	select {
	case err := <-answered:
		t.Errorf("answered %v", err)
	case <-time.After(50 * time.Millisecond): // what does not come has no other sign
	}
	cancel()
	if err := <-answered; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}
