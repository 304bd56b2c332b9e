package libcontainerd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/containerd/api/services/tasks/v1"
	tasktypes "github.com/containerd/containerd/api/types/task"
	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/errdefs"
)

const (
	closeStdinTimeout = 10 * time.Second
	undoTimeout       = 30 * time.Second
	cancelAfter       = time.Second
)

var _ Process = (*handle)(nil)

// handle is a process as the engine sees it.
type handle struct {
	client *client
	ledger *ledger
	run    *run
	proc   *process
	stdio  stdio
	early  *exit // of an exec that the server has forgotten before this handle was returned

	drained func() <-chan struct{} // closed when the output was read to its end
}

func newHandle(l *ledger, r *run, p *process, std stdio) *handle {
	return &handle{client: l.client, ledger: l, run: r, proc: p, stdio: std, drained: sync.OnceValue(func() <-chan struct{} {
		done := make(chan struct{})
		go func() { // ends with the output, which this program cannot hasten
			defer close(done)
			// FIFOs that nobody ever opened would never end. Those of a process that
			// ran have been; but this program may not have come round to notice it,
			// and would lose what is in them.
			cancel := time.AfterFunc(cancelAfter, std.io.Cancel)
			std.io.Wait()
			cancel.Stop()
		}()
		return done
	})}
}

func (h *handle) String() string {
	if h.proc.id == "" {
		return fmt.Sprintf("container %q", h.ledger.id)
	}
	return fmt.Sprintf("exec %q of container %q", h.proc.id, h.ledger.id)
}

func (h *handle) service() tasks.TasksClient { return h.client.server.TaskService() }

func (h *handle) Pid() uint32 {
	h.ledger.mu.Lock()
	defer h.ledger.mu.Unlock()
	return h.proc.pid
}

// check asks for the process's state, before a call that goes by its id. NotFound: it is
// gone, and another may have its id.
func (h *handle) check(ctx context.Context) (*tasktypes.Process, error) {
	return h.ledger.stillThere(ctx, h.proc)
}

func (h *handle) Kill(ctx context.Context, signal syscall.Signal) error {
	ctx, end, err := h.client.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	if _, err := h.check(ctx); err != nil {
		return fmt.Errorf("%s: kill: %w", h, err)
	}
	_, err = h.service().Kill(ctx, &tasks.KillRequest{ContainerID: h.ledger.id, ExecID: h.proc.id, Signal: uint32(signal)})
	return failed(err, "%s: kill", h)
}

func (h *handle) Resize(ctx context.Context, width, height uint32) error {
	ctx, end, err := h.client.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	if _, err := h.check(ctx); err != nil {
		return fmt.Errorf("%s: resize: %w", h, err)
	}
	_, err = h.service().ResizePty(ctx, &tasks.ResizePtyRequest{ContainerID: h.ledger.id, ExecID: h.proc.id, Width: width, Height: height})
	return failed(err, "%s: resize", h)
}

// errNotStarted: the server gave the start of an exec up.
var errNotStarted = errors.New("the start was interrupted")

// start lets the process run. An attempt whose answer was lost may have done it, so
// it is repeated until there is an answer that settles it, or for an exec is
// errNotStarted; a call that ends before leaves the process starting.
func (h *handle) start(ctx context.Context) error {
	before := h.ledger.starting(h.proc)
	defer h.ledger.returned(h.proc)
	// Should this program be killed now, the next one asks whether it started.
	if err := h.ledger.save(); err != nil {
		if !before {
			h.ledger.idle(h.proc)
		}
		return fmt.Errorf("%s: start: %w", h, err)
	}
	wait := retryFirst
	for first := !before; ; first = false {
		resp, err := h.service().Start(ctx, &tasks.StartRequest{ContainerID: h.ledger.id, ExecID: h.proc.id})
		if err == nil {
			h.ledger.update(func() { h.proc.startedLocked(resp.Pid) })
			return nil
		}
		err = failed(err, "%s: start", h)
		if uncertain(err) && h.proc.id != "" {
			return h.settleStart(ctx, err)
		}
		if !uncertain(err) {
			started, known := h.startedAnyway(ctx, first)
			if started {
				return nil
			}
			if known {
				h.ledger.idle(h.proc)
				return err
			}
		}
		if pause(ctx, &wait) != nil {
			return err
		}
	}
}

// settleStart finds out what became of an exec's start that got no answer. It is
// not repeated: runc's shim gives it up when the connection breaks, and panics when
// a process exits that was started at the second attempt.
func (h *handle) settleStart(ctx context.Context, cause error) error {
	wait := retryFirst
	for {
		started, known := h.startedAnyway(ctx, false)
		if started {
			return nil
		}
		if known {
			h.ledger.idle(h.proc)
			return fmt.Errorf("%w: %w", errNotStarted, cause)
		}
		if pause(ctx, &wait) != nil {
			return cause
		}
	}
}

