package service

import (
	"context"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/runtime"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	"google.golang.org/protobuf/types/known/anypb"

	"caisson/internal/stdio"
	"caisson/internal/task"
)

// Local is a task of containerd's core in this process. What is asked again and again,
// as for each exec of a probe, does not go through the socket at which containerd found
// it: that takes as much processor time as all we do for the exec. A task that is not
// served here, of another shim, is returned as it is.
func (e *Endpoints) Local(t runtime.Task) runtime.Task {
	found, ok := t.(interface{ Endpoint() (string, int) })
	if !ok {
		return t
	}
	address, _ := found.Endpoint()
	_, path, _ := strings.Cut(address, "://") // after ttrpc+unix
	sandbox, ok := e.at(path)
	if !ok {
		return t
	}
	return &localTask{localProcess{e, sandbox, t.ID(), ""}, t}
}

// localTask is a containerd task; others are its methods that are not called often.
type localTask struct {
	localProcess
	others
}

type others interface {
	Namespace() string
	Pause(ctx context.Context) error
	Resume(ctx context.Context) error
	Pids(ctx context.Context) ([]runtime.ProcessInfo, error)
	Checkpoint(ctx context.Context, path string, opts *anypb.Any) error
	Update(ctx context.Context, resources *anypb.Any, annotations map[string]string) error
}

var _ runtime.Task = (*localTask)(nil)

func (t *localTask) PID(ctx context.Context) (pid uint32, err error) {
	err = t.ask(ctx, "Connect", func(ctx context.Context, tasks *task.Set) error {
		conn, err := tasks.Connect(ctx, t.container)
		pid = uint32(conn.TaskPid)
		return err
	})
	return pid, err
}

// process is an exec of the container, whether there is one or not.
func (t *localTask) process(exec string) *localProcess {
	return &localProcess{t.endpoints, t.sandbox, t.container, exec}
}

func (t *localTask) Exec(ctx context.Context, id string, opts runtime.ExecOpts) (runtime.ExecProcess, error) {
	p := t.process(id)
	err := p.change(ctx, "Exec", func(ctx context.Context, tasks *task.Set) error {
		return tasks.Exec(ctx, task.ExecRequest{ID: p.container, ExecID: id, Stdio: stdio.Config(opts.IO), Spec: optional(opts.Spec)})
	})
	if err != nil {
		return nil, err
	}
	return p, nil
}

func (t *localTask) Process(ctx context.Context, id string) (runtime.ExecProcess, error) {
	p := t.process(id)
	if _, err := p.State(ctx); err != nil {
		return nil, err
	}
	return p, nil
}

func (t *localTask) Stats(ctx context.Context) (stats *anypb.Any, err error) {
	err = t.ask(ctx, "Stats", func(ctx context.Context, tasks *task.Set) error {
		counters, err := tasks.Stats(ctx, t.container)
		if err == nil {
			stats = typeurl.MarshalProto(counters)
		}
		return err
	})
	return stats, err
}

// localProcess is a process of a container: its first one if exec is empty.
type localProcess struct {
	endpoints       *Endpoints
	sandbox         sandboxName
	container, exec string
}

var _ runtime.ExecProcess = (*localProcess)(nil)

// ask makes a call, which is one of the Task API to whoever observes.
func (p *localProcess) ask(ctx context.Context, method string, call func(context.Context, *task.Set) error) error {
	ctx = context.WithValue(ctx, sandboxKey{}, p.sandbox)
	return p.endpoints.observe.local(ctx, "/containerd.task.v3.Task/"+method, p, func(ctx context.Context) error {
		tasks, err := p.endpoints.ctl.Tasks(ctx, p.sandbox.id)
		if err != nil {
			return err
		}
		return call(ctx, tasks)
	})
}

