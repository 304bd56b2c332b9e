package libcontainerd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	sandboxapi "github.com/containerd/containerd/api/services/sandbox/v1"
	apitypes "github.com/containerd/containerd/api/types"
	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/containerd/v2/pkg/identifiers"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/grpc"
)

var _ Sandbox = (*sandboxHandle)(nil)

type sandboxHandle struct {
	client     *client
	ledger     *ledger
	controller sandbox.Controller
}

func (c *client) NewSandbox(ctx context.Context, sb sandbox.Sandbox, opts ...sandbox.CreateOpt) (Sandbox, error) {
	if err := identifiers.Validate(sb.ID); err != nil {
		return nil, fmt.Errorf("sandbox: %w", err)
	}
	if sb.Sandboxer == "" {
		return nil, fmt.Errorf("sandbox %q: a sandboxer is needed: %w", sb.ID, errdefs.ErrInvalidArgument)
	}
	ctx, end, err := c.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	store, controller := c.server.SandboxStore(), c.server.SandboxController(sb.Sandboxer)
	id := sb.ID
	unlock, err := c.ids.lock(ctx, key{sandboxes, id})
	if err != nil {
		return nil, fmt.Errorf("sandbox: create: %w", err)
	}
	defer unlock()
	sb, err = store.Create(ctx, sb)
	if err != nil {
		return nil, failed(err, "sandbox %q: create", id)
	}
	undo := func(err error) error {
		ctx, cancel := undoing(ctx)
		defer cancel()
		if derr := failed(store.Delete(ctx, sb.ID), "sandbox %q: undo", sb.ID); !errdefs.IsNotFound(derr) {
			err = errors.Join(err, derr)
		}
		return err
	}
	l, err := c.open(sandboxes, sb.ID, func(l *ledger) {
		l.containerGone()
		l.exists()
		l.update(func() { l.beginLocked(0).init.calling = true }) // the server does not know it yet
	})
	if err != nil {
		return nil, undo(err)
	}
	if err := controller.Create(ctx, sb, opts...); err != nil {
		err = failed(err, "sandbox %q: create", sb.ID)
		if uncertain(err) {
			sctx, cancel := undoing(ctx)
			defer cancel()
			if serr := failed(controller.Shutdown(sctx, sb.ID), "sandbox %q: undo", sb.ID); !errdefs.IsNotFound(serr) {
				err = errors.Join(err, serr)
			}
		}
		l.containerGone()
		return nil, undo(err)
	}
	l.sandbox(func(p *process) {
		p.added, p.calling = true, false
		p.calls++
	})
	return &sandboxHandle{client: c, ledger: l, controller: controller}, nil
}

func (c *client) LoadSandbox(ctx context.Context, id string) (Sandbox, error) {
	if err := identifiers.Validate(id); err != nil {
		return nil, fmt.Errorf("sandbox: %w", err)
	}
	ctx, end, err := c.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	s, err := c.findSandbox(ctx, id)
	if err != nil {
		return nil, err
	}
	if err := c.reconcile(ctx, s.ledger); err != nil {
		return nil, err
	}
	return s, nil
}

func (c *client) findSandbox(ctx context.Context, id string) (*sandboxHandle, error) {
	unlock, err := c.ids.lock(ctx, key{sandboxes, id})
	if err != nil {
		return nil, fmt.Errorf("sandbox: load: %w", err)
	}
	defer unlock()
	sb, err := c.server.SandboxStore().Get(ctx, id)
	if err = failed(err, "sandbox %q: load", id); errdefs.IsNotFound(err) {
		_, lerr := c.open(sandboxes, id, (*ledger).containerGone)
		return nil, errors.Join(err, lerr)
	}
	if err != nil {
		return nil, err
	}
	l, err := c.open(sandboxes, id, (*ledger).exists)
	if err != nil {
		return nil, err
	}
	return &sandboxHandle{client: c, ledger: l, controller: c.server.SandboxController(sb.Sandboxer)}, nil
}

func (s *sandboxHandle) ID() string { return s.ledger.id }

// Start needs no repetition of its own: a sandboxer's Start undoes itself if it
// fails.
func (s *sandboxHandle) Start(ctx context.Context) error {
	ctx, end, err := s.client.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	var p *process
	s.ledger.sandbox(func(current *process) {
		p = current
		p.own = true
	})
	before := s.ledger.starting(p)
	defer s.ledger.returned(p)
	// Should this program be killed now, the next one asks whether it started.
	if err := s.ledger.save(); err != nil {
		return fmt.Errorf("sandbox %q: start: %w", s.ID(), err)
	}
	inst, err := s.controller.Start(ctx, s.ID())
	if err != nil {
		err = failed(err, "sandbox %q: start", s.ID())
		if !before && !uncertain(err) {
			s.ledger.idle(p)
		}
		return err
	}
	s.ledger.update(func() { p.startedLocked(inst.Pid) })
	return nil
}

func (s *sandboxHandle) Stop(ctx context.Context, timeout time.Duration) error {
	ctx, end, err := s.client.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	return failed(s.controller.Stop(ctx, s.ID(), sandbox.WithTimeout(timeout)), "sandbox %q: stop", s.ID())
}

func (s *sandboxHandle) Wait(ctx context.Context) (*containerd.ExitStatus, error) {
	ctx, end, err := s.client.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	st, err := s.controller.Wait(ctx, s.ID())
	if err != nil {
		return nil, failed(err, "sandbox %q: wait", s.ID())
	}
	return containerd.NewExitStatus(st.ExitStatus, st.ExitedAt, nil), nil
}

