package cgroup

import (
	"context"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// watchOOM returns a channel of what the watch tells, which is closed when it ends.
func watchOOM(ctx context.Context, g *Group) (<-chan struct{}, error) {
	told := make(chan struct{}, 1)
	done, err := g.WatchOOM(ctx, func() {
		select {
		case told <- struct{}{}:
		default: // the last one was not received yet
		}
	})
	if err != nil {
		return nil, err
	}
	go func() {
		<-done
		close(told)
	}()
	return told, nil
}

func TestWatchOOM(t *testing.T) {
	needs(t, "memory")
	g := newGroup(t, &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(48 << 20)), Swap: ptr(int64(48 << 20))}})
	hungry, sibling := leaf(t, g, "a"), leaf(t, g, "b")
	if err := hungry.Update(&specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(32 << 20)), Swap: ptr(int64(32 << 20))}}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	killed, err := watchOOM(ctx, hungry)
	if err != nil {
		t.Fatal(err)
	}
	notMine, err := watchOOM(ctx, sibling)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // the watch goes on after the first
		cmd, in := started(t, hungry, "hog")
		before, err := hungry.OOMKills()
		if err != nil {
			t.Fatal(err)
		}
		in.Close()
		if err := cmd.Wait(); cmd.ProcessState.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
			t.Fatalf("hog: %v", err)
		}
		if after, err := hungry.OOMKills(); err != nil || after != before+1 {
			t.Errorf("%d OOM kills after %d, %v", after, before, err)
		}
		if !within(t, killed, "OOM event") {
			t.Fatal("the watch ended early")
		}
	}
	// The end of the group ends its watch; the other one ends with its ctx.
	if err := hungry.Delete(t.Context()); err != nil {
		t.Fatal(err)
	}
	if within(t, killed, "end of the watch after delete") {
		t.Error("an OOM event without a kill")
	}
	cancel()
	if within(t, notMine, "end of the watch after cancel") {
		t.Error("the sibling was told of an OOM kill that was not its own")
	}
	if _, err := watchOOM(t.Context(), hungry); !errdefs.IsNotFound(err) {
		t.Errorf("watch a group that is gone: %v", err)
	}
}

// TestWatchOOMOfParent has the limit above the group that is watched.
func TestWatchOOMOfParent(t *testing.T) {
	needs(t, "memory")
	g := newGroup(t, &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(32 << 20)), Swap: ptr(int64(32 << 20))}})
	hungry, sibling := leaf(t, g, "a"), leaf(t, g, "b")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var told [3]<-chan struct{}
	for i, w := range []*Group{g, hungry, sibling} {
		var err error
		if told[i], err = watchOOM(ctx, w); err != nil {
			t.Fatal(err)
		}
	}
	cmd, in := started(t, hungry, "hog")
	in.Close()
	_ = cmd.Wait() // killed; that it was is what the watch tells
	if !within(t, told[0], "OOM event of the parent") || !within(t, told[1], "OOM event of the child") {
		t.Fatal("a watch ended early")
	}
	cancel()
	if within(t, told[2], "end of the watch") {
		t.Error("the sibling was told of an OOM kill that was not its own")
	}
}
