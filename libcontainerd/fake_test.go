package libcontainerd_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	apievents "github.com/containerd/containerd/api/events"
	"github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/api/types/runc/options"
	tasktypes "github.com/containerd/containerd/api/types/task"
	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/events"
	"github.com/containerd/containerd/v2/core/events/exchange"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// fake is a containerd of containers without processes, which a test ends as it
// likes. Like the real one it forgets subscriptions and calls when it crashes, and
// keeps tasks; events that happen while it is away are lost.
type fake struct {
	tasks.TasksClient // the calls that no test makes

	exchange *exchange.Exchange
	records  records

	mu      sync.Mutex
	random  *rand.Rand
	lost    float64 // of the answers to calls that change something
	away    bool
	life    chan struct{} // closed by a crash
	nextPid uint32
	tasks   map[string]*fakeTask
	exits   []fakeExit // every exit of a started process
}

type fakeTask struct {
	fakeProcess
	execs map[string]*fakeProcess
}

type fakeProcess struct {
	pid     uint32
	status  tasktypes.Status
	started bool
	code    uint32
	at      time.Time
	exited  chan struct{}
}

type fakeExit struct {
	container, process string
	pid, code          uint32
	at                 int64 // ns
}

func newFake(seed uint64) *fake {
	f := &fake{
		exchange: exchange.NewExchange(), random: rand.New(rand.NewPCG(seed, 0)),
		life: make(chan struct{}), nextPid: 100, tasks: map[string]*fakeTask{},
	}
	f.records.all = map[string]containers.Container{}
	f.records.fake = f
	return f
}

// connect is a containerd client of the fake.
func (f *fake) connect(t *testing.T) *containerd.Client {
	t.Helper()
	cli, err := containerd.New("", containerd.WithDefaultRuntime("fake"), containerd.WithServices(
		containerd.WithTaskClient(f), containerd.WithContainerStore(&f.records), containerd.WithEventService(f),
		containerd.WithLeasesService(noLeases{}),
	))
	if err != nil {
		t.Fatal(err)
	}
	return cli
}

// crash ends every call and subscription. The fake is away until it is restarted.
func (f *fake) crash() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.away {
		f.away = true
		close(f.life)
	}
}

func (f *fake) restart() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.away {
		f.away = false
		f.life = make(chan struct{})
	}
}

// breakStreams ends calls and subscriptions of a server that stays.
func (f *fake) breakStreams() {
	f.crash()
	f.restart()
}

var errAway = status.Error(codes.Unavailable, "the fake is away")

// call runs a request under the lock; its answer may get lost.
func (f *fake) call(do func() error) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.away {
		return errAway
	}
	err := do()
	if f.random.Float64() < f.lost {
		return errAway
	}
	return errgrpcOf(err)
}

func errgrpcOf(err error) error {
	switch {
	case err == nil:
		return nil
	case errdefs.IsNotFound(err):
		return status.Error(codes.NotFound, err.Error())
	case errdefs.IsAlreadyExists(err):
		return status.Error(codes.AlreadyExists, err.Error())
	case errdefs.IsFailedPrecondition(err):
		return status.Error(codes.FailedPrecondition, err.Error())
	}
	return status.Error(codes.Unknown, err.Error())
}

func (f *fake) processLocked(id, exec string) (*fakeProcess, error) {
	t := f.tasks[id]
	if t == nil {
		return nil, fmt.Errorf("task %q: %w", id, errdefs.ErrNotFound)
	}
	if exec == "" {
		return &t.fakeProcess, nil
	}
	if p := t.execs[exec]; p != nil {
		return p, nil
	}
	return nil, fmt.Errorf("exec %q: %w", exec, errdefs.ErrNotFound)
}

func (f *fake) publishLocked(topic string, event any) {
	if f.away {
		return
	}
	ctx := testContext()
	if err := f.exchange.Publish(ctx, topic, event); err != nil {
		panic(err)
	}
}

