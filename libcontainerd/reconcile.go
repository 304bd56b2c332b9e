package libcontainerd

import (
	"context"
	"fmt"

	cgroup1 "github.com/containerd/cgroups/v3/cgroup1/stats"
	cgroup2 "github.com/containerd/cgroups/v3/cgroup2/stats"
	"github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/api/types/runc/options"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	"google.golang.org/protobuf/types/known/anypb"
)

// reconcile asks the server for the state of a container or a sandbox and writes
// it down. What changes meanwhile is learned twice, which does no harm.
func (c *client) reconcile(ctx context.Context, l *ledger) error {
	if l.kind == sandboxes {
		return c.reconcileSandbox(ctx, l)
	}
	before := l.view()
	state, err := c.state(ctx, l.id, "")
	if errdefs.IsNotFound(err) {
		l.taskGone(before)
		return nil
	}
	if err != nil {
		return err
	}
	r := l.observe(before, state)
	if r == nil {
		return nil // the answer is late
	}
	if r == before.run {
		for _, p := range before.execs {
			if err := c.reconcileExec(ctx, l, p); err != nil {
				return err
			}
		}
	}
	if !running(state.Status) {
		return nil
	}
	if err := c.reconcileForeign(ctx, l, r); err != nil {
		return err
	}
	return c.reconcileOOM(ctx, l, r)
}

// ask reconciles in the background, once for all who ask meanwhile, and again until
// there is an answer or the ledger is forgotten.
func (c *client) ask(l *ledger) {
	l.mu.Lock()
	asking := l.asking
	l.asking = true
	l.mu.Unlock()
	if asking {
		return
	}
	c.spawn(func(ctx context.Context) {
		for wait := retryFirst; ; {
			l.mu.Lock()
			l.asking = false // who asks from now on wants a later answer
			l.mu.Unlock()
			err := c.reconcile(ctx, l)
			if err == nil || ctx.Err() != nil || c.ledger(l.kind, l.id) != l {
				return
			}
			c.log.WithError(err).WithField("container", l.id).Debug("state not known yet")
			l.mu.Lock()
			asking := l.asking
			l.asking = true
			l.mu.Unlock()
			if asking || pause(ctx, &wait) != nil {
				return // another goroutine asks as long as it takes
			}
		}
	})
}

// view is what was known when the server was asked: its answer may be older than
// what was learned since.
type view struct {
	run    *run
	init   asked
	execs  []asked
	pauses int
}

type asked struct {
	*process
	calls int
}

func (l *ledger) view() (v view) {
	l.mu.Lock()
	defer l.mu.Unlock()
	v.pauses = l.pauses
	if v.run = l.currentLocked(); v.run == nil {
		return v
	}
	v.init = asked{v.run.init, v.run.init.calls}
	for _, p := range v.run.execs {
		v.execs = append(v.execs, asked{p, p.calls})
	}
	return v
}

// look is the view of one process.
func (l *ledger) look(p *process) asked {
	l.mu.Lock()
	defer l.mu.Unlock()
	return asked{p, p.calls}
}

// idleLocked: no call that may start the process was under way since it was asked
// for.
func (a asked) idleLocked() bool { return !a.calling && a.process.calls == a.calls }

// taskGone: the container has no task. Exits that are not known yet are left to
// those who wait for them; a start of another program's may still be told by events.
func (l *ledger) taskGone(before view) {
	if before.run == nil {
		return
	}
	l.update(func() {
		if before.init.exit != nil {
			l.removedLocked(before.init.process)
		}
		for _, p := range before.execs {
			l.notFoundLocked(p)
		}
	})
}

// notFoundLocked: the server did not know the process when it was asked. A call
// that is making it knows better, events may be late to tell the start of another
// program's, and the exit of one that ran is left to those who wait for it.
func (l *ledger) notFoundLocked(a asked) {
	if a.idleLocked() && !a.started && (a.starting || a.own) || a.exit != nil {
		l.removedLocked(a.process)
	}
}

// stopped takes the exit from the state. A shim that has just lost the process does
// not know it yet; who waits for the process then learns it.
func (p *process) stoppedLocked(state *tasktypes.Process) {
	if state.ExitedAt.AsTime().Unix() > 0 {
		p.exitLocked(exitOf(state.ExitStatus, state.ExitedAt))
	}
}

