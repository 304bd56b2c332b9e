package cli

import (
	"context"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	containersapi "github.com/containerd/containerd/api/services/containers/v1"
	introspectionapi "github.com/containerd/containerd/api/services/introspection/v1"
	sandboxesapi "github.com/containerd/containerd/api/services/sandbox/v1"
	tasksapi "github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/api/types/task"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// fakeDaemon keeps sandboxes as a daemon does, with nothing behind them. Like
// containerd's sandbox service, its Status leaves out the address.
type fakeDaemon struct {
	address string

	mu         sync.Mutex // guards all below
	records    map[string]*types.Sandbox
	states     map[string]string // of the controller
	creates    []*sandboxesapi.ControllerCreateRequest
	updates    []*sandboxesapi.ControllerUpdateRequest
	stops      []*sandboxesapi.ControllerStopRequest
	containers []*containersapi.Container
	processes  []*task.Process
	fail       map[string]error // by verb
}

// refuse answers the error that a test wants of a verb, or one for a wrong sandboxer.
func (d *fakeDaemon) refuse(verb, name string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.fail[verb]; err != nil {
		return errgrpc.ToGRPC(err)
	}
	if name != sandboxer {
		return errgrpc.ToGRPC(errdefs.ErrInvalidArgument)
	}
	return nil
}

type fakeStore struct {
	sandboxesapi.UnimplementedStoreServer
	*fakeDaemon
}

func (s fakeStore) Create(_ context.Context, r *sandboxesapi.StoreCreateRequest) (*sandboxesapi.StoreCreateResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	id := r.GetSandbox().GetSandboxID()
	if s.records[id] != nil {
		return nil, errgrpc.ToGRPC(errdefs.ErrAlreadyExists)
	}
	s.records[id] = r.GetSandbox()
	return &sandboxesapi.StoreCreateResponse{Sandbox: r.GetSandbox()}, nil
}

func (s fakeStore) Update(_ context.Context, r *sandboxesapi.StoreUpdateRequest) (*sandboxesapi.StoreUpdateResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.records[r.GetSandbox().GetSandboxID()] = r.GetSandbox()
	return &sandboxesapi.StoreUpdateResponse{Sandbox: r.GetSandbox()}, nil
}

func (s fakeStore) Get(_ context.Context, r *sandboxesapi.StoreGetRequest) (*sandboxesapi.StoreGetResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	record := s.records[r.GetSandboxID()]
	if record == nil {
		return nil, errgrpc.ToGRPC(errdefs.ErrNotFound)
	}
	return &sandboxesapi.StoreGetResponse{Sandbox: record}, nil
}

func (s fakeStore) List(context.Context, *sandboxesapi.StoreListRequest) (*sandboxesapi.StoreListResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return &sandboxesapi.StoreListResponse{List: slices.Collect(maps.Values(s.records))}, nil
}

func (s fakeStore) Delete(_ context.Context, r *sandboxesapi.StoreDeleteRequest) (*sandboxesapi.StoreDeleteResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.records[r.GetSandboxID()] == nil {
		return nil, errgrpc.ToGRPC(errdefs.ErrNotFound)
	}
	delete(s.records, r.GetSandboxID())
	return &sandboxesapi.StoreDeleteResponse{}, nil
}

type fakeController struct {
	sandboxesapi.UnimplementedControllerServer
	*fakeDaemon
}

func (c fakeController) Create(_ context.Context, r *sandboxesapi.ControllerCreateRequest) (*sandboxesapi.ControllerCreateResponse, error) {
	if err := c.refuse("create", r.GetSandboxer()); err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.creates = append(c.creates, r)
	c.states[r.GetSandboxID()] = "SANDBOX_NOTREADY"
	return &sandboxesapi.ControllerCreateResponse{SandboxID: r.GetSandboxID()}, nil
}

func (c fakeController) Start(_ context.Context, r *sandboxesapi.ControllerStartRequest) (*sandboxesapi.ControllerStartResponse, error) {
	if err := c.refuse("start", r.GetSandboxer()); err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.states[r.GetSandboxID()] == "" {
		return nil, errgrpc.ToGRPC(errdefs.ErrNotFound)
	}
	c.states[r.GetSandboxID()] = "SANDBOX_READY"
	return &sandboxesapi.ControllerStartResponse{SandboxID: r.GetSandboxID(), Pid: 7}, nil
}

func (c fakeController) Stop(_ context.Context, r *sandboxesapi.ControllerStopRequest) (*sandboxesapi.ControllerStopResponse, error) {
	if err := c.refuse("stop", r.GetSandboxer()); err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stops = append(c.stops, r)
	if c.states[r.GetSandboxID()] == "" {
		return nil, errgrpc.ToGRPC(errdefs.ErrNotFound)
	}
	c.states[r.GetSandboxID()] = "SANDBOX_NOTREADY"
	return &sandboxesapi.ControllerStopResponse{}, nil
}

func (c fakeController) Shutdown(_ context.Context, r *sandboxesapi.ControllerShutdownRequest) (*sandboxesapi.ControllerShutdownResponse, error) {
	if err := c.refuse("shutdown", r.GetSandboxer()); err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.states, r.GetSandboxID())
	return &sandboxesapi.ControllerShutdownResponse{}, nil
}

