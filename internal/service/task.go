package service

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"

	runtimeapi "github.com/containerd/containerd/api/runtime/sandbox/v1"
	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/types/runc/options"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/containerd/v2/core/mount"
	core "github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/log"
	"github.com/containerd/ttrpc"
	"github.com/containerd/typeurl/v2"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"caisson/internal/keeper"
	"caisson/internal/stdio"
	"caisson/internal/subject"
	"caisson/internal/task"
	"caisson/sandbox"
)

// Tasks is what the Task service needs of the controller.
type Tasks interface {
	core.Controller
	Tasks(ctx context.Context, sandboxID string) (*task.Set, error)
	CreateTask(ctx context.Context, sandboxID string, req task.CreateRequest) (int, error)
	Release(ctx context.Context, sandboxID string) error
	Started(ctx context.Context, sandboxID string) (core.ControllerInstance, error)
}

// Endpoints serves the Task and Sandbox APIs of each sandbox on a socket of its
// own. One server answers for all of them: which sandbox is meant, the listener
// tells.
type Endpoints struct {
	ctx     context.Context
	ctl     Tasks
	observe Observe
	srv     *ttrpc.Server
	keeper  *keeper.Keeper // nil: the sockets end with the daemon

	mu     sync.Mutex
	served map[string]sandboxName // by the sockets' paths
}

var _ sandbox.Server = (*Endpoints)(nil)

// NewEndpoints returns a server without sockets; it ends with ctx. With a keeper,
// sockets and connections outlive the daemon.
func NewEndpoints(ctx context.Context, ctl Tasks, k *keeper.Keeper, observe Observe) (*Endpoints, error) {
	srv, err := newTTRPCServer(k, observe)
	if err != nil {
		return nil, err
	}
	taskapi.RegisterTTRPCTaskService(srv, &taskService{ctl: ctl})
	runtimeapi.RegisterTTRPCSandboxService(srv, &runtimeService{controller: controllerService{ctl: ctl}, started: ctl.Started})
	return &Endpoints{ctx: ctx, ctl: ctl, observe: observe, srv: srv, keeper: k, served: map[string]sandboxName{}}, nil
}

// sandboxKey is the context's key of whose socket a call came through.
type sandboxKey struct{}

type sandboxName struct{ namespace, id string }

// Serve answers for one sandbox at path. Connections that are open when the
// endpoint is closed are left to their clients, which close them when they have
// their last answer.
func (e *Endpoints) Serve(namespace, sandboxID, path string) (sandbox.Endpoint, error) {
	name := sandboxName{namespace, sandboxID}
	ep := &served{done: make(chan struct{})}
	if e.keeper != nil {
		l, err := e.keeper.Listen(e.ctx, owner(namespace, sandboxID), path, listenUnix)
		if err != nil {
			return nil, err
		}
		ep.l, ep.remove = l, l.Remove
	} else {
		l, err := listenUnix(path)
		if err != nil {
			return nil, err
		}
		ep.l, ep.remove = l, l.Close
	}
	e.mu.Lock()
	e.served[path] = name
	e.mu.Unlock()
	go func() {
		defer close(ep.done)
		e.serve(name, rootOnly{ep.l})
		e.mu.Lock()
		delete(e.served, path)
		e.mu.Unlock()
	}()
	return ep, nil
}

func (e *Endpoints) serve(name sandboxName, l net.Listener) {
	ctx := context.WithValue(context.WithoutCancel(e.ctx), sandboxKey{}, name)
	if err := e.srv.Serve(ctx, l); err != nil && !isClosed(err) {
		log.G(subject.With(e.ctx, subject.Subject{Namespace: name.namespace, SandboxID: name.id})).WithError(err).Error("serve tasks")
	}
}

// at is the sandbox whose socket has the path.
func (e *Endpoints) at(path string) (sandboxName, bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	name, ok := e.served[path]
	return name, ok
}

// served is one sandbox's socket.
type served struct {
	l      net.Listener
	remove func() error
	done   chan struct{}
}

func (ep *served) Close() error {
	err := ep.l.Close()
	<-ep.done
	return err
}

func (ep *served) Remove() error {
	err := ep.remove()
	<-ep.done
	return err
}

// ServeRest answers the last calls for sandboxes that were removed while their
// clients were connected. Every sandbox is served by then.
func (e *Endpoints) ServeRest() error {
	if e.keeper == nil {
		return nil
	}
	rest, err := e.keeper.Rest()
	for name, conns := range rest {
		namespace, sandboxID, _ := strings.Cut(name, "/")
		l := &given{}
		for _, c := range conns {
			l.conns = append(l.conns, c)
		}
		e.serve(sandboxName{namespace, sandboxID}, rootOnly{l})
	}
	return err
}

// given is a listener of connections that are there already.
type given struct{ conns []net.Conn }

func (l *given) Accept() (net.Conn, error) {
	if len(l.conns) == 0 {
		return nil, net.ErrClosed
	}
	c := l.conns[0]
	l.conns = l.conns[1:]
	return c, nil
}

func (l *given) Close() error   { return nil }
func (l *given) Addr() net.Addr { return &net.UnixAddr{Net: "unix"} }