// change is ask for what is not given up half-way if the caller goes, as nothing is that
// comes through a socket: containerd asks for some of it only once.
func (p *localProcess) change(ctx context.Context, method string, call func(context.Context, *task.Set) error) error {
	kept := context.WithoutCancel(ctx)
	if deadline, ok := ctx.Deadline(); ok {
		var cancel context.CancelFunc
		kept, cancel = context.WithDeadline(kept, deadline)
		defer cancel()
	}
	return p.ask(kept, method, call)
}

// GetID and GetExecID are what there is to learn of a call.
func (p *localProcess) GetID() string     { return p.container }
func (p *localProcess) GetExecID() string { return p.exec }

func (p *localProcess) ID() string {
	if p.exec != "" {
		return p.exec
	}
	return p.container
}

func (p *localProcess) State(ctx context.Context) (state runtime.State, err error) {
	err = p.ask(ctx, "State", func(ctx context.Context, tasks *task.Set) error {
		st, err := tasks.State(ctx, p.container, p.exec)
		if err != nil {
			return err
		}
		state = runtime.State{
			Status: coreStatus(st), Pid: uint32(st.Pid),
			Stdin: st.Stdio.Stdin, Stdout: st.Stdio.Stdout, Stderr: st.Stdio.Stderr, Terminal: st.Stdio.Terminal,
		}
		if st.State == task.Stopped {
			state.ExitStatus, state.ExitedAt = st.Exit.Status, st.Exit.At
		}
		return nil
	})
	return state, err
}

// coreStatus is taskStatus in the terms of containerd's core.
func coreStatus(st task.Status) runtime.Status {
	switch {
	case st.Paused:
		return runtime.PausedStatus
	case st.State == task.Running:
		return runtime.RunningStatus
	case st.State == task.Stopped:
		return runtime.StoppedStatus
	}
	return runtime.CreatedStatus
}

func (p *localProcess) Start(ctx context.Context) error {
	return p.change(ctx, "Start", func(ctx context.Context, tasks *task.Set) error {
		_, err := tasks.Start(ctx, p.container, p.exec)
		return err
	})
}

func (p *localProcess) Kill(ctx context.Context, signal uint32, all bool) error {
	return p.change(ctx, "Kill", func(ctx context.Context, tasks *task.Set) error {
		return tasks.Kill(ctx, p.container, p.exec, signal, all && p.exec == "")
	})
}

func (p *localProcess) ResizePty(ctx context.Context, size runtime.ConsoleSize) error {
	return p.change(ctx, "ResizePty", func(ctx context.Context, tasks *task.Set) error {
		return tasks.ResizePty(ctx, p.container, p.exec, size.Width, size.Height)
	})
}

func (p *localProcess) CloseIO(ctx context.Context) error {
	return p.change(ctx, "CloseIO", func(ctx context.Context, tasks *task.Set) error {
		return tasks.CloseIO(ctx, p.container, p.exec)
	})
}

// waitAgain is how often a wait asks for tasks that cannot be told of yet.
const waitAgain = time.Second

// Wait takes only an end for an answer, as CRI does: of a sandbox that was not taken over
// yet nobody knows, and who waits has to be told the end later.
func (p *localProcess) Wait(ctx context.Context) (exit *runtime.Exit, err error) {
	for {
		err = p.ask(ctx, "Wait", func(ctx context.Context, tasks *task.Set) error {
			end, err := tasks.Wait(ctx, p.container, p.exec)
			exit = coreExit(end)
			return err
		})
		if err == nil {
			return exit, nil
		}
		if !errdefs.IsUnavailable(err) {
			return nil, err
		}
		select {
		case <-time.After(waitAgain):
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

func (p *localProcess) Delete(ctx context.Context) (exit *runtime.Exit, err error) {
	err = p.change(ctx, "Delete", func(ctx context.Context, tasks *task.Set) error {
		end, err := tasks.Delete(ctx, p.container, p.exec)
		exit = coreExit(end)
		return err
	})
	if err != nil {
		return nil, err
	}
	return exit, nil
}

func coreExit(end task.Exit) *runtime.Exit {
	return &runtime.Exit{Pid: uint32(end.Pid), Status: end.Status, Timestamp: end.At}
}