func (c fakeController) Status(_ context.Context, r *sandboxesapi.ControllerStatusRequest) (*sandboxesapi.ControllerStatusResponse, error) {
	if err := c.refuse("status", r.GetSandboxer()); err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	state := c.states[r.GetSandboxID()]
	if state == "" {
		return nil, errgrpc.ToGRPC(errdefs.ErrNotFound)
	}
	resp := &sandboxesapi.ControllerStatusResponse{SandboxID: r.GetSandboxID(), State: state, Pid: 7, CreatedAt: timestamppb.Now()}
	if r.GetVerbose() {
		resp.Info = map[string]string{"info": `{"address":"ttrpc+unix:///run/x","version":3}`}
	}
	return resp, nil
}

func (c fakeController) Wait(_ context.Context, r *sandboxesapi.ControllerWaitRequest) (*sandboxesapi.ControllerWaitResponse, error) {
	if err := c.refuse("wait", r.GetSandboxer()); err != nil {
		return nil, err
	}
	return &sandboxesapi.ControllerWaitResponse{ExitStatus: 3}, nil
}

func (c fakeController) Update(_ context.Context, r *sandboxesapi.ControllerUpdateRequest) (*sandboxesapi.ControllerUpdateResponse, error) {
	if err := c.refuse("update", r.GetSandboxer()); err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.updates = append(c.updates, r)
	return &sandboxesapi.ControllerUpdateResponse{}, nil
}

type fakeContainers struct {
	containersapi.UnimplementedContainersServer
	*fakeDaemon
}

func (c fakeContainers) List(context.Context, *containersapi.ListContainersRequest) (*containersapi.ListContainersResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return &containersapi.ListContainersResponse{Containers: slices.Clone(c.containers)}, nil
}

func (c fakeContainers) Get(_ context.Context, r *containersapi.GetContainerRequest) (*containersapi.GetContainerResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, ctr := range c.containers {
		if ctr.GetID() == r.GetID() {
			return &containersapi.GetContainerResponse{Container: ctr}, nil
		}
	}
	return nil, errgrpc.ToGRPC(errdefs.ErrNotFound)
}

func (c fakeContainers) Delete(_ context.Context, r *containersapi.DeleteContainerRequest) (*emptypb.Empty, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.containers = slices.DeleteFunc(c.containers, func(ctr *containersapi.Container) bool { return ctr.GetID() == r.GetID() })
	return &emptypb.Empty{}, nil
}

