package libcontainerd_test

import (
	"context"
	"fmt"
	"net"
	"testing"
	"time"

	apievents "github.com/containerd/containerd/api/events"
	sandboxapi "github.com/containerd/containerd/api/services/sandbox/v1"
	"github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/types/known/timestamppb"
)

const sandboxer = "fake"

// fakeSandbox is a sandbox whose one process a test ends as it likes.
type fakeSandbox struct {
	record  sandbox.Sandbox
	created bool
	fakeProcess
}

// sandboxStore has the fake's sandboxes' records.
type sandboxStore struct {
	sandbox.Store // List is not needed
	f             *conn
}

func (s sandboxStore) Create(_ context.Context, sb sandbox.Sandbox) (sandbox.Sandbox, error) {
	return sb, s.f.native(func() error {
		if s.f.sandboxes[sb.ID] != nil {
			return fmt.Errorf("sandbox %q: %w", sb.ID, errdefs.ErrAlreadyExists)
		}
		s.f.sandboxes[sb.ID] = &fakeSandbox{record: sb, fakeProcess: fakeProcess{exited: make(chan struct{})}}
		return nil
	})
}

func (s sandboxStore) Get(_ context.Context, id string) (sb sandbox.Sandbox, err error) {
	if err := s.f.hook("sandbox"); err != nil {
		return sb, errgrpc.ToNative(err)
	}
	s.f.mu.Lock()
	defer s.f.mu.Unlock()
	if err := s.f.downLocked(); err != nil {
		return sb, errgrpc.ToNative(err)
	}
	if f := s.f.sandboxes[id]; f != nil {
		return f.record, nil
	}
	return sb, fmt.Errorf("sandbox %q: %w", id, errdefs.ErrNotFound)
}

func (s sandboxStore) Update(_ context.Context, sb sandbox.Sandbox, _ ...string) (sandbox.Sandbox, error) {
	return sb, s.f.native(func() error {
		f := s.f.sandboxes[sb.ID]
		if f == nil {
			return fmt.Errorf("sandbox %q: %w", sb.ID, errdefs.ErrNotFound)
		}
		f.record.Labels = sb.Labels
		return nil
	})
}

func (s sandboxStore) Delete(_ context.Context, id string) error {
	return s.f.native(func() error {
		if s.f.sandboxes[id] == nil {
			return fmt.Errorf("sandbox %q: %w", id, errdefs.ErrNotFound)
		}
		delete(s.f.sandboxes, id)
		return nil
	})
}

// controllers serves the fake's sandboxes to one program.
type controllers struct {
	sandboxapi.UnimplementedControllerServer
	f *conn
}

// dial connects to the controllers, which a containerd client only knows by gRPC.
func (f *conn) dial(t *testing.T) *grpc.ClientConn {
	t.Helper()
	l := bufconn.Listen(1 << 16)
	server := grpc.NewServer()
	sandboxapi.RegisterControllerServer(server, controllers{f: f})
	go server.Serve(l)
	cc, err := grpc.NewClient("passthrough:fake", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cc.Close()
		server.Stop()
	})
	return cc
}

// sandbox runs a call about a sandbox that was created.
func (c controllers) sandbox(id string, do func(*fakeSandbox) error) error {
	return c.f.call(func() error {
		s := c.f.sandboxes[id]
		if s == nil || !s.created {
			return fmt.Errorf("sandbox %q: %w", id, errdefs.ErrNotFound)
		}
		return do(s)
	})
}

func (c controllers) Create(_ context.Context, r *sandboxapi.ControllerCreateRequest) (*sandboxapi.ControllerCreateResponse, error) {
	return &sandboxapi.ControllerCreateResponse{SandboxID: r.SandboxID}, c.f.call(func() error {
		s := c.f.sandboxes[r.SandboxID]
		if s == nil {
			return fmt.Errorf("sandbox %q: %w", r.SandboxID, errdefs.ErrNotFound)
		}
		s.created = true
		c.f.publishLocked("/sandboxes/create", &apievents.SandboxCreate{SandboxID: r.SandboxID})
		return nil
	})
}