func owner(namespace, sandboxID string) string { return namespace + "/" + sandboxID }

// Connected tells whether a client of the sandbox is connected since before the
// daemon started.
func (e *Endpoints) Connected(namespace, sandboxID string) bool {
	return e.keeper != nil && e.keeper.Connected(owner(namespace, sandboxID))
}

// Owes tells whether a request will come again that an earlier daemon began.
func (e *Endpoints) Owes(id string) bool { return e.keeper != nil && e.keeper.Owes(id) }

// Close ends all connections.
func (e *Endpoints) Close() error {
	if err := e.srv.Close(); err != nil && !isClosed(err) {
		return fmt.Errorf("close task endpoints: %w", err)
	}
	return nil
}

// isClosed tells the end that we asked for from a failure.
func isClosed(err error) bool {
	return errors.Is(err, net.ErrClosed) || errors.Is(err, ttrpc.ErrServerClosed)
}

// taskService is containerd's Task API, version 3.
type taskService struct {
	ctl Tasks
}

var _ taskapi.TTRPCTaskService = (*taskService)(nil)

var empty = &emptypb.Empty{}

func sandboxID(ctx context.Context) string {
	name, _ := ctx.Value(sandboxKey{}).(sandboxName)
	return name.id
}

func (s *taskService) tasks(ctx context.Context) (*task.Set, error) {
	return s.ctl.Tasks(ctx, sandboxID(ctx))
}

// do runs a call that answers with nothing.
func (s *taskService) do(ctx context.Context, call func(*task.Set) error) (*emptypb.Empty, error) {
	tasks, err := s.tasks(ctx)
	if err == nil {
		err = call(tasks)
	}
	if err != nil {
		return nil, err
	}
	return empty, nil
}

// optional keeps a missing message from becoming an Any that is not nil.
func optional(any *anypb.Any) typeurl.Any {
	if any == nil {
		return nil
	}
	return any
}

func (s *taskService) State(ctx context.Context, r *taskapi.StateRequest) (*taskapi.StateResponse, error) {
	tasks, err := s.tasks(ctx)
	if err != nil {
		return nil, err
	}
	st, err := tasks.State(ctx, r.GetID(), r.GetExecID())
	if err != nil {
		return nil, err
	}
	resp := &taskapi.StateResponse{
		ID:       r.GetID(),
		ExecID:   r.GetExecID(),
		Bundle:   st.Bundle,
		Pid:      uint32(st.Pid),
		Status:   taskStatus(st),
		Stdin:    st.Stdio.Stdin,
		Stdout:   st.Stdio.Stdout,
		Stderr:   st.Stdio.Stderr,
		Terminal: st.Stdio.Terminal,
	}
	if st.State == task.Stopped {
		resp.ExitStatus, resp.ExitedAt = st.Exit.Status, timestamppb.New(st.Exit.At)
	}
	return resp, nil
}

// taskStatus is the status in containerd's terms: a process that is being started was created.
func taskStatus(st task.Status) tasktypes.Status {
	switch {
	case st.Paused:
		return tasktypes.Status_PAUSED
	case st.State == task.Running:
		return tasktypes.Status_RUNNING
	case st.State == task.Stopped:
		return tasktypes.Status_STOPPED
	}
	return tasktypes.Status_CREATED
}

func (s *taskService) Create(ctx context.Context, r *taskapi.CreateTaskRequest) (*taskapi.CreateTaskResponse, error) {
	pid, err := s.ctl.CreateTask(ctx, sandboxID(ctx), task.CreateRequest{
		ID:               r.GetID(),
		Bundle:           r.GetBundle(),
		Rootfs:           mount.FromProto(r.GetRootfs()),
		Stdio:            stdio.Config{Stdin: r.GetStdin(), Stdout: r.GetStdout(), Stderr: r.GetStderr(), Terminal: r.GetTerminal()},
		Checkpoint:       r.GetCheckpoint(),
		ParentCheckpoint: r.GetParentCheckpoint(),
		Options:          optional(r.GetOptions()),
	})
	if err != nil {
		return nil, err
	}
	return &taskapi.CreateTaskResponse{Pid: uint32(pid)}, nil
}

func (s *taskService) Start(ctx context.Context, r *taskapi.StartRequest) (*taskapi.StartResponse, error) {
	tasks, err := s.tasks(ctx)
	if err != nil {
		return nil, err
	}
	pid, err := tasks.Start(ctx, r.GetID(), r.GetExecID())
	if err != nil {
		return nil, err
	}
	return &taskapi.StartResponse{Pid: uint32(pid)}, nil
}

func (s *taskService) Delete(ctx context.Context, r *taskapi.DeleteRequest) (*taskapi.DeleteResponse, error) {
	tasks, err := s.tasks(ctx)
	if err != nil {
		return nil, err
	}
	exit, err := tasks.Delete(ctx, r.GetID(), r.GetExecID())
	if err != nil {
		return nil, err
	}
	return &taskapi.DeleteResponse{Pid: uint32(exit.Pid), ExitStatus: exit.Status, ExitedAt: timestamppb.New(exit.At)}, nil
}

