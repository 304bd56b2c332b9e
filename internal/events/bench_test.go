package events

import (
	"context"
	"strconv"
	"testing"

	taskevents "github.com/containerd/containerd/api/events"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/v2/core/runtime"
	"github.com/containerd/containerd/v2/pkg/namespaces"

	"caisson/internal/ceiling"
)

func BenchmarkPublish(b *testing.B) {
	j, err := Open(b.TempDir(), func(context.Context, *types.Envelope) error { return nil })
	if err != nil {
		b.Fatal(err)
	}
	ctx := namespaces.WithNamespace(b.Context(), "bench")
	defer ceiling.Allocs(b, 40)()
	i := 0
	for b.Loop() {
		i++
		if err := j.Publish(ctx, strconv.Itoa(i), runtime.TaskStartEventTopic, &taskevents.TaskStart{ContainerID: "c", Pid: 7}); err != nil {
			b.Fatal(err)
		}
	}
	if err := j.Close(context.Background()); err != nil {
		b.Error(err)
	}
}
