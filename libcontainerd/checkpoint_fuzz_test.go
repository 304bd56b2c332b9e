package libcontainerd

import (
	"bytes"
	"context"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// blob is a store with one thing in it.
type blob []byte

func (b blob) ReaderAt(context.Context, ocispec.Descriptor) (content.ReaderAt, error) {
	return blobReader{bytes.NewReader(b)}, nil
}

type blobReader struct{ *bytes.Reader }

func (blobReader) Close() error { return nil }

// FuzzCheckpointIndex: the index of a checkpoint's image, which may come from
// elsewhere, is refused as damaged, or names the state of processes.
func FuzzCheckpointIndex(f *testing.F) {
	f.Add([]byte(`{"manifests":[{"mediaType":"` + images.MediaTypeContainerd1Checkpoint + `","size":3}]}`))
	f.Add([]byte(`{"manifests":[{"mediaType":"other"}]}`))
	f.Add([]byte(`{"manifests":null}`))
	f.Add([]byte(`[`))
	f.Fuzz(func(t *testing.T, index []byte) {
		desc := ocispec.Descriptor{Size: int64(len(index)), Digest: digest.FromBytes(index)}
		got, err := processState(t.Context(), blob(index), desc)
		switch {
		case err != nil && !errdefs.IsDataLoss(err) && !errdefs.IsResourceExhausted(err):
			t.Errorf("class of %v", err)
		case err == nil && got.MediaType != images.MediaTypeContainerd1Checkpoint:
			t.Errorf("%+v", got)
		}
	})
}