func (s *taskService) Pids(ctx context.Context, r *taskapi.PidsRequest) (*taskapi.PidsResponse, error) {
	tasks, err := s.tasks(ctx)
	if err != nil {
		return nil, err
	}
	pids, err := tasks.Pids(ctx, r.GetID())
	if err != nil {
		return nil, err
	}
	resp := &taskapi.PidsResponse{}
	for _, p := range pids {
		info := &tasktypes.ProcessInfo{Pid: uint32(p.Pid)}
		if p.ExecID != "" {
			if info.Info, err = typeurl.MarshalAnyToProto(&options.ProcessDetails{ExecID: p.ExecID}); err != nil {
				return nil, fmt.Errorf("process %d: %w", p.Pid, err)
			}
		}
		resp.Processes = append(resp.Processes, info)
	}
	return resp, nil
}

func (s *taskService) Pause(ctx context.Context, r *taskapi.PauseRequest) (*emptypb.Empty, error) {
	return s.do(ctx, func(t *task.Set) error { return t.Pause(ctx, r.GetID()) })
}

func (s *taskService) Resume(ctx context.Context, r *taskapi.ResumeRequest) (*emptypb.Empty, error) {
	return s.do(ctx, func(t *task.Set) error { return t.Resume(ctx, r.GetID()) })
}

func (s *taskService) Checkpoint(ctx context.Context, r *taskapi.CheckpointTaskRequest) (*emptypb.Empty, error) {
	return s.do(ctx, func(t *task.Set) error {
		return t.Checkpoint(ctx, r.GetID(), r.GetPath(), optional(r.GetOptions()))
	})
}

func (s *taskService) Kill(ctx context.Context, r *taskapi.KillRequest) (*emptypb.Empty, error) {
	return s.do(ctx, func(t *task.Set) error {
		return t.Kill(ctx, r.GetID(), r.GetExecID(), r.GetSignal(), r.GetAll())
	})
}

func (s *taskService) Exec(ctx context.Context, r *taskapi.ExecProcessRequest) (*emptypb.Empty, error) {
	return s.do(ctx, func(t *task.Set) error {
		return t.Exec(ctx, task.ExecRequest{
			ID:     r.GetID(),
			ExecID: r.GetExecID(),
			Stdio:  stdio.Config{Stdin: r.GetStdin(), Stdout: r.GetStdout(), Stderr: r.GetStderr(), Terminal: r.GetTerminal()},
			Spec:   optional(r.GetSpec()),
		})
	})
}

func (s *taskService) ResizePty(ctx context.Context, r *taskapi.ResizePtyRequest) (*emptypb.Empty, error) {
	return s.do(ctx, func(t *task.Set) error {
		return t.ResizePty(ctx, r.GetID(), r.GetExecID(), r.GetWidth(), r.GetHeight())
	})
}

func (s *taskService) CloseIO(ctx context.Context, r *taskapi.CloseIORequest) (*emptypb.Empty, error) {
	if !r.GetStdin() {
		return empty, nil
	}
	return s.do(ctx, func(t *task.Set) error { return t.CloseIO(ctx, r.GetID(), r.GetExecID()) })
}

func (s *taskService) Update(ctx context.Context, r *taskapi.UpdateTaskRequest) (*emptypb.Empty, error) {
	return s.do(ctx, func(t *task.Set) error { return t.Update(ctx, r.GetID(), optional(r.GetResources())) })
}

func (s *taskService) Wait(ctx context.Context, r *taskapi.WaitRequest) (*taskapi.WaitResponse, error) {
	tasks, err := s.tasks(ctx)
	if err != nil {
		return nil, err
	}
	exit, err := tasks.Wait(ctx, r.GetID(), r.GetExecID())
	if err != nil {
		return nil, err
	}
	return &taskapi.WaitResponse{ExitStatus: exit.Status, ExitedAt: timestamppb.New(exit.At)}, nil
}

func (s *taskService) Stats(ctx context.Context, r *taskapi.StatsRequest) (*taskapi.StatsResponse, error) {
	tasks, err := s.tasks(ctx)
	if err != nil {
		return nil, err
	}
	stats, err := tasks.Stats(ctx, r.GetID())
	if err != nil {
		return nil, err
	}
	return &taskapi.StatsResponse{Stats: typeurl.MarshalProto(stats)}, nil
}

func (s *taskService) Connect(ctx context.Context, r *taskapi.ConnectRequest) (*taskapi.ConnectResponse, error) {
	tasks, err := s.tasks(ctx)
	if err != nil {
		return nil, err
	}
	conn, err := tasks.Connect(ctx, r.GetID())
	if err != nil {
		return nil, err
	}
	return &taskapi.ConnectResponse{ShimPid: uint32(conn.MonitorPid), TaskPid: uint32(conn.TaskPid)}, nil
}

func (s *taskService) Shutdown(ctx context.Context, _ *taskapi.ShutdownRequest) (*emptypb.Empty, error) {
	if err := s.ctl.Release(ctx, sandboxID(ctx)); err != nil {
		return nil, err
	}
	return empty, nil
}
