package libcontainerd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	apitypes "github.com/containerd/containerd/api/types"
	runcoptions "github.com/containerd/containerd/api/types/runc/options"
	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/pkg/archive"
	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// maxIndex bounds the index of a checkpoint, which lists a few blobs.
const maxIndex = 1 << 20

func (t *task) CreateCheckpoint(ctx context.Context, dir string, exit bool) (err error) {
	ctx, end, err := t.client.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	if _, err := t.check(ctx); err != nil {
		return fmt.Errorf("%s: checkpoint: %w", t.handle, err)
	}
	ct, err := t.container.ctr.Task(ctx, nil)
	if err != nil {
		return failed(err, "%s: checkpoint", t.handle)
	}
	img, err := ct.Checkpoint(ctx, func(r *containerd.CheckpointTaskInfo) error {
		r.Options = &runcoptions.CheckpointOptions{Exit: exit}
		return nil
	})
	if err != nil {
		return failed(err, "%s: checkpoint", t.handle)
	}
	// The engine keeps the checkpoint in its directory.
	defer func() {
		ctx, cancel := undoing(ctx)
		defer cancel()
		err = errors.Join(err, failed(t.client.server.ImageService().Delete(ctx, img.Name()), "%s: checkpoint's image", t.handle))
	}()
	store := t.client.server.ContentStore()
	state, err := processState(ctx, store, img.Target())
	if err != nil {
		return failed(err, "%s: checkpoint", t.handle)
	}
	blob, err := store.ReaderAt(ctx, state)
	if err != nil {
		return failed(err, "%s: checkpoint", t.handle)
	}
	defer blob.Close()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return local(err, "%s: checkpoint", t.handle)
	}
	if _, err = archive.Apply(ctx, dir, content.NewReader(blob)); err != nil {
		return local(failed(err, "to %s", dir), "%s: checkpoint", t.handle)
	}
	return nil
}

// processState finds the archive with the processes' state in a checkpoint's image.
func processState(ctx context.Context, store content.Provider, index ocispec.Descriptor) (ocispec.Descriptor, error) {
	if index.Size > maxIndex {
		return index, fmt.Errorf("index of %d bytes, limit %d: %w", index.Size, maxIndex, errdefs.ErrResourceExhausted)
	}
	data, err := content.ReadBlob(ctx, store, index)
	if err != nil {
		return index, err
	}
	var ix ocispec.Index
	if err := json.Unmarshal(data, &ix); err != nil {
		return index, fmt.Errorf("index: %w: %w", errdefs.ErrDataLoss, err)
	}
	i := slices.IndexFunc(ix.Manifests, func(d ocispec.Descriptor) bool { return d.MediaType == images.MediaTypeContainerd1Checkpoint })
	if i < 0 {
		return index, fmt.Errorf("index names no process state: %w", errdefs.ErrDataLoss)
	}
	return ix.Manifests[i], nil
}

// upload puts the directory of a checkpoint where the server finds it when it
// creates the task. A lease keeps it there until remove is called.
func (c *client) upload(ctx context.Context, dir string) (_ containerd.NewTaskOpts, remove func() error, err error) {
	if info, err := os.Stat(dir); err != nil || !info.IsDir() {
		return nil, nil, fmt.Errorf("checkpoint %q is no directory: %w", dir, errdefs.ErrInvalidArgument)
	}
	ctx, release, err := c.server.WithLease(ctx)
	if err != nil {
		return nil, nil, failed(err, "checkpoint %q", dir)
	}
	remove = func() error {
		ctx, cancel := undoing(ctx)
		defer cancel()
		return failed(release(ctx), "checkpoint %q: lease", dir)
	}
	desc, err := c.writeTar(ctx, dir)
	if err != nil {
		return nil, nil, errors.Join(failed(err, "checkpoint %q", dir), remove())
	}
	return func(_ context.Context, _ *containerd.Client, t *containerd.TaskInfo) error {
		t.Checkpoint = desc
		return nil
	}, remove, nil
}

func (c *client) writeTar(ctx context.Context, dir string) (_ *apitypes.Descriptor, err error) {
	tar := archive.Diff(ctx, "", dir)
	defer func() { err = errors.Join(err, tar.Close()) }()
	w, err := content.OpenWriter(ctx, c.server.ContentStore(), content.WithRef("checkpoint-"+dir))
	if err != nil {
		return nil, err
	}
	defer w.Close()
	size, err := io.Copy(w, tar)
	if err != nil {
		return nil, err
	}
	if err := w.Commit(ctx, size, ""); err != nil && !errdefs.IsAlreadyExists(err) {
		return nil, err
	}
	return &apitypes.Descriptor{MediaType: images.MediaTypeContainerd1Checkpoint, Digest: w.Digest().String(), Size: size}, nil
}
