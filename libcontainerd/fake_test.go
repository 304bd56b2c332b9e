package libcontainerd_test

import (
	"context"
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
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
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
	mu      sync.Mutex
	random  *rand.Rand
	lost    float64 // of the answers to calls that change something
	spoils  float64 // of the starts of execs, which are interrupted; 1: the next alone
	away    bool
	life    chan struct{} // closed by a crash
	nextPid uint32
	tasks   map[string]*fakeTask
	exits   []fakeExit // every exit of a started process
	refusal error      // of every call
	held    *[]func()  // events that are published later; nil if none are held
	heard   chan int   // gets a 1 for each subscription
	hooks   map[string]func() error
	conns   []*conn
	streams []*stream

	containers map[string]containers.Container
	sandboxes  map[string]*fakeSandbox
}

// stream is a subscription to all events, none of which is waited for.
type stream struct {
	queue []*events.Envelope // under the fake's lock
	wake  chan struct{}
}

// conn is a program's connection to the fake.
type conn struct {
	*fake
	tasks.TasksClient      // the calls that no test makes
	cut               bool // as by the end of the program; under the fake's lock
}

type fakeTask struct {
	fakeProcess
	ooms  uint64
	execs map[string]*fakeProcess
}

type fakeProcess struct {
	pid     uint32
	status  tasktypes.Status
	started bool
	code    uint32
	at      time.Time
	exited  chan struct{}
	// spoilt: its start was interrupted, after which runc's shim says that it has
	// exited, and panics when it does.
	spoilt bool
}

type fakeExit struct {
	container, process string
	pid, code          uint32
	at                 int64 // ns
}

func newFake(seed uint64) *fake {
	f := &fake{
		random: rand.New(rand.NewPCG(seed, 0)),
		life:   make(chan struct{}), heard: make(chan int, 1000), nextPid: 100, tasks: map[string]*fakeTask{},
		containers: map[string]containers.Container{}, sandboxes: map[string]*fakeSandbox{},
	}
	return f
}

// connect is a containerd client of the fake.
func (f *fake) connect(t *testing.T) *containerd.Client {
	t.Helper()
	c := &conn{fake: f}
	f.mu.Lock()
	f.conns = append(f.conns, c)
	f.mu.Unlock()
	cli, err := containerd.NewWithConn(c.dial(t), containerd.WithDefaultRuntime("fake"), containerd.WithServices(
		containerd.WithTaskClient(c), containerd.WithContainerStore(&records{f: c}), containerd.WithEventService(c),
		containerd.WithLeasesService(noLeases{}), containerd.WithSandboxStore(sandboxStore{f: c}),
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

// cut ends the connections that there are as a killed program's, or, if on is false,
// lets them work again.
func (f *fake) cut(on bool) {
	f.mu.Lock()
	for _, c := range f.conns {
		c.cut = on
	}
	f.mu.Unlock()
	if on {
		f.breakStreams()
	}
}

// hold keeps events back until release.
func (f *fake) hold() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.held = &[]func(){}
}

func (f *fake) release() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, publish := range *f.held {
		publish()
	}
	f.held = nil
}

// lose has the answers to this share of the calls get lost.
func (f *fake) lose(share float64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.lost = share
}

// other is another program's connection.
func (f *fake) other() *conn { return &conn{fake: f} }

// refuse has every call fail; nil ends that.
func (f *fake) refuse(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.refusal = err
}

// before has the hook run before each call of the name, unless another program makes
// it; the call fails with the hook's error.
func (f *fake) before(call string, hook func() error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.hooks == nil {
		f.hooks = map[string]func() error{}
	}
	f.hooks[call] = hook
}

func (f *conn) hook(call string) error {
	f.mu.Lock()
	hook := f.hooks[call]
	if !slices.Contains(f.conns, f) {
		hook = nil
	}
	f.mu.Unlock()
	if hook == nil {
		return nil
	}
	return hook()
}

// downLocked is why a call has no answer.
func (f *conn) downLocked() error {
	if f.away || f.cut {
		return errAway
	}
	return f.refusal
}

var errAway = status.Error(codes.Unavailable, "the fake is away")

// call runs a request under the lock; its answer may get lost.
func (f *conn) call(do func() error) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.downLocked(); err != nil {
		return err
	}
	err := do()
	if f.random.Float64() < f.lost {
		return errAway
	}
	return errgrpc.ToGRPC(err)
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
	body, err := typeurl.MarshalAny(event)
	if err != nil {
		panic(err)
	}
	publish := func() {
		for _, s := range f.streams {
			s.queue = append(s.queue, &events.Envelope{Timestamp: time.Now(), Namespace: namespace, Topic: topic, Event: body})
			select {
			case s.wake <- struct{}{}:
			default:
			}
		}
	}
	if f.held != nil {
		*f.held = append(*f.held, publish)
		return
	}
	publish()
}

