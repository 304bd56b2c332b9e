package cli

import (
	"bytes"
	"io"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// FuzzSurvey: a file that is said to be an archive is read to its end, within bounds,
// or refused for what is wrong with it.
func FuzzSurvey(f *testing.F) {
	plain := makeTar(f, rootfsEntries()...)
	f.Add(plain)
	f.Add(makeTar(f, entry{name: "oci-layout", body: "{}"}, blob("x")))
	f.Add(makeTar(f, entry{name: "oci-layout", body: "{}"}, blob("x"))[:1536+10]) // in the blob
	f.Add([]byte{0x1f, 0x8b, 8, 0})
	f.Add(holes(1 << 40))
	f.Add([]byte{0x28, 0xb5, 0x2f, 0xfd, 0x00, 0xf0, 0, 0, 0})
	zipped := gzipped(f, plain)
	f.Add(zipped)
	zipped = bytes.Clone(zipped)
	zipped[len(zipped)-5]++ // the checksum, which is read after the tar's end
	f.Add(zipped)
	f.Fuzz(func(t *testing.T, data []byte) {
		limit := bounds{entries: 100, total: 1 << 20}
		s, err := survey(t.Context(), bytes.NewReader(data), limit)
		if err != nil {
			if !errdefs.IsInvalidArgument(err) && !errdefs.IsResourceExhausted(err) && !errdefs.IsFailedPrecondition(err) {
				t.Errorf("class of %v", err)
			}
			return
		}
		if s.size != int64(len(data)) || s.file != digest.FromBytes(data) {
			t.Errorf("read %d of %d bytes", s.size, len(data))
		}
	})
}

// FuzzImport: the documents of an archive are refused, or name images that are there.
// In them, MANIFEST, CONFIG and LAYER stand for digests, which nobody guesses.
func FuzzImport(f *testing.F) {
	index := `{"schemaVersion":2,"manifests":[{"mediaType":"` + ocispec.MediaTypeImageManifest + `","digest":"MANIFEST","size":1,"annotations":{"` + ocispec.AnnotationRefName + `":"a:1"}}`
	manifest := `{"schemaVersion":2,"config":{"mediaType":"` + ocispec.MediaTypeImageConfig + `","digest":"CONFIG"},"layers":[{"mediaType":"` + ocispec.MediaTypeImageLayer + `","digest":"LAYER"}]}`
	config := `{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":["LAYER"]}}`
	elsewhere := `,{"mediaType":"` + ocispec.MediaTypeImageManifest + `","digest":"sha256:` + strings.Repeat("0", 64) + `","platform":{"architecture":"s390x","os":"plan9"},"annotations":{"` + images.AnnotationImageName + `":"b"}}`
	f.Add(false, index+`]}`, manifest, config)
	f.Add(false, index+elsewhere+`]}`, manifest, config)
	f.Add(false, index+`]}`, `{"config":{"mediaType":"`+ocispec.MediaTypeImageConfig+`","digest":"no digest"},"layers":[]}`, config)
	f.Add(false, `{"manifests":[{"mediaType":"`+ocispec.MediaTypeImageIndex+`","digest":"MANIFEST"}]}`, index+`]}`, config)
	f.Add(false, `[]`, `{}`, `null`)
	f.Add(true, `[{"Config":"config.json","RepoTags":["a:1","../b"],"Layers":["layer.tar"]}]`, manifest, config)
	f.Add(true, `[{"Config":"config.json","Layers":["layer.tar","layer.tar"]}]`, manifest, config)
	f.Add(true, `[{"Config":"../config.json"},null]`, manifest, config)
	layer := string(makeTar(f, rootfsEntries()...))
	if err := log.SetLevel("error"); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, docker bool, index, manifest, config string) {
		place := func(text, mark, body string) string {
			return strings.ReplaceAll(text, mark, digest.FromString(body).String())
		}
		config = place(config, "LAYER", layer)
		manifest = place(place(manifest, "LAYER", layer), "CONFIG", config)
		entries := []entry{{name: "oci-layout", body: `{"imageLayoutVersion":"1.0.0"}`}, {name: "index.json", body: place(index, "MANIFEST", manifest)}, blob(layer), blob(config), blob(manifest)}
		if docker {
			entries = []entry{{name: "manifest.json", body: index}, {name: "config.json", body: config}, {name: "layer.tar", body: layer}}
		}
		archive := bytes.NewReader(makeTar(t, entries...))
		if _, err := survey(t.Context(), archive, defaultBounds); err != nil {
			t.Fatal(err)
		}
		if _, err := archive.Seek(0, io.SeekStart); err != nil {
			t.Fatal(err)
		}
		t.Setenv("TMPDIR", "/dev/shm") // the store waits for the disk
		ctx, store, _ := contentStore(t)
		imported, err := importArchive(ctx, store, archive, importPlan{})
		if err == nil && len(imported) == 0 {
			t.Error("nothing was imported")
		}
		for _, image := range imported {
			if name, err := imageName(image.Name); err != nil || name != image.Name {
				t.Errorf("imported as %q: %v", image.Name, err)
			}
			if _, err := store.Info(ctx, image.Target.Digest); err != nil {
				t.Errorf("%s: %v", image.Name, err)
			}
		}
	})
}