// observe writes down the state of the container's task and returns its run; nil:
// the state is out of date. One that has stopped had started, unless the client
// knows that nobody asked for that: not of a task that it knew, of one that its own
// call made and has no answer of, nor of any before its first.
func (l *ledger) observe(before view, state *tasktypes.Process) (r *run) {
	l.update(func() {
		if r = l.withPidLocked(state.Pid); r == nil {
			if l.currentLocked() != before.run || l.isGoneLocked("", state.Pid) || state.Pid == 0 || l.deleted {
				return
			}
			r = l.beginLocked(state.Pid)
			r.heard = true
		}
		p, known := r.init, r == before.run
		p.added = true
		switch {
		case running(state.Status):
			p.startedLocked(state.Pid)
			if l.pauses == before.pauses {
				r.paused = state.Status != tasktypes.Status_RUNNING
			}
		case state.Status == tasktypes.Status_STOPPED:
			if !known && !l.fresh && !l.halfMade && l.making == 0 || p.starting {
				p.startedLocked(state.Pid)
			}
			p.stoppedLocked(state)
		case state.Status == tasktypes.Status_CREATED && known && before.init.idleLocked():
			p.starting = false
		}
	})
	return r
}

// reconcileExec asks for an exec's state.
func (c *client) reconcileExec(ctx context.Context, l *ledger, p asked) error {
	state, err := c.state(ctx, l.id, p.id)
	switch {
	case err == nil:
		l.observeExec(p, state)
	case errdefs.IsNotFound(err):
		l.update(func() { l.notFoundLocked(p) })
	default:
		return err
	}
	return nil
}

// observeExec writes down the state of an exec. False: it is another's of the id.
func (l *ledger) observeExec(p asked, state *tasktypes.Process) (is bool) {
	l.update(func() {
		if p.anotherLocked(state) {
			l.notFoundLocked(p)
			return
		}
		is = true
		p.added = true
		switch {
		case running(state.Status) && state.Pid != 0: // those of a paused container are all paused
			p.startedLocked(state.Pid)
		case ran(state):
			p.startedLocked(state.Pid)
			p.stoppedLocked(state)
		case state.Status == tasktypes.Status_STOPPED:
			p.starting = false // and never will
		case state.Status == tasktypes.Status_CREATED && p.idleLocked():
			p.starting = false
		}
	})
	return is
}

// reconcileForeign finds the execs that other programs started.
func (c *client) reconcileForeign(ctx context.Context, l *ledger, r *run) error {
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
			l.update(func() {
				if exec := l.execLocked(r, details.ExecID, p.Pid); exec != nil {
					exec.startedLocked(p.Pid)
				}
			})
		}
	}
	return nil
}

// reconcileSandbox asks for a sandbox's state. One that has ended, and whose start
// may have been this program's doing, had started; those who wait learn its exit. One
// that does not run may be about to, if this program's call got no answer.
func (c *client) reconcileSandbox(ctx context.Context, l *ledger) error {
	var before asked
	l.sandbox(func(p *process) { before = asked{p, p.calls} })
	st, err := c.sandboxStatus(ctx, l.id)
	if err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	l.update(func() {
		p := before.process
		switch {
		case err != nil:
			l.notFoundLocked(before)
		case st.Pid != 0 || p.starting && st.ExitedAt.Unix() > 0:
			p.startedLocked(st.Pid)
		default:
			p.added = true
			if before.idleLocked() && !p.own {
				p.starting = false
			}
		}
	})
	return nil
}

func (c *client) sandboxStatus(ctx context.Context, id string) (sandbox.ControllerStatus, error) {
	sb, err := c.server.SandboxStore().Get(ctx, id)
	if err != nil {
		return sandbox.ControllerStatus{}, failed(err, "sandbox %q", id)
	}
	st, err := c.server.SandboxController(sb.Sandboxer).Status(ctx, id, false)
	return st, failed(err, "sandbox %q: status", id)
}

// reconcileOOM tells an oom that the event stream missed. The kernel's count says
// whether there was one since the container began, so it is done until one was told.
func (c *client) reconcileOOM(ctx context.Context, l *ledger, r *run) error {
	l.mu.Lock()
	told := r.oom || r.oomTold
	l.mu.Unlock()
	if told {
		return nil
	}
	resp, err := c.server.TaskService().Metrics(ctx, &tasks.MetricsRequest{Filters: []string{"id==" + l.id}})
	if err = failed(err, "container %q: metrics", l.id); err != nil {
		if uncertain(err) {
			return err
		}
		return nil // not every runtime counts
	}
	if len(resp.Metrics) == 0 || oomKills(resp.Metrics[0].Data) == 0 {
		return nil
	}
	l.update(func() {
		if !r.oom && !r.oomTold {
			r.oom, r.oomFound = true, true
		}
	})
	return nil
}

func oomKills(metrics *anypb.Any) uint64 {
	if metrics == nil {
		return 0
	}
	v, err := typeurl.UnmarshalAny(metrics)
	if err != nil {
		return 0
	}
	switch m := v.(type) {
	case *cgroup1.Metrics:
		return m.GetMemoryOomControl().GetOomKill()
	case *cgroup2.Metrics:
		return m.GetMemoryEvents().GetOomKill()
	}
	return 0
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
