package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// pushTarget is what of an image is here and wanted: all of it, one of its manifests, or
// an index of several, which it writes. A registry takes no index of which a manifest is
// missing, and a pull for one platform brings only that.
func pushTarget(ctx context.Context, store content.Store, name string, target ocispec.Descriptor, f platformFlags) (ocispec.Descriptor, error) {
	nothing := func() (ocispec.Descriptor, error) {
		return ocispec.Descriptor{}, advise(errdefs.ErrNotFound, "nothing of image %q that was asked for is here: pull it, with --platform or --all-platforms, or import it again", name)
	}
	if !images.IsIndexType(target.MediaType) {
		has, err := images.Platforms(ctx, store, target)
		if err == nil && wanted(f, has...) && isWhole(ctx, store, target) {
			return target, nil
		}
		return nothing()
	}
	blob, err := content.ReadBlob(ctx, store, target)
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("image %q: index: %w", name, err)
	}
	var index ocispec.Index
	if err := json.Unmarshal(blob, &index); err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("image %q: index: %w: %w", name, err, errdefs.ErrInvalidArgument)
	}
	all := len(index.Manifests)
	index.Manifests = slices.DeleteFunc(index.Manifests, func(m ocispec.Descriptor) bool {
		return (m.Platform != nil && !wanted(f, *m.Platform)) || !isWhole(ctx, store, m)
	})
	switch here := len(index.Manifests); {
	case here == 0:
		return nothing()
	case here == all:
		return target, nil
	case f.all:
		return ocispec.Descriptor{}, advise(errdefs.ErrNotFound, "image %q has %d platforms, and %d of them are here: pull it with --all-platforms first", name, all, here)
	case here == 1:
		return index.Manifests[0], nil
	}
	return writeIndex(ctx, store, target.MediaType, index)
}

func wanted(f platformFlags, has ...ocispec.Platform) bool {
	return len(f.want) == 0 || slices.ContainsFunc(has, platforms.Any(f.want...).Match)
}

// isWhole tells whether all content below a descriptor is here.
func isWhole(ctx context.Context, store content.Store, desc ocispec.Descriptor) bool {
	return images.Walk(ctx, images.Handlers(images.HandlerFunc(func(ctx context.Context, desc ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		_, err := store.Info(ctx, desc.Digest)
		return nil, err
	}), boundedChildren(store)), desc) == nil
}

// writeIndex stores an index, with the labels that keep what is below it.
func writeIndex(ctx context.Context, store content.Store, mediaType string, index ocispec.Index) (ocispec.Descriptor, error) {
	blob, err := json.Marshal(index)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	desc := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(blob), Size: int64(len(blob))}
	labels := map[string]string{}
	for i, m := range index.Manifests {
		labels[fmt.Sprintf("containerd.io/gc.ref.content.m.%d", i)] = m.Digest.String()
	}
	err = content.WriteBlob(ctx, store, "index-"+desc.Digest.String(), bytes.NewReader(blob), desc, content.WithLabels(labels))
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("write index: %w", err)
	}
	return desc, nil
}
