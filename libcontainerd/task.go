package libcontainerd

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"

	"github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/api/types/runc/options"
	tasktypes "github.com/containerd/containerd/api/types/task"
	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/identifiers"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	"github.com/opencontainers/runtime-spec/specs-go"
)

var _ Task = (*task)(nil)

type task struct {
	*handle
	container *container
}

func (t *task) Start(ctx context.Context) error {
	ctx, end, err := t.client.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	t.ledger.mu.Lock()
	started := t.proc.started
	t.ledger.mu.Unlock()
	if started {
		return nil
	}
	if _, err := t.check(ctx); errdefs.IsNotFound(err) {
		return fmt.Errorf("%s: start: %w", t.handle, err)
	}
	return t.start(ctx) // which goes on until the server answers
}

func (t *task) Pause(ctx context.Context) error {
	ctx, end, err := t.client.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	if err := t.expect(ctx, tasktypes.Status_RUNNING); err != nil {
		return fmt.Errorf("pause %w", err)
	}
	_, err = t.service().Pause(ctx, &tasks.PauseTaskRequest{ContainerID: t.ledger.id})
	return failed(err, "%s: pause", t.handle)
}

// expect finds a task in another state out before a runtime is asked, which some
// refuse without a class and others do not.
func (t *task) expect(ctx context.Context, want tasktypes.Status) error {
	state, err := t.check(ctx)
	if err != nil {
		return err
	}
	if state.Status != want {
		return fmt.Errorf("%s: it is %s: %w", t.handle, strings.ToLower(state.Status.String()), errdefs.ErrFailedPrecondition)
	}
	return nil
}

func (t *task) Resume(ctx context.Context) error {
	ctx, end, err := t.client.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	if _, err := t.check(ctx); err != nil {
		return fmt.Errorf("%s: resume: %w", t.handle, err)
	}
	_, err = t.service().Resume(ctx, &tasks.ResumeTaskRequest{ContainerID: t.ledger.id})
	return failed(err, "%s: resume", t.handle)
}

func (t *task) Stats(ctx context.Context) (*Stats, error) {
	ctx, end, err := t.client.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	if _, err := t.check(ctx); err != nil {
		return nil, fmt.Errorf("%s: metrics: %w", t.handle, err)
	}
	resp, err := t.service().Metrics(ctx, &tasks.MetricsRequest{Filters: []string{"id==" + t.ledger.id}})
	if err != nil {
		return nil, failed(err, "%s: metrics", t.handle)
	}
	if len(resp.Metrics) == 0 {
		return nil, fmt.Errorf("%s: metrics: it has no task that runs: %w", t.handle, errdefs.ErrNotFound)
	}
	return statsOf(t.handle, resp.Metrics[0])
}

func (t *task) Pids(ctx context.Context) ([]containerd.ProcessInfo, error) {
	ctx, end, err := t.client.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	if _, err := t.check(ctx); err != nil {
		return nil, fmt.Errorf("%s: processes: %w", t.handle, err)
	}
	resp, err := t.service().ListPids(ctx, &tasks.ListPidsRequest{ContainerID: t.ledger.id})
	if err != nil {
		return nil, failed(err, "%s: processes", t.handle)
	}
	infos := make([]containerd.ProcessInfo, 0, len(resp.Processes))
	for _, p := range resp.Processes {
		infos = append(infos, containerd.ProcessInfo{Pid: p.Pid, Info: p.Info})
	}
	return infos, nil
}

func (t *task) Summary(ctx context.Context) ([]Summary, error) {
	infos, err := t.Pids(ctx)
	if err != nil {
		return nil, err
	}
	summaries := make([]Summary, 0, len(infos))
	for _, p := range infos {
		s := Summary{Pid: p.Pid}
		var details options.ProcessDetails
		if p.Info != nil && typeurl.UnmarshalTo(p.Info, &details) == nil && details.ExecID != t.ledger.id {
			s.ExecID = details.ExecID
		}
		summaries = append(summaries, s)
	}
	return summaries, nil
}

func (t *task) Status(ctx context.Context) (containerd.Status, error) {
	ctx, end, err := t.client.begin(ctx)
	if err != nil {
		return containerd.Status{}, err
	}
	defer end()
	state, err := t.check(ctx)
	if err != nil {
		return containerd.Status{}, err
	}
	return containerd.Status{Status: statusOf(state.Status), ExitStatus: state.ExitStatus, ExitTime: state.ExitedAt.AsTime()}, nil
}

