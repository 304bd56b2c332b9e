package daemon

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"testing"

	ttrpcevents "github.com/containerd/containerd/api/services/ttrpc/events/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/errdefs"
	"github.com/containerd/ttrpc"
	"google.golang.org/protobuf/types/known/emptypb"
)

// sink is a containerd that takes events.
type sink struct{ got chan string }

func (s sink) Forward(_ context.Context, r *ttrpcevents.ForwardRequest) (*emptypb.Empty, error) {
	s.got <- r.GetEnvelope().GetTopic()
	return &emptypb.Empty{}, nil
}

// serveEvents is a containerd with this gRPC address.
func serveEvents(t *testing.T, address string) sink {
	t.Helper()
	s := sink{make(chan string, 10)}
	srv, err := ttrpc.NewServer()
	if err != nil {
		t.Fatal(err)
	}
	ttrpcevents.RegisterTTRPCEventsService(srv, s)
	l, err := net.Listen("unix", address+ttrpcSuffix)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(context.Background(), l) }()
	t.Cleanup(func() {
		if err := srv.Close(); err != nil {
			t.Error(err)
		}
		if err := <-done; !errors.Is(err, ttrpc.ErrServerClosed) {
			t.Error(err)
		}
	})
	return s
}

func TestForwarder(t *testing.T) {
	dir := shortDir(t)
	configured, elsewhere := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	f, err := newForwarder(configured)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := f.close(); err != nil {
			t.Error(err)
		}
	}()
	send := func(topic string) error { return f.forward(t.Context(), &types.Envelope{Topic: topic}) }
	if err := send("/0"); !errdefs.IsUnavailable(err) {
		t.Errorf("nobody is there: %v", err)
	}
	f.name("no path")
	f.name(filepath.Join(dir, "nobody"))
	if err := send("/0"); !errdefs.IsUnavailable(err) {
		t.Errorf("nobody is there, either: %v", err)
	}

	other := serveEvents(t, elsewhere)
	f.name("unix://" + elsewhere)
	if err := send("/1"); err != nil || <-other.got != "/1" {
		t.Errorf("to the one that was named: %v", err)
	}
	// The configured one comes late, and stays.
	own := serveEvents(t, configured)
	if err := send("/2"); err != nil || <-own.got != "/2" {
		t.Errorf("to the configured one: %v", err)
	}
	f.name(elsewhere + "2")
	if f.address != elsewhere || len(other.got) > 0 {
		t.Errorf("after the configured one answered, %s is known, and the other got %d events", f.address, len(other.got))
	}
}
