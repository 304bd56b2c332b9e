package cli

import (
	"context"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func TestDiskUseRows(t *testing.T) {
	d := diskUse{
		Images:     []imageUse{{Name: "a", Digest: "1", Size: 10}, {Name: "b", Digest: "1", Size: 10, Containers: 1}, {Name: "c", Digest: "2", Size: 30}},
		Snapshots:  []snapshotUse{{Key: "x", Size: 100, Used: true}, {Key: "y", Size: 50}},
		Containers: []containerUse{{ID: "up", Size: 5, Log: "/l", LogSize: 2, alive: true}, {ID: "down", Size: 7, Log: "/m", LogSize: 3, Prunable: true}, {ID: "new", Size: 1}},
		content:    45, used: 10,
	}
	want := []useRow{{"Images", 2, 1, 45, 35}, {"Snapshots", 2, 1, 150, 50}, {"Containers", 3, 1, 13, 7}, {"Logs", 2, 1, 5, 3}}
	if diff := cmp.Diff(want, d.rows()); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"Images", "2", "1", "45B", "35B (77%)"}, want[0].columns()); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"Logs", "0", "0", "0B", "0B"}, useRow{Type: "Logs"}.columns()); diff != "" {
		t.Error(diff)
	}
}

// layerStore has snapshots with their parents; a name in capitals is a container's.
type layerStore struct {
	snapshots.Snapshotter
	parents map[string]string
}

func (s layerStore) Walk(ctx context.Context, fn snapshots.WalkFunc, _ ...string) error {
	for name, parent := range s.parents {
		kind := snapshots.KindCommitted
		if name == strings.ToUpper(name) {
			kind = snapshots.KindActive
		}
		if err := fn(ctx, snapshots.Info{Name: name, Parent: parent, Kind: kind}); err != nil {
			return err
		}
	}
	return nil
}

func (layerStore) Usage(_ context.Context, key string) (snapshots.Usage, error) {
	return snapshots.Usage{Size: int64(len(key))}, nil
}

func TestLayerUses(t *testing.T) {
	got, err := layerUses(t.Context(), layerStore{parents: map[string]string{"a": "", "bb": "a", "ccc": "a", "dddd": "ccc", "CTR": "bb"}}, "s")
	want := []snapshotUse{{"a", "s", 1, true}, {"bb", "s", 2, true}, {"ccc", "s", 3, false}, {"dddd", "s", 4, false}}
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Error(diff, err)
	}
}

// TestContentOf: only what is here counts, once, and what cannot be read ends nothing.
func TestContentOf(t *testing.T) {
	ctx, store, _ := contentStore(t)
	blobs := map[digest.Digest]int64{}
	layer := descriptor(ocispec.MediaTypeImageLayer, "layer")
	broken := descriptor(ocispec.MediaTypeImageManifest, "is said to be here")
	blobs[layer.Digest], blobs[broken.Digest] = layer.Size, broken.Size
	absent := descriptor(ocispec.MediaTypeImageLayer, "is not here")
	manifest := marshal(t, ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, Config: absent, Layers: []ocispec.Descriptor{layer, layer, absent}})
	index := marshal(t, ocispec.Index{MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{broken, descriptor(ocispec.MediaTypeImageManifest, manifest)}})
	for _, text := range []string{manifest, index} {
		desc := descriptor("", text)
		if err := content.WriteBlob(ctx, store, text, strings.NewReader(text), desc); err != nil {
			t.Fatal(err)
		}
		blobs[desc.Digest] = desc.Size
	}
	top := descriptor(ocispec.MediaTypeImageIndex, index)
	if got := contentOf(ctx, store, top, blobs); len(got) != 4 || got[absent.Digest] {
		t.Errorf("content: %v", got)
	}
}

func TestSystemArguments(t *testing.T) {
	for args, want := range map[string]string{
		"df x":                          "takes no arguments",
		"df --format nope":              "unknown format",
		"df -v --address /no/such.sock": "no caissond",
		"nope":                          "nope",
	} {
		code, _, stderr := runCLI(t, append([]string{"system"}, strings.Fields(args)...)...)
		if code != 1 || !strings.Contains(stderr, want) {
			t.Errorf("system %s: code %d, %q", args, code, stderr)
		}
	}
}
