package service

import (
	"context"

	api "github.com/containerd/containerd/api/services/sandbox/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/errdefs"
	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Local is a controller for containerd's core in this process. Its calls are those of a
// client to metrics, traces and log, and need a namespace, but nothing is encoded and no
// socket is in between.
func Local(ctl sandbox.Controller, observe Observe) sandbox.Controller {
	return &local{ctl: ctl, observe: observe}
}

type local struct {
	ctl     sandbox.Controller
	observe Observe
}

// callOn is what there is to learn of a call.
type callOn string

func (id callOn) GetSandboxID() string { return string(id) }

// do makes a call, and takes note of it.
func (l *local) do(ctx context.Context, method, id string, next func(ctx context.Context) error) error {
	return l.observe.local(ctx, "/"+api.Controller_ServiceDesc.ServiceName+"/"+method, callOn(id), next)
}

func (l *local) Create(ctx context.Context, sb sandbox.Sandbox, opts ...sandbox.CreateOpt) error {
	return l.do(ctx, "Create", sb.ID, func(ctx context.Context) error { return l.ctl.Create(ctx, sb, opts...) })
}

func (l *local) Start(ctx context.Context, id string) (inst sandbox.ControllerInstance, err error) {
	err = l.do(ctx, "Start", id, func(ctx context.Context) (err error) {
		inst, err = l.ctl.Start(ctx, id)
		return err
	})
	return inst, err
}

func (l *local) Platform(ctx context.Context, id string) (p imagespec.Platform, err error) {
	err = l.do(ctx, "Platform", id, func(ctx context.Context) (err error) {
		p, err = l.ctl.Platform(ctx, id)
		return err
	})
	return p, err
}

func (l *local) Stop(ctx context.Context, id string, opts ...sandbox.StopOpt) error {
	return l.do(ctx, "Stop", id, func(ctx context.Context) error { return l.ctl.Stop(ctx, id, opts...) })
}

// Wait does not answer for a controller that is closed: CRI would take any answer for the
// end of the sandbox. It is the process that ends then.
func (l *local) Wait(ctx context.Context, id string) (exit sandbox.ExitStatus, err error) {
	_, err = namespaceOf(ctx)
	if err == nil {
		exit, err = l.ctl.Wait(ctx, id)
	}
	if errdefs.IsUnavailable(err) {
		<-ctx.Done()
		err = context.Cause(ctx)
	}
	if err != nil {
		return exit, flat{err}
	}
	return exit, nil
}

func (l *local) Status(ctx context.Context, id string, verbose bool) (st sandbox.ControllerStatus, err error) {
	err = l.do(ctx, "Status", id, func(ctx context.Context) (err error) {
		st, err = l.ctl.Status(ctx, id, verbose)
		return err
	})
	return st, err
}

func (l *local) Shutdown(ctx context.Context, id string) error {
	return l.do(ctx, "Shutdown", id, func(ctx context.Context) error { return l.ctl.Shutdown(ctx, id) })
}

func (l *local) Metrics(ctx context.Context, id string) (m *types.Metric, err error) {
	err = l.do(ctx, "Metrics", id, func(ctx context.Context) (err error) {
		m, err = l.ctl.Metrics(ctx, id)
		return err
	})
	return m, err
}

func (l *local) Update(ctx context.Context, id string, sb sandbox.Sandbox, fields ...string) error {
	return l.do(ctx, "Update", id, func(ctx context.Context) error { return l.ctl.Update(ctx, id, sb, fields...) })
}
