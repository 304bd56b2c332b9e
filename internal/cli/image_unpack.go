package cli

import (
	"cmp"
	"context"
	"fmt"
	"sync"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/defaults"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/image-spec/identity"

	"caisson/internal/progress"
)

// unpack makes the snapshots of an image's layers, if there are none yet.
func (c *client) unpack(ctx context.Context, image containerd.Image, d *progress.Display) error {
	done, err := image.IsUnpacked(ctx, "")
	if errdefs.IsNotFound(err) {
		return advise(err, "image %q has nothing for %s, or lacks some of its content: import or pull it again", image.Name(), platforms.DefaultString())
	}
	if err == nil && !done {
		watchCtx, stop := context.WithCancel(ctx)
		var wg sync.WaitGroup
		wg.Go(func() { c.showLayers(watchCtx, image, d) })
		err = image.Unpack(ctx, "")
		stop()
		wg.Wait()
	}
	if err != nil {
		return fmt.Errorf("image %q: unpack: %w", image.Name(), err)
	}
	return nil
}

// showLayers shows how many layers have been unpacked, until ctx ends. containerd does
// not tell, but has the snapshot of each that is done.
func (c *client) showLayers(ctx context.Context, image containerd.Image, d *progress.Display) {
	if d == nil {
		return
	}
	ids, err := image.RootFS(ctx)
	if err != nil {
		return // whoever unpacks says it
	}
	ids = identity.ChainIDs(ids)
	name, err := c.ownSnapshotter(ctx)
	if err != nil {
		return
	}
	snapshots := c.SnapshotService(cmp.Or(name, defaults.DefaultSnapshotter))
	state := progress.State{Step: "unpacking", Total: int64(len(ids)), Unit: "layers"}
	show := func(ctx context.Context) {
		for state.Done < state.Total {
			if _, err := snapshots.Stat(ctx, ids[state.Done].String()); err != nil {
				break
			}
			state.Done++
		}
		if state.Done == state.Total {
			state.Step, state.Ended = "unpacked", true
		}
		d.Set(image.Name(), printable(familiar(image.Name())), state)
	}
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for show(ctx); ; show(ctx) {
		select {
		case <-tick.C:
		case <-ctx.Done():
			_ = detached(ctx, func(ctx context.Context) error { show(ctx); return nil })
			return
		}
	}
}

// ownSnapshotter is the snapshotter of the namespace, "" for containerd's default.
func (c *client) ownSnapshotter(ctx context.Context) (string, error) {
	name, err := c.GetLabel(ctx, defaults.DefaultSnapshotterNSLabel)
	if ignoreNotFound(err) != nil {
		return "", fmt.Errorf("namespace %q: %w", c.app.namespace, err)
	}
	return name, nil
}
