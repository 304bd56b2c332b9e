package task

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/containerd/api/events"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/containerd/typeurl/v2"
	"golang.org/x/sys/unix"

	"caisson/internal/cgroup"
	"caisson/internal/fault"
	"caisson/internal/monitor"
	"caisson/internal/oci"
	"caisson/internal/request"
	"caisson/internal/statefile"
	"caisson/internal/stdio"
)

// Start runs the process that Create or Exec prepared, and returns its pid.
// Starting a process that already runs is FailedPrecondition, as is an exec in a
// container whose init does not run. A failed start leaves a container created,
// and an exec stopped.
func (s *Set) Start(ctx context.Context, id, execID string) (int, error) {
	p, err := s.acquire(ctx, id, execID)
	if err != nil {
		return 0, err
	}
	defer p.unlock()
	ctx, cancel := s.untilEnd(ctx)
	defer cancel()
	fault.Point("task:start")
	req := request.From(ctx)
	if rec := p.snapshot(); req.Is(rec.Started) && rec.State != Created {
		return p.started(rec)
	}
	if err := p.move(Starting, func(r *record) { r.Started = req.ID }); err != nil {
		return 0, err
	}
	if execID == "" {
		return p.startInit(ctx)
	}
	return p.startExec(ctx)
}

// started is the answer to a Start that an earlier daemon has carried out.
func (p *process) started(rec record) (int, error) {
	if rec.Serial == 0 { // It failed, and only the runtime's log still says why.
		return 0, p.c.Runtime.Explain(verb(p), p.c.log(p.execID), errors.New("caissond was killed while it failed"))
	}
	return rec.Pid, nil
}

func (p *process) startInit(ctx context.Context) (int, error) {
	c := p.c
	err := p.settleStdin(ctx)
	if err != nil {
		log.G(ctx).WithError(err).Warn("stdin of a process that starts")
	}
	if c.Restore != nil {
		if err = c.launch(ctx, p, Running, c.restoreArgs); err != nil {
			err = errors.Join(err, c.undoRuntime(context.WithoutCancel(ctx)))
		} else {
			c.stowRootfs(ctx)
		}
	} else {
		err = p.release(ctx)
	}
	if err != nil {
		return 0, errors.Join(fmt.Errorf("%v: start: %w", p, err), p.move(Created, nil))
	}
	return p.runs(ctx, p.snapshot()), nil
}

// release lets the process go on that Create prepared.
func (p *process) release(ctx context.Context) error {
	host, err := p.c.set.attached()
	if err != nil {
		return err
	}
	logFile, quick := p.c.log(""), []string(nil)
	if p.c.NoStartHooks {
		quick = p.c.Runtime.ReleaseArgs(monitor.Self, p.c.ID, p.snapshot().Pid)
	}
	var exit monitor.Exit
	if err = fault.Fail("runtime:start", unix.EAGAIN, unix.ENOMEM, unix.EMFILE); err == nil && quick != nil {
		exit, err = p.execute(ctx, host, logFile, monitor.SpawnRequest{Args: quick})
	}
	// What was left alone the runtime is asked to start, which also says why it cannot.
	if refused := exitStatus(exit.Status); err == nil && (quick == nil || refused > 0 && refused <= oci.ReleaseRefused) {
		exit, err = p.execute(ctx, host, logFile, monitor.SpawnRequest{Args: p.c.Runtime.StartArgs(p.c.ID, logFile)})
	}
	switch ended := exit.Serial != 0; {
	case ended && exitStatus(exit.Status) == 0:
		err = nil // even if the caller gave up meanwhile: it runs
	case err == nil:
		err = p.c.Runtime.Explain("start", logFile, failed(exit))
	}
	fault.Point("runtime:started")
	return err
}

// runs tells that a process was started, and records it, in this order: a daemon
// that dies in between tells it again, and the journal keeps one of the two. The
// process is a fact, so nothing can fail any more.
func (p *process) runs(ctx context.Context, rec record) (pid int) {
	err := p.publishStart(ctx, rec)
	running := func(r *record) { r.Pid, r.Serial = rec.Pid, rec.Serial }
	switch {
	case err != nil:
		log.G(ctx).WithError(err).Error("publish start")
		p.remember(Running, running) // only: the next daemon tells it, if this one did not
	case p.snapshot().State != Running:
		p.note(ctx, Running, running)
	}
	fault.Point("task:started")
	return rec.Pid
}

func (p *process) startExec(ctx context.Context) (int, error) {
	c := p.c
	fail := func(err error) (int, error) {
		p.stop(p.context(), unknownExit, time.Now())
		p.finish()
		return 0, err
	}
	c.mu.Lock()
	ending, paused := c.ending, c.paused
	c.mu.Unlock()
	if ending || c.init.snapshot().State != Running {
		return fail(fmt.Errorf("%v: the container does not run: %w", p, errdefs.ErrFailedPrecondition))
	}
	if paused { // The runtime would wait for it.
		return fail(fmt.Errorf("%v: the container is paused: %w", p, errdefs.ErrFailedPrecondition))
	}
	started, err := p.spawn(ctx, func(f oci.Files) []string {
		return c.Runtime.ExecArgs(c.ID, p.specPath(), f)
	})
	if err != nil {
		return fail(err)
	}
	rec := p.snapshot()
	rec.Pid, rec.Serial = started.Pid, started.Serial
	return p.runs(ctx, rec), nil
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
	again := request.From(ctx)
	if p, err := c.process(req.ExecID); err == nil && again.Is(p.snapshot().Added) {
		return p.publishAdded(ctx)
	}
	p := newProcess(c, req.ExecID, req.Stdio, Created)
	p.rec.AddedAt, p.rec.Added = time.Now(), again.ID
	spec, err := processSpec(p, req.Spec)
	if err != nil {
		return err
	}
	p.op <- struct{}{} // nobody starts or deletes it before it is written down
	defer p.unlock()
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
	s.background(cgroup.Anticipate)
	fault.Point("task:exec")
	if err = statefile.Write(p.specPath(), spec); err == nil {
		err = p.save()
	}
	if err == nil {
		err = p.publishAdded(ctx)
	}
	if err != nil {
		return errors.Join(err, p.removeExec())
	}
	return nil
}

// publishAdded tells that an exec is there. IDs are used again: its time tells it
// from others.
func (p *process) publishAdded(ctx context.Context) error {
	key := p.key("added", uint64(p.snapshot().AddedAt.UnixNano()))
	return p.c.set.publish(ctx, key, &events.TaskExecAdded{ContainerID: p.c.ID, ExecID: p.execID})
}

func (p *process) specPath() string { return p.c.file("exec-" + p.execID + ".spec") }