// startedAnyway says whether a process runs although its start failed, if that can
// be known: the call before, which got no answer, may have started it, and then it
// may also have exited.
func (h *handle) startedAnyway(ctx context.Context, first bool) (started, known bool) {
	state, err := h.client.state(ctx, h.ledger.id, h.proc.id)
	if err != nil {
		return false, first || errdefs.IsNotFound(err)
	}
	if running(state.Status) && state.Pid != 0 || !first && ran(state) {
		h.ledger.update(func() { h.proc.startedLocked(state.Pid) })
		return true, true
	}
	return false, first || state.Status == tasktypes.Status_CREATED
}

// ran: the process has started, and has exited. One whose start failed, or that went
// with its container before it was started, has stopped as well, without a pid.
func ran(state *tasktypes.Process) bool {
	return state.Status == tasktypes.Status_STOPPED && state.Pid != 0
}

// uncertain: the server may have done what the call asked for.
func uncertain(err error) bool {
	return errdefs.IsUnavailable(err) || errdefs.IsCanceled(err) || errdefs.IsDeadlineExceeded(err)
}

// pause waits between two attempts, longer each time.
func pause(ctx context.Context, wait *time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(*wait):
		*wait = min(2**wait, retryLast)
		return nil
	}
}

// stdinReady lets the process's stdin know that the process is there. If the engine has
// closed it before, and the server is away, nobody would repeat that: it is asked until
// it answers or the process has ended.
func (h *handle) stdinReady(ctx context.Context) {
	in, log := h.stdio.in, h.client.log.WithField("container", h.ledger.id).WithField("exec", h.proc.id)
	err := in.ready(h.closeStdin(ctx))
	if !uncertain(err) {
		if err != nil {
			log.WithError(err).Warn("stdin stays open")
		}
		return
	}
	h.client.spawn(func(ctx context.Context) {
		for wait := retryFirst; uncertain(err) && pause(ctx, &wait) == nil; {
			err = in.close()
		}
		if err != nil && ctx.Err() == nil {
			log.WithError(err).Warn("stdin stays open")
		}
	})
}

// closeStdin is how the server is asked for the end of the process's input. One that
// has ended needs none.
func (h *handle) closeStdin(ctx context.Context) func() error {
	ctx = context.WithoutCancel(ctx)
	return func() error {
		ctx, end, err := h.client.begin(ctx)
		if err != nil {
			return err
		}
		defer end()
		ctx, cancel := context.WithTimeout(ctx, closeStdinTimeout)
		defer cancel()
		if h.over() {
			return nil
		}
		_, err = h.service().CloseIO(ctx, &tasks.CloseIORequest{ContainerID: h.ledger.id, ExecID: h.proc.id, Stdin: true})
		if err = failed(err, "%s: close stdin", h); errdefs.IsNotFound(err) {
			return nil
		}
		return err
	}
}

// over: nothing of the process is left that could do anything.
func (h *handle) over() bool {
	h.ledger.mu.Lock()
	defer h.ledger.mu.Unlock()
	return h.proc.exit != nil || h.proc.removed
}

// Delete first has the exit written down: the server forgets it.
func (h *handle) Delete(ctx context.Context) (*containerd.ExitStatus, error) {
	ctx, end, err := h.client.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	if e := h.early; e != nil {
		return containerd.NewExitStatus(e.Code, e.At, nil), h.forgotten()
	}
	state, err := h.observe(ctx)
	if errdefs.IsNotFound(err) {
		return nil, errors.Join(fmt.Errorf("%s: delete: %w", h, err), h.forgotten())
	}
	if err != nil {
		return nil, fmt.Errorf("%s: delete: %w", h, err)
	}
	if h.undeletable(state) {
		return nil, fmt.Errorf("%s is %s and cannot be deleted; kill it first: %w", h, state.Status, errdefs.ErrFailedPrecondition)
	}
	if h.stdio.io != nil {
		select {
		case <-h.drained():
		case <-ctx.Done():
			return nil, fmt.Errorf("%s: delete: its output was not read to the end: %w", h, ctx.Err())
		}
	}
	if err := h.settle(ctx); err != nil {
		return nil, err
	}
	if err := h.ledger.save(); err != nil {
		return nil, fmt.Errorf("%s: delete: %w", h, err)
	}
	status, err := h.delete(ctx)
	if err != nil {
		return nil, err
	}
	return status, h.forgotten()
}