type fakeTasks struct {
	tasksapi.UnimplementedTasksServer
	*fakeDaemon
}

func (t fakeTasks) List(context.Context, *tasksapi.ListTasksRequest) (*tasksapi.ListTasksResponse, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return &tasksapi.ListTasksResponse{Tasks: slices.Clone(t.processes)}, nil
}

func (t fakeTasks) Get(_ context.Context, r *tasksapi.GetRequest) (*tasksapi.GetResponse, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, p := range t.processes {
		if p.GetID() == r.GetContainerID() {
			return &tasksapi.GetResponse{Process: p}, nil
		}
	}
	return nil, errgrpc.ToGRPC(errdefs.ErrNotFound)
}

func (fakeTasks) Metrics(context.Context, *tasksapi.MetricsRequest) (*tasksapi.MetricsResponse, error) {
	return &tasksapi.MetricsResponse{}, nil
}

func (t fakeTasks) Wait(ctx context.Context, r *tasksapi.WaitRequest) (*tasksapi.WaitResponse, error) {
	if _, err := t.Get(ctx, &tasksapi.GetRequest{ContainerID: r.GetContainerID()}); err != nil {
		return nil, err
	}
	return &tasksapi.WaitResponse{ExitStatus: 4}, nil
}

func (t fakeTasks) Pause(_ context.Context, r *tasksapi.PauseTaskRequest) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, t.set(r.GetContainerID(), task.Status_PAUSED)
}

func (t fakeTasks) Resume(_ context.Context, r *tasksapi.ResumeTaskRequest) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, t.set(r.GetContainerID(), task.Status_RUNNING)
}

func (t fakeTasks) set(id string, status task.Status) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, p := range t.processes {
		if p.GetID() == id {
			p.Status = status
			return nil
		}
	}
	return errgrpc.ToGRPC(errdefs.ErrNotFound)
}

type fakeIntrospection struct {
	introspectionapi.UnimplementedIntrospectionServer
}

func (fakeIntrospection) Plugins(context.Context, *introspectionapi.PluginsRequest) (*introspectionapi.PluginsResponse, error) {
	return &introspectionapi.PluginsResponse{}, nil
}

func startFake(t *testing.T) *fakeDaemon {
	t.Helper()
	dir, err := os.MkdirTemp("", "c") // short enough for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	d := &fakeDaemon{
		address: filepath.Join(dir, "s"),
		records: map[string]*types.Sandbox{}, states: map[string]string{}, fail: map[string]error{},
	}
	listener, err := net.Listen("unix", d.address)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	sandboxesapi.RegisterStoreServer(server, fakeStore{fakeDaemon: d})
	sandboxesapi.RegisterControllerServer(server, fakeController{fakeDaemon: d})
	containersapi.RegisterContainersServer(server, fakeContainers{fakeDaemon: d})
	tasksapi.RegisterTasksServer(server, fakeTasks{fakeDaemon: d})
	introspectionapi.RegisterIntrospectionServer(server, fakeIntrospection{})
	done := make(chan error, 1)
	go func() { done <- server.Serve(listener) }()
	t.Cleanup(func() {
		server.Stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return d
}

func (d *fakeDaemon) run(t *testing.T, args ...string) (int, string, string) {
	t.Helper()
	return runCLI(t, append([]string{"--address", d.address}, args...)...)
}

// addContainer puts a container into a sandbox; with a status it has a task.
func (d *fakeDaemon) addContainer(id, sandboxID string, status task.Status, labels map[string]string) {
	d.containers = append(d.containers, &containersapi.Container{
		ID: id, Sandbox: sandboxID, Labels: labels, Image: "docker.io/library/demo:latest",
		Runtime: &containersapi.Container_Runtime{Name: runtimeName}, CreatedAt: timestamppb.Now(),
	})
	if status != task.Status_UNKNOWN {
		d.processes = append(d.processes, &task.Process{ID: id, Status: status, Pid: 9})
	}
}
