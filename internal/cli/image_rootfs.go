package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// importRootfs makes an image of one layer. The file is stored as it is, and
// must still be what survey read.
func importRootfs(ctx context.Context, store content.Store, r io.Reader, found surveyed, plan importPlan) ([]images.Image, error) {
	layer := ocispec.Descriptor{MediaType: found.layerType(), Digest: found.file, Size: found.size}
	if err := writeBlob(ctx, store, layer, r); err != nil {
		return nil, fmt.Errorf("layer: %w", err)
	}
	config, err := writeDocument(ctx, store, ocispec.MediaTypeImageConfig, rootfsConfig(found.content, plan.config))
	if err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	manifest, err := writeDocument(ctx, store, ocispec.MediaTypeImageManifest, ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageManifest,
		Config:    config,
		Layers:    []ocispec.Descriptor{layer},
	})
	if err != nil {
		return nil, fmt.Errorf("manifest: %w", err)
	}
	// The labels tie config and layer to the manifest for the garbage collector.
	children := images.SetChildrenLabels(store, images.ChildrenHandler(store))
	if err := images.Walk(ctx, children, manifest); err != nil {
		return nil, fmt.Errorf("label content: %w", err)
	}
	return []images.Image{{Name: plan.name, Target: manifest}}, nil
}

// rootfsConfig leaves out all times: the same tar makes the same image.
func rootfsConfig(layer digest.Digest, config ocispec.ImageConfig) ocispec.Image {
	if len(config.Env) == 0 {
		config.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	}
	return ocispec.Image{
		Platform: platforms.DefaultSpec(),
		Config:   config,
		RootFS:   ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{layer}},
		History:  []ocispec.History{{CreatedBy: "caisson image import"}},
	}
}

func (s surveyed) layerType() string {
	switch {
	case s.gzip:
		return ocispec.MediaTypeImageLayerGzip
	case s.zstd:
		return ocispec.MediaTypeImageLayerZstd
	}
	return ocispec.MediaTypeImageLayer
}

func writeDocument(ctx context.Context, store content.Store, mediaType string, v any) (ocispec.Descriptor, error) {
	blob, err := json.Marshal(v)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	desc := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(blob), Size: int64(len(blob))}
	return desc, writeBlob(ctx, store, desc, bytes.NewReader(blob))
}

func writeBlob(ctx context.Context, store content.Store, desc ocispec.Descriptor, r io.Reader) error {
	return content.WriteBlob(ctx, store, "caisson-import-"+desc.Digest.String(), r, desc)
}