func statusOf(s tasktypes.Status) containerd.ProcessStatus {
	switch s {
	case tasktypes.Status_CREATED:
		return containerd.Created
	case tasktypes.Status_RUNNING:
		return containerd.Running
	case tasktypes.Status_STOPPED:
		return containerd.Stopped
	case tasktypes.Status_PAUSED:
		return containerd.Paused
	case tasktypes.Status_PAUSING:
		return containerd.Pausing
	}
	return containerd.Unknown
}

func (t *task) UpdateResources(ctx context.Context, resources *Resources) error {
	ctx, end, err := t.client.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	limits, err := typeurl.MarshalAnyToProto(resources)
	if err != nil {
		return fmt.Errorf("%s: update: %w: %w", t.handle, errdefs.ErrInvalidArgument, err)
	}
	if _, err := t.check(ctx); err != nil {
		return fmt.Errorf("%s: update: %w", t.handle, err)
	}
	_, err = t.service().Update(ctx, &tasks.UpdateTaskRequest{ContainerID: t.ledger.id, Resources: limits})
	return failed(err, "%s: update", t.handle)
}

// ForceDelete kills, waits and deletes. The FIFOs may hold output that nobody reads
// any more, which must not hold it up.
func (t *task) ForceDelete(ctx context.Context) error {
	ctx, end, err := t.client.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	state, err := t.observe(ctx)
	if errdefs.IsNotFound(err) {
		return t.forgotten()
	}
	if err != nil {
		return fmt.Errorf("%s: delete: %w", t.handle, err)
	}
	if state.Status != tasktypes.Status_STOPPED {
		if err := t.end(ctx, state); err != nil && !errdefs.IsNotFound(err) {
			return err
		}
	}
	if err := t.settle(ctx); err != nil {
		return err
	}
	if err := t.ledger.save(); err != nil {
		return fmt.Errorf("%s: delete: %w", t.handle, err)
	}
	if _, err := t.delete(ctx); err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	return t.forgotten()
}

// end kills everything in the container and notes the exit.
func (t *task) end(ctx context.Context, state *tasktypes.Process) error {
	if state.Status == tasktypes.Status_CREATED {
		// Written down before the kill makes it look like one that had started.
		t.ledger.update(func() { t.proc.starting = t.proc.calling })
		if err := t.ledger.save(); err != nil {
			return fmt.Errorf("%s: delete: %w", t.handle, err)
		}
	}
	if state.Status == tasktypes.Status_PAUSED || state.Status == tasktypes.Status_PAUSING {
		if err := t.Resume(ctx); err != nil && !errdefs.IsNotFound(err) && !errdefs.IsFailedPrecondition(err) {
			return err
		}
	}
	_, err := t.service().Kill(ctx, &tasks.KillRequest{ContainerID: t.ledger.id, Signal: uint32(syscall.SIGKILL), All: true})
	if err = failed(err, "%s: kill", t.handle); err != nil && !errdefs.IsNotFound(err) && !errdefs.IsFailedPrecondition(err) {
		return err
	}
	resp, err := t.service().Wait(ctx, &tasks.WaitRequest{ContainerID: t.ledger.id})
	if err != nil {
		return failed(err, "%s: wait", t.handle)
	}
	t.ledger.exit(t.proc, exitOf(resp.ExitStatus, resp.ExitedAt))
	return nil
}

func (t *task) Exec(ctx context.Context, processID string, spec *specs.Process, withStdin bool, attachStdio StdioCallback) (_ Process, err error) {
	if err := identifiers.Validate(processID); err != nil {
		return nil, fmt.Errorf("exec in %s: %w", t.handle, err)
	}
	if processID == t.ledger.id || spec == nil {
		return nil, fmt.Errorf("exec in %s: an id other than the container's and a process are needed: %w", t.handle, errdefs.ErrInvalidArgument)
	}
	ctx, end, err := t.client.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	if err := t.ledger.waitForRoom(ctx); err != nil {
		return nil, err
	}
	if err := t.expect(ctx, tasktypes.Status_RUNNING); err != nil {
		return nil, fmt.Errorf("exec in %w", err)
	}
	if err := t.clearExec(ctx, processID); err != nil {
		return nil, fmt.Errorf("exec in %s: %w", t.handle, err)
	}
	p, err := t.ledger.ownExec(t.run, processID)
	if err != nil {
		return nil, err
	}
	defer t.ledger.returned(p)
	std, err := t.ledger.stdio(processID, withStdin, spec.Terminal, attachStdio)
	if err != nil {
		t.ledger.removed(p)
		return nil, fmt.Errorf("exec in %s: %w", t.handle, err)
	}
	h := newHandle(t.ledger, t.run, p, std)
	if err := t.startExec(ctx, h, spec); err != nil {
		return nil, errors.Join(err, std.discard())
	}
	t.ledger.keepStdio(t.run, std)
	h.stdinReady(ctx)
	return h, nil
}