func (s *sandboxHandle) Status(ctx context.Context, verbose bool) (sandbox.ControllerStatus, error) {
	ctx, end, err := s.client.begin(ctx)
	if err != nil {
		return sandbox.ControllerStatus{}, err
	}
	defer end()
	st, err := s.controller.Status(ctx, s.ID(), verbose)
	return st, failed(err, "sandbox %q: status", s.ID())
}

func (s *sandboxHandle) Metrics(ctx context.Context) (*Stats, error) {
	ctx, end, err := s.client.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	m, err := s.controller.Metrics(ctx, s.ID())
	if err != nil {
		return nil, failed(err, "sandbox %q: metrics", s.ID())
	}
	return statsOf(fmt.Sprintf("sandbox %q", s.ID()), m)
}

func (s *sandboxHandle) Update(ctx context.Context, sb sandbox.Sandbox, fields ...string) error {
	ctx, end, err := s.client.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	sb.ID = s.ID()
	sb, err = s.client.server.SandboxStore().Update(ctx, sb, fields...)
	if err != nil {
		return failed(err, "sandbox %q: update", s.ID())
	}
	return failed(s.update(ctx, sb, fields), "sandbox %q: update", s.ID())
}

// update names the sandboxer, which containerd's own client leaves out and its server
// asks for.
func (s *sandboxHandle) update(ctx context.Context, sb sandbox.Sandbox, fields []string) error {
	conn, ok := s.client.server.Conn().(*grpc.ClientConn)
	if !ok || conn == nil {
		return s.controller.Update(ctx, s.ID(), sb, fields...)
	}
	_, err := sandboxapi.NewControllerClient(conn).Update(ctx, &sandboxapi.ControllerUpdateRequest{
		SandboxID: s.ID(), Sandboxer: sb.Sandboxer, Sandbox: sandbox.ToProto(&sb), Fields: fields,
	})
	return err
}

// Shutdown has the exit written down before the sandboxer forgets it.
func (s *sandboxHandle) Shutdown(ctx context.Context) error {
	ctx, end, err := s.client.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	if err := s.noteExit(ctx); err != nil {
		return err
	}
	if err := failed(s.controller.Shutdown(ctx, s.ID()), "sandbox %q: shutdown", s.ID()); err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	unlock, err := s.client.ids.lock(ctx, key{sandboxes, s.ID()})
	if err != nil {
		return fmt.Errorf("sandbox: shutdown: %w", err)
	}
	defer unlock()
	if err := failed(s.client.server.SandboxStore().Delete(ctx, s.ID()), "sandbox %q: delete", s.ID()); err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	s.ledger.containerGone()
	return nil
}

func (s *sandboxHandle) noteExit(ctx context.Context) error {
	if err := s.client.reconcile(ctx, s.ledger); err != nil {
		return err
	}
	if !s.live() {
		return s.ledger.save()
	}
	// A start that got no answer and is still under way is over after that.
	if err := s.Stop(ctx, 0); err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	if err := s.client.reconcile(ctx, s.ledger); err != nil {
		return err
	}
	s.ledger.sandbox(func(p *process) { p.starting = false })
	if !s.live() {
		return s.ledger.save()
	}
	st, err := s.Wait(ctx)
	if errdefs.IsNotFound(err) {
		return s.ledger.save()
	}
	if err != nil {
		return err
	}
	s.ledger.sandbox(func(p *process) { p.exitLocked(exit{Code: st.ExitCode(), At: st.ExitTime()}) })
	return s.ledger.save()
}

// live: the sandbox runs, or may come to.
func (s *sandboxHandle) live() (live bool) {
	s.ledger.sandbox(func(p *process) { live = p.live() })
	return live
}

func (s *sandboxHandle) NewContainer(ctx context.Context, containerID string, spec *specs.Spec, shim string, runtimeOptions any, opts ...containerd.NewContainerOpts) (Container, error) {
	return s.client.NewContainer(ctx, containerID, spec, shim, runtimeOptions, append(opts, containerd.WithSandbox(s.ID()))...)
}

// endpoint says where the tasks of a sandbox's containers are served. containerd
// does not pass the address on, but the sandboxer's own words for it, which have
// none if containerd knows the way.
func (c *client) endpoint(ctx context.Context, id string) (containerd.NewTaskOpts, error) {
	sb, err := c.server.SandboxStore().Get(ctx, id)
	if err != nil {
		return nil, failed(err, "sandbox %q", id)
	}
	st, err := c.server.SandboxController(sb.Sandboxer).Status(ctx, id, true)
	if err != nil {
		return nil, failed(err, "sandbox %q: status", id)
	}
	var info struct {
		Address string `json:"address"`
		Version uint32 `json:"version"`
	}
	if st.Address == "" && json.Unmarshal([]byte(st.Info["info"]), &info) == nil {
		st.Address, st.Version = info.Address, info.Version
	}
	if st.Address == "" {
		return func(context.Context, *containerd.Client, *containerd.TaskInfo) error { return nil }, nil
	}
	return containerd.WithTaskAPIEndpoint(st.Address, st.Version), nil
}

func statsOf(what any, m *apitypes.Metric) (*Stats, error) {
	if m == nil || m.Data == nil {
		return nil, fmt.Errorf("%v: metrics: the answer has none: %w", what, errdefs.ErrUnknown)
	}
	v, err := typeurl.UnmarshalAny(m.Data)
	if err != nil {
		return nil, fmt.Errorf("%v: metrics: %w: %w", what, errdefs.ErrUnknown, err)
	}
	return &Stats{Read: m.Timestamp.AsTime(), Metrics: v}, nil
}
