package libcontainerd_test

import (
	"context"
	"fmt"
	"strings"

	"github.com/containerd/cgroups/v3/cgroup2/stats"
	apievents "github.com/containerd/containerd/api/events"
	"github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/api/types"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

func (f *conn) Pause(_ context.Context, r *tasks.PauseTaskRequest, _ ...grpc.CallOption) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, f.call(func() error {
		return f.freezeLocked(r.ContainerID, tasktypes.Status_RUNNING, tasktypes.Status_PAUSED, &apievents.TaskPaused{ContainerID: r.ContainerID})
	})
}

func (f *conn) Resume(_ context.Context, r *tasks.ResumeTaskRequest, _ ...grpc.CallOption) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, f.call(func() error {
		return f.freezeLocked(r.ContainerID, tasktypes.Status_PAUSED, tasktypes.Status_RUNNING, &apievents.TaskResumed{ContainerID: r.ContainerID})
	})
}

func (f *fake) freezeLocked(id string, from, to tasktypes.Status, event any) error {
	p, err := f.processLocked(id, "")
	if err == nil && p.status != from {
		err = fmt.Errorf("task is %s: %w", p.status, errdefs.ErrFailedPrecondition)
	}
	if err == nil {
		p.status = to
		f.publishLocked("/tasks/"+map[bool]string{true: "paused", false: "resumed"}[to == tasktypes.Status_PAUSED], event)
	}
	return err
}

// oom is one that the kernel counts and, if the event is not lost, tells.
func (f *fake) oom(id string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.tasks[id].ooms++
	f.publishLocked("/tasks/oom", &apievents.TaskOOM{ContainerID: id})
}

func (f *conn) Metrics(_ context.Context, r *tasks.MetricsRequest, _ ...grpc.CallOption) (*tasks.MetricsResponse, error) {
	resp := &tasks.MetricsResponse{}
	return resp, f.call(func() error {
		id := strings.TrimPrefix(r.Filters[0], "id==")
		if f.tasks[id] == nil {
			return nil
		}
		m, err := metricsOf(f.tasks[id].ooms)
		resp.Metrics = append(resp.Metrics, m)
		return err
	})
}

func metricsOf(ooms uint64) (*types.Metric, error) {
	data, err := typeurl.MarshalAnyToProto(&stats.Metrics{MemoryEvents: &stats.MemoryEvents{OomKill: ooms}})
	return &types.Metric{Timestamp: timestamppb.Now(), Data: data}, err
}

func (f *conn) ResizePty(_ context.Context, r *tasks.ResizePtyRequest, _ ...grpc.CallOption) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, f.exists(r.ContainerID, r.ExecID)
}

func (f *conn) CloseIO(_ context.Context, r *tasks.CloseIORequest, _ ...grpc.CallOption) (*emptypb.Empty, error) {
	if err := f.hook("close"); err != nil {
		return nil, err
	}
	return &emptypb.Empty{}, f.exists(r.ContainerID, r.ExecID)
}

func (f *conn) Update(_ context.Context, r *tasks.UpdateTaskRequest, _ ...grpc.CallOption) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, f.exists(r.ContainerID, "")
}

// exists is a call that changes nothing that a test looks at.
func (f *conn) exists(id, exec string) error {
	return f.call(func() error {
		_, err := f.processLocked(id, exec)
		return err
	})
}

// spoil has the next start of an exec be interrupted.
func (f *fake) spoil() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.spoils = 1
}

func (f *fake) startLocked(r *tasks.StartRequest, p *fakeProcess) {
	p.status, p.started = tasktypes.Status_RUNNING, true
	if r.ExecID == "" {
		f.publishLocked("/tasks/start", &apievents.TaskStart{ContainerID: r.ContainerID, Pid: p.pid})
		return
	}
	f.nextPid++
	p.pid = f.nextPid
	f.publishLocked("/tasks/exec-started", &apievents.TaskExecStarted{ContainerID: r.ContainerID, ExecID: r.ExecID, Pid: p.pid})
}

// startLate does what a request that nobody waits for any more asked for.
func (f *fake) startLate(r *tasks.StartRequest, p *fakeProcess) {
	f.mu.Lock()
	defer f.mu.Unlock()
	t := f.tasks[r.ContainerID]
	if t != nil && t.status == tasktypes.Status_RUNNING && t.execs[r.ExecID] == p && p.status == tasktypes.Status_CREATED {
		f.startLocked(r, p)
	}
}
