package libcontainerd

import (
	"context"
	"fmt"
	"time"

	"github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/errdefs"
)

// retryFirst and retryLast bound the wait between two questions to a server that
// does not answer; goneGrace is how long an exit may come after the news that its
// process was deleted.
const (
	retryFirst = 50 * time.Millisecond
	retryLast  = 2 * time.Second
	goneGrace  = 5 * time.Second
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
}

func (l *ledger) watch(ctx context.Context, r *run, p *process) {
	wait := retryFirst
	for first := true; ; first = false {
		e, err := l.await(ctx, r, p, first)
		switch {
		case err == nil:
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

// await asks the server until the process has exited. After a break the container
// may have another task than the one meant.
func (l *ledger) await(ctx context.Context, r *run, p *process, first bool) (exit, error) {
	if l.kind == sandboxes {
		return l.awaitSandbox(ctx)
	}
	service := l.client.server.TaskService()
	if !first {
		resp, err := service.Get(ctx, &tasks.GetRequest{ContainerID: l.id})
		if err != nil {
			return exit{}, failed(err, "container %q: state", l.id)
		}
		if resp.Process.Pid != 0 && resp.Process.Pid != r.init.pid {
			return exit{}, fmt.Errorf("container %q has another task: %w", l.id, errdefs.ErrNotFound)
		}
	}
	resp, err := service.Wait(ctx, &tasks.WaitRequest{ContainerID: l.id, ExecID: p.id})
	if err != nil {
		return exit{}, failed(err, "container %q: wait", l.id)
	}
	return exit{Code: resp.ExitStatus, At: resp.ExitedAt.AsTime()}, nil
}

func (l *ledger) awaitSandbox(ctx context.Context) (exit, error) {
	sb, err := l.client.server.SandboxStore().Get(ctx, l.id)
	if err != nil {
		return exit{}, failed(err, "sandbox %q", l.id)
	}
	var st sandbox.ExitStatus
	if st, err = l.client.server.SandboxController(sb.Sandboxer).Wait(ctx, l.id); err != nil {
		return exit{}, failed(err, "sandbox %q: wait", l.id)
	}
	return exit{Code: st.ExitStatus, At: st.ExitedAt}, nil
}