func (f *fake) Create(_ context.Context, r *tasks.CreateTaskRequest, _ ...grpc.CallOption) (*tasks.CreateTaskResponse, error) {
	var pid uint32
	err := f.call(func() error {
		if f.tasks[r.ContainerID] != nil {
			return fmt.Errorf("task %q: %w", r.ContainerID, errdefs.ErrAlreadyExists)
		}
		f.nextPid++
		pid = f.nextPid
		f.tasks[r.ContainerID] = &fakeTask{fakeProcess{pid: pid, status: tasktypes.Status_CREATED, exited: make(chan struct{})}, map[string]*fakeProcess{}}
		f.publishLocked("/tasks/create", &apievents.TaskCreate{ContainerID: r.ContainerID, Pid: pid})
		return nil
	})
	return &tasks.CreateTaskResponse{ContainerID: r.ContainerID, Pid: pid}, err
}

func (f *fake) Exec(_ context.Context, r *tasks.ExecProcessRequest, _ ...grpc.CallOption) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, f.call(func() error {
		p, err := f.processLocked(r.ContainerID, "")
		if err != nil {
			return err
		}
		if p.status != tasktypes.Status_RUNNING {
			return fmt.Errorf("task is %s: %w", p.status, errdefs.ErrFailedPrecondition)
		}
		execs := f.tasks[r.ContainerID].execs
		if execs[r.ExecID] != nil {
			return fmt.Errorf("exec %q: %w", r.ExecID, errdefs.ErrAlreadyExists)
		}
		execs[r.ExecID] = &fakeProcess{status: tasktypes.Status_CREATED, exited: make(chan struct{})}
		f.publishLocked("/tasks/exec-added", &apievents.TaskExecAdded{ContainerID: r.ContainerID, ExecID: r.ExecID})
		return nil
	})
}

func (f *fake) Start(_ context.Context, r *tasks.StartRequest, _ ...grpc.CallOption) (*tasks.StartResponse, error) {
	var pid uint32
	err := f.call(func() error {
		p, err := f.processLocked(r.ContainerID, r.ExecID)
		if err != nil {
			return err
		}
		if p.status != tasktypes.Status_CREATED || f.tasks[r.ContainerID].status == tasktypes.Status_STOPPED {
			return fmt.Errorf("process is %s: %w", p.status, errdefs.ErrFailedPrecondition)
		}
		p.status, p.started = tasktypes.Status_RUNNING, true
		if r.ExecID == "" {
			f.publishLocked("/tasks/start", &apievents.TaskStart{ContainerID: r.ContainerID, Pid: p.pid})
		} else {
			f.nextPid++
			p.pid = f.nextPid
			f.publishLocked("/tasks/exec-started", &apievents.TaskExecStarted{ContainerID: r.ContainerID, ExecID: r.ExecID, Pid: p.pid})
		}
		pid = p.pid
		return nil
	})
	return &tasks.StartResponse{Pid: pid}, err
}

// end lets a process exit. The exits of a container's execs may be published after
// its own, as containerd's shim does.
func (f *fake) end(id, exec string, code uint32) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.endLocked(id, exec, code)
}

func (f *fake) endLocked(id, exec string, code uint32) {
	p, err := f.processLocked(id, exec)
	if err != nil || p.status == tasktypes.Status_STOPPED {
		return
	}
	name := exec
	if exec == "" {
		name = id
	}
	last := f.random.IntN(2) == 0
	if exec == "" && !last {
		f.endExecsLocked(id)
	}
	p.status, p.code, p.at = tasktypes.Status_STOPPED, code, time.Now()
	close(p.exited)
	if p.started {
		f.exits = append(f.exits, fakeExit{id, name, p.pid, code, p.at.UnixNano()})
	}
	if p.pid != 0 {
		f.publishLocked("/tasks/exit", &apievents.TaskExit{ContainerID: id, ID: name, Pid: p.pid, ExitStatus: code, ExitedAt: timestamppb.New(p.at)})
	}
	if exec == "" && last {
		f.endExecsLocked(id)
	}
}

