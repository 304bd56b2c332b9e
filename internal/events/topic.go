package events

import (
	"fmt"

	taskevents "github.com/containerd/containerd/api/events"
	"github.com/containerd/containerd/v2/core/runtime"
	"github.com/containerd/errdefs"
)

// Topic returns the topic under which containerd's clients expect a task event (a pointer
// to a message of containerd's api/events), and InvalidArgument for anything else.
// (containerd's own GetTopic logs a warning with the whole event and answers "/tasks/?".)
func Topic(event any) (string, error) {
	switch event.(type) {
	case *taskevents.TaskCreate:
		return runtime.TaskCreateEventTopic, nil
	case *taskevents.TaskStart:
		return runtime.TaskStartEventTopic, nil
	case *taskevents.TaskOOM:
		return runtime.TaskOOMEventTopic, nil
	case *taskevents.TaskExit:
		return runtime.TaskExitEventTopic, nil
	case *taskevents.TaskDelete:
		return runtime.TaskDeleteEventTopic, nil
	case *taskevents.TaskExecAdded:
		return runtime.TaskExecAddedEventTopic, nil
	case *taskevents.TaskExecStarted:
		return runtime.TaskExecStartedEventTopic, nil
	case *taskevents.TaskPaused:
		return runtime.TaskPausedEventTopic, nil
	case *taskevents.TaskResumed:
		return runtime.TaskResumedEventTopic, nil
	case *taskevents.TaskCheckpointed:
		return runtime.TaskCheckpointedEventTopic, nil
	}
	return "", fmt.Errorf("event %T: no topic: %w", event, errdefs.ErrInvalidArgument)
}
