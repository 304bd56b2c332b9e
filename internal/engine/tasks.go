package engine

import (
	"context"
	"fmt"

	"github.com/containerd/containerd/v2/core/runtime"
	"github.com/containerd/errdefs"
)

// Tasks knows a shorter way to the tasks of its sandboxes than their sockets. Other
// tasks are returned as they are.
type Tasks interface {
	Local(t runtime.Task) runtime.Task
}

// taskManager is containerd's: it makes tasks, finds those of an earlier life, and
// deletes them. What others ask of a task takes the shorter way.
type taskManager struct {
	manager
	near Tasks
}

// manager is what containerd's services use of its task manager.
type manager interface {
	runtime.PlatformRuntime
	PluginInfo(ctx context.Context, request any) (any, error)
}

func newTaskManager(made any, near Tasks) (*taskManager, error) {
	m, ok := made.(manager)
	if !ok {
		return nil, fmt.Errorf("containerd's task manager is a %T: %w", made, errdefs.ErrNotImplemented)
	}
	return &taskManager{m, near}, nil
}

func (m *taskManager) Create(ctx context.Context, id string, opts runtime.CreateOpts) (runtime.Task, error) {
	return m.through(m.manager.Create(ctx, id, opts))
}

func (m *taskManager) Get(ctx context.Context, id string) (runtime.Task, error) {
	return m.through(m.manager.Get(ctx, id))
}

func (m *taskManager) through(t runtime.Task, err error) (runtime.Task, error) {
	if err != nil {
		return nil, err
	}
	return m.near.Local(t), nil
}

func (m *taskManager) Tasks(ctx context.Context, all bool) ([]runtime.Task, error) {
	tasks, err := m.manager.Tasks(ctx, all)
	for i := range tasks {
		tasks[i] = m.near.Local(tasks[i])
	}
	return tasks, err
}
