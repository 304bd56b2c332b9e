package libcontainerd

import (
	"context"
	"fmt"

	"github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/api/types/runc/options"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
)

// reconcile asks the server for the state of a container or a sandbox and writes
// it down. What changes meanwhile is learned twice, which does no harm.
func (c *client) reconcile(ctx context.Context, l *ledger) error {
	if l.kind == sandboxes {
		return c.reconcileSandbox(ctx, l)
	}
	l.mu.Lock()
	known := l.currentLocked()
	var execs []*process
	if known != nil {
		execs = append(execs, known.execs...)
	}
	l.mu.Unlock()

	state, err := c.state(ctx, l.id, "")
	if errdefs.IsNotFound(err) {
		c.taskGone(l, known)
		return nil
	}
	if err != nil {
		return err
	}
	l.observe(known, state)
	if known == nil || state.Pid != known.init.pid && known.init.pid != 0 {
		execs = nil // of another task
	}
	for _, p := range execs {
		if err := c.reconcileExec(ctx, l, p); err != nil {
			return err
		}
	}
	if running(state.Status) {
		return c.reconcileForeign(ctx, l)
	}
	return nil
}

// taskGone: the container has no task. Exits that are not known yet are left to
// those who wait for them.
func (c *client) taskGone(l *ledger, r *run) {
	if r == nil {
		return
	}
	l.update(func() {
		for _, p := range append([]*process{r.init}, r.execs...) {
			l.notFoundLocked(p)
		}
	})
}

// notFoundLocked: the server did not know the process when it was asked. A call
// that is making it knows better, and the exit of one that ran is left to those who
// wait for it.
func (l *ledger) notFoundLocked(p *process) {
	if !p.calling && (!p.started || p.exit != nil) {
		l.removedLocked(p)
	}
}

// observe writes down the state of the container's task. One that has stopped had
// started, unless the client knows that nobody asked for that.
func (l *ledger) observe(known *run, state *tasktypes.Process) *run {
	r := l.created(state.Pid)
	if r == nil {
		return nil
	}
	own := r == known
	l.update(func() {
		if r != l.currentLocked() {
			return
		}
		for _, old := range l.runs[:len(l.runs)-1] {
			old.init.removed = true // a container has one task
		}
		switch {
		case running(state.Status):
			r.init.startedLocked(state.Pid)
			l.pausedLocked(r, state.Status == tasktypes.Status_PAUSED || state.Status == tasktypes.Status_PAUSING)
		case state.Status == tasktypes.Status_STOPPED:
			if !own || r.init.starting {
				r.init.startedLocked(state.Pid)
			}
			r.init.exitLocked(exitOf(state.ExitStatus, state.ExitedAt))
		case !r.init.calling:
			r.init.starting = false
		}
	})
	return r
}

func (c *client) reconcileExec(ctx context.Context, l *ledger, p *process) error {
	state, err := c.state(ctx, l.id, p.id)
	switch {
	case errdefs.IsNotFound(err):
		l.update(func() { l.notFoundLocked(p) })
		return nil
	case err != nil:
		return err
	}
	l.update(func() {
		p.added = true
		switch {
		case running(state.Status):
			p.startedLocked(state.Pid)
		case state.Status == tasktypes.Status_STOPPED:
			p.startedLocked(state.Pid)
			p.exitLocked(exitOf(state.ExitStatus, state.ExitedAt))
		case !p.calling:
			p.starting = false
		}
	})
	return nil
}

// reconcileForeign finds the execs that other programs started.
func (c *client) reconcileForeign(ctx context.Context, l *ledger) error {
	resp, err := c.server.TaskService().ListPids(ctx, &tasks.ListPidsRequest{ContainerID: l.id})
	if err = failed(err, "container %q: processes", l.id); err != nil {
		if errdefs.IsNotFound(err) {
			return nil // it has just ended
		}
		return err
	}
	for _, p := range resp.Processes {
		var details options.ProcessDetails
		if p.Info != nil && typeurl.UnmarshalTo(p.Info, &details) == nil && details.ExecID != "" {
			l.execStarted(details.ExecID, p.Pid)
		}
	}
	return nil
}

func (c *client) reconcileSandbox(ctx context.Context, l *ledger) error {
	sb, err := c.server.SandboxStore().Get(ctx, l.id)
	if err != nil {
		return failed(err, "sandbox %q", l.id)
	}
	st, err := c.server.SandboxController(sb.Sandboxer).Status(ctx, l.id, false)
	if err = failed(err, "sandbox %q: status", l.id); err != nil {
		if errdefs.IsNotFound(err) {
			l.sandbox(l.notFoundLocked)
			return nil
		}
		return err
	}
	l.sandbox(func(p *process) {
		p.added = true
		if st.Pid != 0 {
			p.startedLocked(st.Pid)
		}
	})
	return nil
}

func (c *client) state(ctx context.Context, id, exec string) (*tasktypes.Process, error) {
	resp, err := c.server.TaskService().Get(ctx, &tasks.GetRequest{ContainerID: id, ExecID: exec})
	if err != nil {
		return nil, failed(err, "container %q: state", id)
	}
	if resp.Process == nil {
		return nil, fmt.Errorf("container %q: the answer has no state: %w", id, errdefs.ErrUnknown)
	}
	return resp.Process, nil
}

func running(s tasktypes.Status) bool {
	return s == tasktypes.Status_RUNNING || s == tasktypes.Status_PAUSED || s == tasktypes.Status_PAUSING
}