func (c controllers) Start(_ context.Context, r *sandboxapi.ControllerStartRequest) (*sandboxapi.ControllerStartResponse, error) {
	resp := &sandboxapi.ControllerStartResponse{SandboxID: r.SandboxID}
	return resp, c.sandbox(r.SandboxID, func(s *fakeSandbox) error {
		if s.started {
			return fmt.Errorf("sandbox has been started: %w", errdefs.ErrFailedPrecondition)
		}
		c.f.nextPid++
		s.pid, s.started = c.f.nextPid, true
		resp.Pid = s.pid
		c.f.publishLocked("/sandboxes/start", &apievents.SandboxStart{SandboxID: r.SandboxID})
		return nil
	})
}

// endSandbox lets the sandbox end by itself.
func (f *fake) endSandbox(id string, code uint32) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.endSandboxLocked(f.sandboxes[id], code)
}

func (f *fake) endSandboxLocked(s *fakeSandbox, code uint32) {
	if !s.started || !s.at.IsZero() {
		return
	}
	s.code, s.at = code, time.Now()
	close(s.exited)
	f.exits = append(f.exits, fakeExit{s.record.ID, s.record.ID, 0, code, s.at.UnixNano()})
	f.publishLocked("/sandboxes/exit", &apievents.SandboxExit{SandboxID: s.record.ID, ExitStatus: code, ExitedAt: timestamppb.New(s.at)})
}

func (c controllers) Stop(_ context.Context, r *sandboxapi.ControllerStopRequest) (*sandboxapi.ControllerStopResponse, error) {
	return &sandboxapi.ControllerStopResponse{}, c.sandbox(r.SandboxID, func(s *fakeSandbox) error {
		c.f.endSandboxLocked(s, 137)
		return nil
	})
}

func (c controllers) Wait(ctx context.Context, r *sandboxapi.ControllerWaitRequest) (*sandboxapi.ControllerWaitResponse, error) {
	var s *fakeSandbox
	err := c.sandbox(r.SandboxID, func(found *fakeSandbox) error { s = found; return nil })
	if err != nil {
		return nil, err
	}
	c.f.mu.Lock()
	life := c.f.life
	c.f.mu.Unlock()
	select {
	case <-s.exited:
		return &sandboxapi.ControllerWaitResponse{ExitStatus: s.code, ExitedAt: timestamppb.New(s.at)}, nil
	case <-life:
		return nil, errAway
	case <-ctx.Done():
		return nil, status.FromContextError(ctx.Err()).Err()
	}
}

func (c controllers) Status(_ context.Context, r *sandboxapi.ControllerStatusRequest) (*sandboxapi.ControllerStatusResponse, error) {
	resp := &sandboxapi.ControllerStatusResponse{SandboxID: r.SandboxID, State: "SANDBOX_NOTREADY"}
	return resp, c.sandbox(r.SandboxID, func(s *fakeSandbox) error {
		switch {
		case !s.at.IsZero():
			resp.ExitedAt = timestamppb.New(s.at)
		case s.started:
			resp.State, resp.Pid = "SANDBOX_READY", s.pid
		}
		return nil
	})
}

func (c controllers) Shutdown(_ context.Context, r *sandboxapi.ControllerShutdownRequest) (*sandboxapi.ControllerShutdownResponse, error) {
	return &sandboxapi.ControllerShutdownResponse{}, c.sandbox(r.SandboxID, func(s *fakeSandbox) error {
		c.f.endSandboxLocked(s, 137)
		s.created = false
		return nil
	})
}

func (c controllers) Metrics(_ context.Context, r *sandboxapi.ControllerMetricsRequest) (*sandboxapi.ControllerMetricsResponse, error) {
	metrics, err := metricsOf(0)
	if err != nil {
		return nil, err
	}
	return &sandboxapi.ControllerMetricsResponse{Metrics: metrics}, c.sandbox(r.SandboxID, func(*fakeSandbox) error { return nil })
}

func (c controllers) Update(_ context.Context, r *sandboxapi.ControllerUpdateRequest) (*sandboxapi.ControllerUpdateResponse, error) {
	return &sandboxapi.ControllerUpdateResponse{}, c.sandbox(r.SandboxID, func(*fakeSandbox) error { return nil })
}