func (f *conn) Create(_ context.Context, r *tasks.CreateTaskRequest, _ ...grpc.CallOption) (*tasks.CreateTaskResponse, error) {
	if err := f.hook("create"); err != nil {
		return nil, err
	}
	var pid uint32
	err := f.call(func() error {
		if f.tasks[r.ContainerID] != nil {
			return fmt.Errorf("task %q: %w", r.ContainerID, errdefs.ErrAlreadyExists)
		}
		f.nextPid++
		pid = f.nextPid
		f.tasks[r.ContainerID] = &fakeTask{
			fakeProcess: fakeProcess{pid: pid, status: tasktypes.Status_CREATED, exited: make(chan struct{})},
			execs:       map[string]*fakeProcess{},
		}
		f.publishLocked("/tasks/create", &apievents.TaskCreate{ContainerID: r.ContainerID, Pid: pid})
		return nil
	})
	return &tasks.CreateTaskResponse{ContainerID: r.ContainerID, Pid: pid}, err
}

func (f *conn) Exec(_ context.Context, r *tasks.ExecProcessRequest, _ ...grpc.CallOption) (*emptypb.Empty, error) {
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

func (f *conn) Start(_ context.Context, r *tasks.StartRequest, _ ...grpc.CallOption) (*tasks.StartResponse, error) {
	if err := f.hook("start"); err != nil {
		return nil, err
	}
	var pid uint32
	err := f.call(func() error {
		p, err := f.processLocked(r.ContainerID, r.ExecID)
		if err != nil {
			return err
		}
		if p.status != tasktypes.Status_CREATED || f.tasks[r.ContainerID].status == tasktypes.Status_STOPPED {
			return fmt.Errorf("process is %s: %w", p.status, errdefs.ErrFailedPrecondition)
		}
		if r.ExecID != "" && f.random.Float64() < f.spoils {
			if f.spoils == 1 {
				f.spoils = 0
			}
			if f.random.IntN(2) == 0 {
				p.spoilt = true
			} else { // or it is only late
				time.AfterFunc(time.Duration(f.random.IntN(100))*time.Millisecond, func() { f.startLate(r, p) })
			}
			return errAway
		}
		f.startLocked(r, p)
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
	if p.spoilt {
		delete(f.tasks, id)
		return
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

func (f *conn) Kill(_ context.Context, r *tasks.KillRequest, _ ...grpc.CallOption) (*emptypb.Empty, error) {
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

func (f *conn) Wait(ctx context.Context, r *tasks.WaitRequest, _ ...grpc.CallOption) (*tasks.WaitResponse, error) {
	f.mu.Lock()
	life, down := f.life, f.downLocked()
	p, err := f.processLocked(r.ContainerID, r.ExecID)
	spoilt := p != nil && p.spoilt
	f.mu.Unlock()
	if down != nil {
		return nil, down
	}
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	if spoilt {
		return &tasks.WaitResponse{}, nil
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

func (f *conn) Get(_ context.Context, r *tasks.GetRequest, _ ...grpc.CallOption) (resp *tasks.GetResponse, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.downLocked(); err != nil {
		return nil, err
	}
	p, err := f.processLocked(r.ContainerID, r.ExecID)
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	state := &tasktypes.Process{ID: r.ContainerID, Pid: p.pid, Status: p.status, ExitStatus: p.code}
	if p.status == tasktypes.Status_STOPPED {
		state.ExitedAt = timestamppb.New(p.at)
	}
	return &tasks.GetResponse{Process: state}, nil
}

func (f *conn) ListPids(_ context.Context, r *tasks.ListPidsRequest, _ ...grpc.CallOption) (*tasks.ListPidsResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.downLocked(); err != nil {
		return nil, err
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

func (f *conn) Delete(_ context.Context, r *tasks.DeleteTaskRequest, _ ...grpc.CallOption) (*tasks.DeleteResponse, error) {
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

func (f *conn) DeleteProcess(_ context.Context, r *tasks.DeleteProcessRequest, _ ...grpc.CallOption) (*tasks.DeleteResponse, error) {
	resp := &tasks.DeleteResponse{}
	return resp, f.call(func() error {
		p, err := f.processLocked(r.ContainerID, r.ExecID)
		if err != nil {
			return err
		}
		if p.status == tasktypes.Status_RUNNING {
			return fmt.Errorf("exec runs: %w", errdefs.ErrFailedPrecondition)
		}
		resp.Pid, resp.ExitStatus, resp.ExitedAt = p.pid, p.code, timestamppb.New(p.at)
		delete(f.tasks[r.ContainerID].execs, r.ExecID)
		return nil
	})
}

// truth are the exits that a backend should have been told of a container.
func (f *fake) truth(id string) []fakeExit {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(f.exits), func(e fakeExit) bool { return e.container != id })
}
