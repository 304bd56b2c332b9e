package events

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"testing"

	taskevents "github.com/containerd/containerd/api/events"
	ttrpcevents "github.com/containerd/containerd/api/services/ttrpc/events/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/ttrpc"
	"google.golang.org/protobuf/types/known/emptypb"
)

// ttrpcSink serves containerd's event service the way containerd does.
type ttrpcSink struct{ *sink }

func (s ttrpcSink) Forward(ctx context.Context, r *ttrpcevents.ForwardRequest) (*emptypb.Empty, error) {
	if r.GetEnvelope().GetTopic() == "/bad" {
		return nil, errgrpc.ToGRPC(errdefs.ErrInvalidArgument)
	}
	return &emptypb.Empty{}, errgrpc.ToGRPC(s.forward(ctx, r.GetEnvelope()))
}

func serve(t *testing.T, path string, s *sink) (stop func()) {
	t.Helper()
	server, err := ttrpc.NewServer()
	if err != nil {
		t.Fatal(err)
	}
	ttrpcevents.RegisterTTRPCEventsService(server, ttrpcSink{s})
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- server.Serve(context.Background(), l) }()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		if err := server.Close(); err != nil {
			t.Error(err)
		}
		if err := <-done; !errors.Is(err, ttrpc.ErrServerClosed) {
			t.Error(err)
		}
	}
	t.Cleanup(stop)
	return stop
}

func socketPath(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "c")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return filepath.Join(dir, "s")
}

func dial(t *testing.T, address string) *Remote {
	t.Helper()
	r, err := Dial(address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

func TestContainerdComesAndGoes(t *testing.T) {
	ctx, path, s := testContext(t), socketPath(t), newSink()
	r := dial(t, "unix://"+path)
	// What counts is what was answered: an event whose answer was lost with the
	// connection is sent again, and so arrives twice.
	answered := newSink()
	j := openJournal(t, t.TempDir(), func(ctx context.Context, e *types.Envelope) error {
		if err := r.Forward(ctx, e); err != nil {
			return err
		}
		return answered.forward(ctx, e)
	})

	publish(ctx, t, j, "", "c0") // before containerd's first start
	publish(ctx, t, j, "", "c1")
	stop := serve(t, path, s)
	answered.wait(ctx, t, ids(2)...)

	stop()
	publish(ctx, t, j, "", "c2") // between two of its lives
	publish(ctx, t, j, "", "c3")
	stop = serve(t, path, s)
	answered.wait(ctx, t, ids(4)...)

	stop() // it restarts while nothing happens: the idle connection is found broken
	serve(t, path, s)
	if err := j.Publish(ctx, "", "/bad", &taskevents.TaskStart{}); err != nil {
		t.Fatal(err)
	}
	publish(ctx, t, j, "", "c4")
	answered.wait(ctx, t, ids(5)...)
}

func TestContainerdRefusesForAWhile(t *testing.T) {
	ctx, path, s := testContext(t), socketPath(t), newSink()
	serve(t, path, s)
	s.setAway(errdefs.ErrUnavailable)
	j := openJournal(t, t.TempDir(), dial(t, path).Forward)
	publish(ctx, t, j, "", "c0")
	for range 3 {
		<-s.news
	}
	s.setAway(nil)
	s.wait(ctx, t, "c0")
}

// Close must not wait for a containerd that accepted the event and never answers.
func TestCloseEndsAHangingAttempt(t *testing.T) {
	ctx := testContext(t)
	path := socketPath(t)
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	accepted := make(chan net.Conn, 1)
	go func() {
		conn, err := l.Accept()
		if err != nil {
			t.Error(err)
		}
		accepted <- conn
	}()
	j := openJournal(t, t.TempDir(), dial(t, path).Forward)
	publish(ctx, t, j, "", "c0")
	defer (<-accepted).Close()
	short, cancel := context.WithCancel(ctx)
	cancel()
	if err := j.Close(short); !errors.Is(err, context.Canceled) {
		t.Fatalf("close: %v, want the context's error", err)
	}
	if n := j.Unsent(); n != 1 {
		t.Fatalf("%d events unsent, want 1", n)
	}
}

func TestRemoteErrors(t *testing.T) {
	ctx := testContext(t)
	for _, bad := range []string{"", "relative", "unix://relative"} {
		if _, err := Dial(bad); !errdefs.IsInvalidArgument(err) {
			t.Errorf("dial %q: %v, want InvalidArgument", bad, err)
		}
	}
	r := dial(t, socketPath(t))
	if err := r.Forward(ctx, nil); !errdefs.IsUnavailable(err) {
		t.Errorf("nobody listens: %v, want Unavailable", err)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	if err := r.Forward(ctx, nil); !errdefs.IsUnavailable(err) {
		t.Errorf("closed: %v, want Unavailable", err)
	}
}