// observe asks for the process's state and writes it down. NotFound: it is gone, and
// another may have its id.
func (h *handle) observe(ctx context.Context) (*tasktypes.Process, error) {
	before, exec := h.ledger.view(), h.ledger.look(h.proc)
	state, err := h.client.state(ctx, h.ledger.id, h.proc.id)
	if err != nil {
		return nil, err
	}
	is := false
	if h.proc.id != "" {
		is = h.ledger.observeExec(exec, state)
	} else {
		is = h.ledger.observe(before, state) == h.run
	}
	if !is {
		return nil, fmt.Errorf("%s is gone, another has its id: %w", h, errdefs.ErrNotFound)
	}
	return state, nil
}

// undeletable: the process has not exited. An exec's state does not say that while
// its container is paused, and one that never started can be deleted.
func (h *handle) undeletable(state *tasktypes.Process) bool {
	if state.Status == tasktypes.Status_STOPPED {
		return false
	}
	if h.proc.id == "" {
		return true
	}
	h.ledger.mu.Lock()
	defer h.ledger.mu.Unlock()
	return running(state.Status) && h.proc.exit == nil
}

// settle learns how the process ended that is about to be deleted, and if it is a
// container's how its execs did: the server forgets them with it.
func (h *handle) settle(ctx context.Context) error {
	if h.proc.id == "" {
		for _, p := range h.liveExecs() {
			if err := h.client.reconcileExec(ctx, h.ledger, p); err != nil {
				return fmt.Errorf("%s: delete: %w", h, err)
			}
		}
	}
	for _, p := range h.waiting() {
		e, err := h.ledger.await(ctx, h.run, p, true)
		if err != nil && !errdefs.IsNotFound(err) {
			return fmt.Errorf("%s: delete: %w", h, err)
		}
		if err == nil {
			h.ledger.exit(p, e)
		}
	}
	return nil
}

func (h *handle) liveExecs() []asked {
	h.ledger.mu.Lock()
	defer h.ledger.mu.Unlock()
	var execs []asked
	for _, p := range h.run.execs {
		if p.live() {
			execs = append(execs, asked{p, p.calls})
		}
	}
	return execs
}

// waiting are those of the process, and its execs if it is a container's, whose exit
// is not known.
func (h *handle) waiting() []*process {
	h.ledger.mu.Lock()
	defer h.ledger.mu.Unlock()
	all := []*process{h.proc}
	if h.proc.id == "" {
		all = append(all, h.run.execs...)
	}
	return slices.DeleteFunc(all, func(p *process) bool { return !p.started || p.exit != nil })
}

func (h *handle) delete(ctx context.Context) (*containerd.ExitStatus, error) {
	var resp *tasks.DeleteResponse
	var err error
	if h.proc.id == "" {
		resp, err = h.service().Delete(ctx, &tasks.DeleteTaskRequest{ContainerID: h.ledger.id})
	} else {
		resp, err = h.service().DeleteProcess(ctx, &tasks.DeleteProcessRequest{ContainerID: h.ledger.id, ExecID: h.proc.id})
	}
	if err != nil {
		return nil, failed(err, "%s: delete", h)
	}
	if h.proc.id != "" && resp.Pid != 0 && resp.ExitedAt.AsTime().Unix() > 0 {
		h.ledger.update(func() { // which may be the first news of its start
			h.proc.startedLocked(resp.Pid)
			h.proc.exitLocked(exitOf(resp.ExitStatus, resp.ExitedAt))
		})
	}
	return containerd.NewExitStatus(resp.ExitStatus, resp.ExitedAt.AsTime(), nil), nil
}

// revoke deletes an exec whose start was interrupted; but the server may have come
// to start it all the same.
func (h *handle) revoke(ctx context.Context) (started bool, err error) {
	h.ledger.update(func() { // else that the server knows no such exec would end it
		h.proc.calling = true
		h.proc.calls++
	})
	wait := retryFirst
	for {
		_, err := h.delete(ctx)
		if err == nil || errdefs.IsNotFound(err) {
			h.ledger.mu.Lock()
			h.early = h.proc.exit
			h.ledger.mu.Unlock()
			return h.early != nil, nil
		}
		if !uncertain(err) {
			if started, _ := h.startedAnyway(ctx, false); started {
				return true, nil
			}
		}
		if pause(ctx, &wait) != nil {
			return false, err
		}
	}
}

// forgotten: the server knows the process no more, and nobody needs its stdio.
func (h *handle) forgotten() error {
	h.ledger.removed(h.proc)
	err := h.stdio.discard()
	if h.proc.id == "" {
		for _, dir := range h.ledger.takeStdio(h.run) {
			err = errors.Join(err, local(os.RemoveAll(dir), "stdio"))
		}
	} else {
		h.ledger.dropStdio(h.run, h.stdio)
	}
	return err
}