// clearExec removes what an earlier attempt to make the exec left.
func (t *task) clearExec(ctx context.Context, id string) error {
	t.ledger.mu.Lock()
	old := t.run.exec(id, 0)
	left := old != nil && old.own && !old.started && !old.calling && !old.removed
	t.ledger.mu.Unlock()
	if !left {
		return nil
	}
	h := newHandle(t.ledger, t.run, old, stdio{})
	state, err := h.observe(ctx)
	if err == nil && state.Status == tasktypes.Status_CREATED {
		_, err = h.delete(ctx)
	}
	if errdefs.IsNotFound(err) || err == nil && state.Status == tasktypes.Status_CREATED {
		t.ledger.removed(old)
		return nil
	}
	return err
}

// startExec adds the exec and starts it. What it leaves if it fails is removed; a
// process that may run, because the server has not answered, is killed by that.
func (t *task) startExec(ctx context.Context, h *handle, spec *specs.Process) error {
	// Written down before the server is asked: should this program be killed now,
	// the next one looks for the exec.
	if err := t.ledger.save(); err != nil {
		t.ledger.removed(h.proc)
		return fmt.Errorf("%s: %w", h, err)
	}
	for {
		err := t.addExec(ctx, h, spec)
		if err == nil {
			t.ledger.update(func() { h.proc.added = true })
			err = h.start(ctx)
		}
		if errors.Is(err, errNotStarted) {
			started, rerr := h.revoke(ctx)
			if rerr == nil && !started {
				continue
			}
			if started {
				return nil
			}
		}
		if err != nil {
			return errors.Join(err, t.undoExec(ctx, h, err))
		}
		return nil
	}
}

func (t *task) addExec(ctx context.Context, h *handle, spec *specs.Process) error {
	process, err := typeurl.MarshalAnyToProto(spec)
	if err != nil {
		return fmt.Errorf("%s: %w: %w", h, errdefs.ErrInvalidArgument, err)
	}
	cfg := h.stdio.io.Config()
	req := &tasks.ExecProcessRequest{
		ContainerID: t.ledger.id, ExecID: h.proc.id, Spec: process,
		Terminal: cfg.Terminal, Stdin: cfg.Stdin, Stdout: cfg.Stdout, Stderr: cfg.Stderr,
	}
	wait := retryFirst
	for first := true; ; first = false {
		_, err := t.service().Exec(ctx, req)
		err = failed(err, "%s", h)
		if err == nil || !first && errdefs.IsAlreadyExists(err) {
			return nil // or an attempt without an answer had done it
		}
		if !uncertain(err) || pause(ctx, &wait) != nil {
			return err
		}
	}
}

// undoExec removes an exec that could not be started. One that another program has
// under the id stays.
func (t *task) undoExec(ctx context.Context, h *handle, cause error) error {
	ctx, cancel := undoing(ctx)
	defer cancel()
	if errdefs.IsAlreadyExists(cause) {
		t.ledger.update(func() {
			if !h.proc.started { // else its events are told as this one's
				t.ledger.removedLocked(h.proc)
			}
		})
		return nil
	}
	state, err := t.client.state(ctx, t.ledger.id, h.proc.id)
	if err == nil && running(state.Status) {
		t.ledger.update(func() { h.proc.startedLocked(state.Pid) })
		err = h.Kill(ctx, syscall.SIGKILL)
		return err // its exit is told when it comes
	}
	if err == nil && ran(state) && t.ledger.mayHaveStarted(h.proc) {
		t.ledger.update(func() { // it was started, and has ended by itself
			h.proc.startedLocked(state.Pid)
			h.proc.stoppedLocked(state)
		})
		err = t.ledger.save()
	}
	if err == nil {
		_, err = h.delete(ctx)
	}
	if err == nil || errdefs.IsNotFound(err) {
		t.ledger.removed(h.proc)
		return nil
	}
	return err
}