func (f *fake) endExecsLocked(id string) {
	for name, p := range f.tasks[id].execs {
		if p.started {
			f.endLocked(id, name, 137)
		}
	}
}

func (f *fake) Kill(_ context.Context, r *tasks.KillRequest, _ ...grpc.CallOption) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, f.call(func() error {
		p, err := f.processLocked(r.ContainerID, r.ExecID)
		if err == nil && p.status == tasktypes.Status_STOPPED {
			err = fmt.Errorf("process has exited: %w", errdefs.ErrNotFound)
		}
		if err == nil {
			f.endLocked(r.ContainerID, r.ExecID, 128+r.Signal)
		}
		return err
	})
}

func (f *fake) Wait(ctx context.Context, r *tasks.WaitRequest, _ ...grpc.CallOption) (*tasks.WaitResponse, error) {
	f.mu.Lock()
	life, away := f.life, f.away
	p, err := f.processLocked(r.ContainerID, r.ExecID)
	f.mu.Unlock()
	if away {
		return nil, errAway
	}
	if err != nil {
		return nil, errgrpcOf(err)
	}
	select {
	case <-p.exited:
		return &tasks.WaitResponse{ExitStatus: p.code, ExitedAt: timestamppb.New(p.at)}, nil
	case <-life:
		return nil, errAway
	case <-ctx.Done():
		return nil, status.FromContextError(ctx.Err()).Err()
	}
}

func (f *fake) Get(_ context.Context, r *tasks.GetRequest, _ ...grpc.CallOption) (resp *tasks.GetResponse, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.away {
		return nil, errAway
	}
	p, err := f.processLocked(r.ContainerID, r.ExecID)
	if err != nil {
		return nil, errgrpcOf(err)
	}
	state := &tasktypes.Process{ID: r.ContainerID, Pid: p.pid, Status: p.status, ExitStatus: p.code}
	if p.status == tasktypes.Status_STOPPED {
		state.ExitedAt = timestamppb.New(p.at)
	}
	return &tasks.GetResponse{Process: state}, nil
}

func (f *fake) ListPids(_ context.Context, r *tasks.ListPidsRequest, _ ...grpc.CallOption) (*tasks.ListPidsResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.away {
		return nil, errAway
	}
	t := f.tasks[r.ContainerID]
	if t == nil {
		return nil, status.Error(codes.NotFound, "no task")
	}
	resp := &tasks.ListPidsResponse{Processes: []*tasktypes.ProcessInfo{{Pid: t.pid}}}
	for id, p := range t.execs {
		if p.status == tasktypes.Status_RUNNING {
			info, err := typeurl.MarshalAnyToProto(&options.ProcessDetails{ExecID: id})
			if err != nil {
				return nil, err
			}
			resp.Processes = append(resp.Processes, &tasktypes.ProcessInfo{Pid: p.pid, Info: info})
		}
	}
	return resp, nil
}

func (f *fake) Delete(_ context.Context, r *tasks.DeleteTaskRequest, _ ...grpc.CallOption) (*tasks.DeleteResponse, error) {
	resp := &tasks.DeleteResponse{}
	return resp, f.call(func() error {
		p, err := f.processLocked(r.ContainerID, "")
		if err != nil {
			return err
		}
		if p.status != tasktypes.Status_STOPPED {
			return fmt.Errorf("task is %s: %w", p.status, errdefs.ErrFailedPrecondition)
		}
		resp.ExitStatus, resp.ExitedAt = p.code, timestamppb.New(p.at)
		delete(f.tasks, r.ContainerID)
		f.publishLocked("/tasks/delete", &apievents.TaskDelete{ContainerID: r.ContainerID, Pid: p.pid, ExitStatus: p.code, ExitedAt: resp.ExitedAt})
		return nil
	})
}

