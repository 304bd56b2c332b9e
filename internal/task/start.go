package task

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/containerd/api/events"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"

	"caisson/internal/oci"
	"caisson/internal/statefile"
	"caisson/internal/stdio"
)

// Start runs the process that Create or Exec prepared, and returns its pid.
// Starting a process that already runs is FailedPrecondition, as is an exec in a
// container whose init does not run. A failed start leaves a container created,
// and an exec stopped.
func (s *Set) Start(ctx context.Context, id, execID string) (int, error) {
	p, err := s.process(id, execID)
	if err != nil {
		return 0, err
	}
	if err := p.lock(ctx); err != nil {
		return 0, err
	}
	defer p.unlock()
	if err := p.move(Starting, nil); err != nil {
		return 0, err
	}
	if execID == "" {
		return p.startInit(ctx)
	}
	return p.startExec(ctx)
}

func (p *process) startInit(ctx context.Context) (int, error) {
	c := p.c
	var err error
	if c.Restore != nil {
		if err = c.launch(ctx, p, Running, c.restoreArgs); err != nil {
			err = errors.Join(err, c.Runtime.Delete(context.WithoutCancel(ctx), c.ID, c.file("undo.log"), true))
		}
	} else if err = c.Runtime.Start(ctx, c.ID, c.log("")); err == nil {
		err = p.move(Running, nil)
	}
	if err != nil {
		return 0, errors.Join(fmt.Errorf("%v: start: %w", p, err), p.move(Created, nil))
	}
	pid := p.snapshot().Pid
	return pid, c.set.publish(ctx, "", &events.TaskStart{ContainerID: c.ID, Pid: uint32(pid)})
}

func (p *process) startExec(ctx context.Context) (int, error) {
	c := p.c
	fail := func(err error) (int, error) {
		p.stop(c.set.context(), unknownExit, time.Now())
		p.finish()
		return 0, err
	}
	c.mu.Lock()
	ending := c.ending
	c.mu.Unlock()
	if ending || c.init.snapshot().State != Running {
		return fail(fmt.Errorf("%v: the container does not run: %w", p, errdefs.ErrFailedPrecondition))
	}
	started, err := p.spawn(ctx, func(f oci.Files) []string {
		return c.Runtime.ExecArgs(c.ID, p.specPath(), f)
	})
	if err != nil {
		return fail(err)
	}
	if err := p.move(Running, func(r *record) { r.Pid, r.Serial = started.Pid, started.Serial }); err != nil {
		return 0, err
	}
	return started.Pid, c.set.publish(ctx, "", &events.TaskExecStarted{
		ContainerID: c.ID,
		ExecID:      p.execID,
		Pid:         uint32(started.Pid),
	})
}

// ExecRequest describes one more process in a container.
type ExecRequest struct {
	ID, ExecID string
	Stdio      stdio.Config
	// Spec is an OCI process, as JSON.
	Spec typeurl.Any
}

// Exec prepares a process; Start runs it. AlreadyExists: the container has an
// exec of that ID; InvalidArgument: the ID or the specification.
func (s *Set) Exec(ctx context.Context, req ExecRequest) error {
	if err := validID("exec", req.ExecID); err != nil {
		return err
	}
	c, err := s.container(req.ID)
	if err != nil {
		return err
	}
	p := newProcess(c, req.ExecID, req.Stdio, Created)
	spec, err := processSpec(p, req.Spec)
	if err != nil {
		return err
	}
	c.mu.Lock()
	_, exists := c.execs[p.execID]
	ending := c.ending
	if !exists && !ending {
		c.execs[p.execID] = p
	}
	c.mu.Unlock()
	if exists {
		return fmt.Errorf("%v: %w", p, errdefs.ErrAlreadyExists)
	}
	if ending {
		return fmt.Errorf("%v: the container has ended: %w", p, errdefs.ErrFailedPrecondition)
	}
	if err = statefile.Write(p.specPath(), spec); err == nil {
		err = p.save()
	}
	if err == nil {
		err = s.publish(ctx, "", &events.TaskExecAdded{ContainerID: c.ID, ExecID: p.execID})
	}
	if err != nil {
		return errors.Join(err, p.removeExec())
	}
	return nil
}

func (p *process) specPath() string { return p.c.file("exec-" + p.execID + ".spec") }
