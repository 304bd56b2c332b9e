package cgroup

import (
	"context"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
)

func TestWatchOOM(t *testing.T) {
	needs(t, "memory")
	g := newGroup(t, &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(48 << 20)), Swap: ptr(int64(48 << 20))}})
	hungry, sibling := leaf(t, g, "a"), leaf(t, g, "b")
	if err := hungry.Update(&specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(32 << 20)), Swap: ptr(int64(32 << 20))}}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	killed, err := hungry.WatchOOM(ctx)
	if err != nil {
		t.Fatal(err)
	}
	notMine, err := sibling.WatchOOM(ctx)
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
	if _, err := hungry.WatchOOM(t.Context()); !errdefs.IsNotFound(err) {
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
		if told[i], err = w.WatchOOM(ctx); err != nil {
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