func (f *fake) DeleteProcess(_ context.Context, r *tasks.DeleteProcessRequest, _ ...grpc.CallOption) (*tasks.DeleteResponse, error) {
	resp := &tasks.DeleteResponse{}
	return resp, f.call(func() error {
		p, err := f.processLocked(r.ContainerID, r.ExecID)
		if err != nil {
			return err
		}
		if p.status == tasktypes.Status_RUNNING {
			return fmt.Errorf("exec runs: %w", errdefs.ErrFailedPrecondition)
		}
		resp.ExitStatus, resp.ExitedAt = p.code, timestamppb.New(p.at)
		delete(f.tasks[r.ContainerID].execs, r.ExecID)
		return nil
	})
}

func (f *fake) Publish(ctx context.Context, topic string, event events.Event) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.away {
		return errAway
	}
	return f.exchange.Publish(ctx, topic, event)
}

func (f *fake) Forward(context.Context, *events.Envelope) error { return errors.ErrUnsupported }

func (f *fake) Subscribe(ctx context.Context, filters ...string) (<-chan *events.Envelope, <-chan error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	errs := make(chan error, 1)
	if f.away {
		errs <- errAway
		return nil, errs
	}
	ctx, cancel := context.WithCancel(ctx)
	life := f.life
	stream, ended := f.exchange.Subscribe(ctx, filters...)
	out := make(chan *events.Envelope)
	go func() {
		defer cancel()
		for {
			select {
			case ev := <-stream:
				select {
				case out <- ev:
				case <-life:
					errs <- errAway
					return
				case <-ctx.Done():
					return
				}
			case err := <-ended:
				errs <- err
				return
			case <-life:
				errs <- errAway
				return
			}
		}
	}()
	return out, errs
}

// truth are the exits that a backend should have been told of a container.
func (f *fake) truth(id string) []fakeExit {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(f.exits), func(e fakeExit) bool { return e.container != id })
}

// records are the fake's containers.
type records struct {
	containers.Store // Update and List are not needed

	fake *fake
	all  map[string]containers.Container // under the fake's lock
}

func (r *records) Create(_ context.Context, c containers.Container) (containers.Container, error) {
	return c, r.native(func() error {
		if _, ok := r.all[c.ID]; ok {
			return fmt.Errorf("container %q: %w", c.ID, errdefs.ErrAlreadyExists)
		}
		r.all[c.ID] = c
		return nil
	})
}

func (r *records) Get(_ context.Context, id string) (c containers.Container, err error) {
	r.fake.mu.Lock()
	defer r.fake.mu.Unlock()
	if r.fake.away {
		return c, fmt.Errorf("away: %w", errdefs.ErrUnavailable)
	}
	c, ok := r.all[id]
	if !ok {
		return c, fmt.Errorf("container %q: %w", id, errdefs.ErrNotFound)
	}
	return c, nil
}

func (r *records) Delete(_ context.Context, id string) error {
	return r.native(func() error {
		if _, ok := r.all[id]; !ok {
			return fmt.Errorf("container %q: %w", id, errdefs.ErrNotFound)
		}
		delete(r.all, id)
		return nil
	})
}

// native is a call with the errors that the client of a real server gives.
func (r *records) native(do func() error) error {
	var cause error
	err := r.fake.call(func() error { cause = do(); return nil })
	if err != nil {
		return fmt.Errorf("away: %w", errdefs.ErrUnavailable)
	}
	return cause
}

type noLeases struct{ leases.Manager }

func (noLeases) Create(context.Context, ...leases.Opt) (leases.Lease, error) {
	return leases.Lease{ID: "fake"}, nil
}

func (noLeases) Delete(context.Context, leases.Lease, ...leases.DeleteOpt) error { return nil }
