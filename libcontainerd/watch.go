package libcontainerd

import (
	"context"
	"fmt"
	"time"

	"github.com/containerd/containerd/api/services/tasks/v1"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/errdefs"
)

// retryFirst and retryLast bound the wait between two questions to a server that
// does not answer; eventGrace is how much earlier than its event an exit may be
// learned, and goneGrace how long it may come after the news that its process was
// deleted; sweepLast is the longest time between two questions for dormant execs.
const (
	retryFirst = 50 * time.Millisecond
	retryLast  = 2 * time.Second
	eventGrace = time.Second
	goneGrace  = 5 * time.Second
	sweepLast  = time.Minute
)

// watchLocked has a goroutine wait for the exit of each process that runs. The
// server's answer does not pass through the event stream, which can lose it.
func (l *ledger) watchLocked() {
	for _, r := range l.runs {
		for _, p := range append([]*process{r.init}, r.execs...) {
			if p.started && p.exit == nil && !p.watched {
				p.watched = l.client.spawn(func(ctx context.Context) { l.watch(ctx, r, p) })
			}
		}
	}
	if !l.sweeping && len(l.dormantLocked()) > 0 {
		l.sweeping = l.client.spawn(l.sweep)
	}
}

// dormantLocked are the execs that other programs have added and not started.
func (l *ledger) dormantLocked() (dormant []*process) {
	for _, r := range l.runs {
		if r.init.queued == phaseExited {
			continue // and its execs go with it
		}
		for _, p := range r.execs {
			if p.added && !p.started && !p.own && !p.absent {
				dormant = append(dormant, p)
			}
		}
	}
	return dormant
}

// sweep finds the dormant execs that the server has forgotten, as those whose start
// failed: no event says so, and they would be followed as long as their container
// runs. One may have started all the same, if its events are late.
func (l *ledger) sweep(ctx context.Context) {
	for wait := goneGrace; ; wait = min(2*wait, sweepLast) {
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
		l.mu.Lock()
		dormant := l.dormantLocked()
		l.sweeping = len(dormant) > 0
		l.mu.Unlock()
		if len(dormant) == 0 {
			return
		}
		for _, p := range dormant {
			if _, err := l.client.state(ctx, l.id, p.id); errdefs.IsNotFound(err) {
				l.update(func() { p.absent = !p.started })
			}
		}
	}
}

func (l *ledger) watch(ctx context.Context, r *run, p *process) {
	wait := retryFirst
	for certain := !p.loaded; ; certain = false {
		e, err := l.awaitUntilReplaced(ctx, r, p, certain)
		switch {
		case err == nil:
			if l.kind == containers && l.client.hears.Load() {
				l.update(func() { p.learned = &e })
				select { // the event, for an oom may come before it
				case <-p.exited:
				case <-ctx.Done():
				case <-time.After(eventGrace):
				}
			}
			l.exit(p, e)
			return
		case errdefs.IsNotFound(err):
			select {
			case <-p.exited:
			case <-ctx.Done():
			case <-time.After(goneGrace):
				l.removed(p)
			}
			return
		}
		select {
		case <-p.exited:
			return
		case <-ctx.Done():
			return
		case <-time.After(wait):
			wait = min(2*wait, retryLast)
		}
	}
}

// awaitUntilReplaced is await, but ends when it turns out that the container has another
// task: the question may have reached that one.
func (l *ledger) awaitUntilReplaced(ctx context.Context, r *run, p *process, certain bool) (exit, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	l.mu.Lock()
	p.askAgain = cancel
	certain = certain && !r.init.removed // for it has not
	l.mu.Unlock()
	return l.await(ctx, r, p, certain)
}

// await asks the server until the process has exited. Unless that is certain, the
// container may have another task than the one meant, or another exec of the id.
func (l *ledger) await(ctx context.Context, r *run, p *process, certain bool) (exit, error) {
	if l.kind == sandboxes {
		return l.awaitSandbox(ctx)
	}
	if !certain {
		if _, err := l.stillThere(ctx, r.init); err != nil {
			return exit{}, err
		}
		if p != r.init {
			if _, err := l.stillThere(ctx, p); err != nil {
				return exit{}, err
			}
		}
	}
	resp, err := l.client.server.TaskService().Wait(ctx, &tasks.WaitRequest{ContainerID: l.id, ExecID: p.id})
	if err != nil {
		return exit{}, failed(err, "container %q: wait", l.id)
	}
	if resp.ExitedAt.AsTime().Unix() <= 0 { // that is no exit, see settleStart
		return exit{}, fmt.Errorf("container %q: wait: the answer has no time: %w", l.id, errdefs.ErrUnavailable)
	}
	return exitOf(resp.ExitStatus, resp.ExitedAt), nil
}

// stillThere: what the server has under the process's id is that process, in the state
// that is returned.
func (l *ledger) stillThere(ctx context.Context, p *process) (*tasktypes.Process, error) {
	state, err := l.client.state(ctx, l.id, p.id)
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if p.anotherLocked(state) {
		return nil, fmt.Errorf("container %q has another process: %w", l.id, errdefs.ErrNotFound)
	}
	return state, nil
}

// anotherLocked: the state is of one that has the process's id now.
func (p *process) anotherLocked(state *tasktypes.Process) bool {
	return p.pid != 0 && state.Pid != p.pid && (state.Pid != 0 || state.Status == tasktypes.Status_CREATED)
}

func (l *ledger) awaitSandbox(ctx context.Context) (exit, error) {
	sb, err := l.client.server.SandboxStore().Get(ctx, l.id)
	if err != nil {
		return exit{}, failed(err, "sandbox %q", l.id)
	}
	st, err := l.client.server.SandboxController(sb.Sandboxer).Wait(ctx, l.id)
	if err != nil {
		return exit{}, failed(err, "sandbox %q: wait", l.id)
	}
	return exit{Code: st.ExitStatus, At: st.ExitedAt}, nil
}
