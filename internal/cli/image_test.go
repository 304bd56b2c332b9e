package cli

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// entry is one file of a tar.
type entry struct {
	name, body string
	header     tar.Header
}

func makeTar(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, e := range entries {
		h := e.header
		h.Name = e.name
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
		}
		h.Size, h.Mode = int64(len(e.body)), 0o755
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(e.body)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func gzipped(t testing.TB, data []byte) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := gzip.NewWriter(&buf)
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func rootfsEntries() []entry {
	return []entry{
		{name: "./", header: tar.Header{Typeflag: tar.TypeDir}},
		{name: "./bin/sh", body: "#!"},
		{name: "./bin/ls", header: tar.Header{Typeflag: tar.TypeSymlink, Linkname: "../../../bin/sh"}},
		{name: "/etc/passwd", body: "root:x:0:0::/:/bin/sh\n"},
		{name: "blobs/readme", body: "no blob"},
		{name: "dev/null", header: tar.Header{Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3}},
	}
}

// blob is a blob of an OCI archive.
func blob(body string) entry {
	return entry{name: "blobs/sha256/" + digest.FromString(body).Encoded(), body: body}
}

func descriptor(mediaType, body string) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromString(body), Size: int64(len(body))}
}

func marshal(t *testing.T, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// ociEntries is an OCI archive with one image under each name ("" for none).
func ociEntries(t *testing.T, names ...string) []entry {
	t.Helper()
	layer := string(makeTar(t, rootfsEntries()...))
	config := marshal(t, rootfsConfig(digest.FromString(layer), ocispec.ImageConfig{}))
	manifest := marshal(t, ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		Config: descriptor(ocispec.MediaTypeImageConfig, config), Layers: []ocispec.Descriptor{descriptor(ocispec.MediaTypeImageLayer, layer)},
	})
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex}
	for _, name := range names {
		d := descriptor(ocispec.MediaTypeImageManifest, manifest)
		if name != "" {
			d.Annotations = map[string]string{ocispec.AnnotationRefName: name}
		}
		index.Manifests = append(index.Manifests, d)
	}
	return []entry{
		{name: "oci-layout", body: `{"imageLayoutVersion":"1.0.0"}`},
		{name: "index.json", body: marshal(t, index)},
		blob(layer), blob(config), blob(manifest),
	}
}

func dockerEntries(t *testing.T, tag string) []entry {
	t.Helper()
	layer := string(makeTar(t, rootfsEntries()...))
	config := marshal(t, rootfsConfig(digest.FromString(layer), ocispec.ImageConfig{}))
	manifest := marshal(t, []map[string]any{{"Config": "config.json", "RepoTags": []string{tag}, "Layers": []string{"l/layer.tar"}}})
	return []entry{{name: "l/layer.tar", body: layer}, {name: "config.json", body: config}, {name: "manifest.json", body: manifest}}
}

func TestSurveyKinds(t *testing.T) {
	for want, entries := range map[archiveKind][]entry{
		rootfsTar:     rootfsEntries(),
		ociArchive:    ociEntries(t, "demo:latest"),
		dockerArchive: dockerEntries(t, "demo:latest"),
	} {
		plain := makeTar(t, entries...)
		for _, data := range [][]byte{plain, gzipped(t, plain)} {
			s, err := survey(t.Context(), bytes.NewReader(data), defaultBounds)
			if err != nil {
				t.Fatalf("%s: %v", want, err)
			}
			expect := surveyed{kind: want, file: digest.FromBytes(data), size: int64(len(data)), content: digest.FromBytes(plain), gzip: len(data) != len(plain)}
			if s != expect {
				t.Errorf("%s: %+v, want %+v", want, s, expect)
			}
		}
	}
}

// holes is a tar of one blob of an OCI archive that is all hole.
func holes(size int64) []byte {
	block := func(name string, typeflag byte, body string) []byte {
		h := make([]byte, 512, 1024)
		copy(h, name)
		copy(h[124:], fmt.Sprintf("%011o", len(body)))
		copy(h[148:], "        ")
		h[156] = typeflag
		copy(h[257:], "ustar\x0000")
		sum := 0
		for _, b := range h {
			sum += int(b)
		}
		copy(h[148:], fmt.Sprintf("%06o\x00", sum))
		return append(append(h, body...), make([]byte, 512-len(body))...)
	}
	var records string
	for _, record := range []string{"GNU.sparse.major=1", "GNU.sparse.minor=0", "GNU.sparse.name=blobs/sha256/" + strings.Repeat("0", 64), fmt.Sprintf("GNU.sparse.realsize=%d", size)} {
		n := len(record) + 4 // two digits, a space, a newline
		if n > 99 {
			n++
		}
		records += fmt.Sprintf("%d %s\n", n, record)
	}
	data := append(block("pax", tar.TypeXHeader, records), block("blob", tar.TypeReg, "0\n"+strings.Repeat("\x00", 510))...)
	return append(data, make([]byte, 1024)...)
}

func TestSurveyRefuses(t *testing.T) {
	plain := makeTar(t, rootfsEntries()...)
	wrong := blob("right")
	wrong.body = "wrong"
	zeros := gzipped(t, makeTar(t, entry{name: "zeros", body: strings.Repeat("\x00", 4<<20)}))
	limit := bounds{entries: 10, total: 1 << 20}
	many := make([]entry, 11)
	for i := range many {
		many[i].name = strings.Repeat("a", i+1)
	}
	for name, c := range map[string]struct {
		data []byte
		want error
	}{
		"empty":            {nil, errdefs.ErrInvalidArgument},
		"no tar":           {[]byte(strings.Repeat("no tar at all ", 100)), errdefs.ErrInvalidArgument},
		"no files":         {makeTar(t), errdefs.ErrInvalidArgument},
		"cut off":          {plain[:700], errdefs.ErrInvalidArgument},
		"broken gzip":      {[]byte{0x1f, 0x8b, 8, 0, 0, 0}, errdefs.ErrInvalidArgument},
		"climbs out":       {makeTar(t, entry{name: "a/../../etc/passwd"}), errdefs.ErrInvalidArgument},
		"long name":        {makeTar(t, entry{name: strings.Repeat("a/", 3000) + "b"}), errdefs.ErrInvalidArgument},
		"long link":        {makeTar(t, entry{name: "a", header: tar.Header{Typeflag: tar.TypeSymlink, Linkname: strings.Repeat("a/", 3000)}}), errdefs.ErrInvalidArgument},
		"wrong digest":     {makeTar(t, entry{name: "oci-layout", body: "{}"}, wrong), errdefs.ErrFailedPrecondition},
		"holes":            {holes(1 << 40), errdefs.ErrResourceExhausted},
		"few holes":        {holes(1 << 10), errdefs.ErrFailedPrecondition}, // read, and of another digest
		"bomb":             {zeros, errdefs.ErrResourceExhausted},
		"too many entries": {makeTar(t, many...), errdefs.ErrResourceExhausted},
	} {
		if _, err := survey(t.Context(), bytes.NewReader(c.data), limit); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
	large := makeTar(t, entry{name: "index.json", body: strings.Repeat(" ", maxManifest+1)})
	if _, err := survey(t.Context(), bytes.NewReader(large), defaultBounds); !errdefs.IsResourceExhausted(err) {
		t.Errorf("large document: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := survey(ctx, bytes.NewReader(plain), defaultBounds); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// labelled keeps labels, which the store needs for its garbage collection.
type labelled struct {
	labels map[digest.Digest]map[string]string
}

func (l labelled) Get(d digest.Digest) (map[string]string, error) { return l.labels[d], nil }
func (l labelled) Set(d digest.Digest, labels map[string]string) error {
	l.labels[d] = labels
	return nil
}
func (l labelled) Update(d digest.Digest, change map[string]string) (map[string]string, error) {
	if l.labels[d] == nil {
		l.labels[d] = map[string]string{}
	}
	for k, v := range change {
		l.labels[d][k] = v
	}
	return l.labels[d], nil
}

func contentStore(t *testing.T) (context.Context, content.Store, labelled) {
	t.Helper()
	labels := labelled{map[digest.Digest]map[string]string{}}
	store, err := local.NewLabeledStore(t.TempDir(), labels)
	if err != nil {
		t.Fatal(err)
	}
	return namespaces.WithNamespace(t.Context(), "test"), store, labels
}

func TestImportRootfs(t *testing.T) {
	ctx, store, labels := contentStore(t)
	plain := makeTar(t, rootfsEntries()...)
	data := gzipped(t, plain)
	found, err := survey(ctx, bytes.NewReader(data), defaultBounds)
	if err != nil {
		t.Fatal(err)
	}
	plan := importPlan{name: "docker.io/library/demo:latest", config: ocispec.ImageConfig{Cmd: []string{"sh"}, WorkingDir: "/srv", User: "1000"}}
	imported, err := importRootfs(ctx, store, bytes.NewReader(data), found, plan)
	if err != nil {
		t.Fatal(err)
	}
	if len(imported) != 1 || imported[0].Name != plan.name {
		t.Fatalf("images: %+v", imported)
	}
	manifest, err := images.Manifest(ctx, store, imported[0].Target, platforms.Default())
	if err != nil {
		t.Fatal(err)
	}
	layer := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayerGzip, Digest: digest.FromBytes(data), Size: int64(len(data))}
	if diff := cmp.Diff([]ocispec.Descriptor{layer}, manifest.Layers); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(map[string]string{
		"containerd.io/gc.ref.content.config": manifest.Config.Digest.String(),
		"containerd.io/gc.ref.content.l.0":    layer.Digest.String(),
	}, labels.labels[imported[0].Target.Digest]); diff != "" {
		t.Error(diff)
	}
	text, err := content.ReadBlob(ctx, store, manifest.Config)
	if err != nil {
		t.Fatal(err)
	}
	var config ocispec.Image
	if err := json.Unmarshal(text, &config); err != nil {
		t.Fatal(err)
	}
	plan.config.Env = config.Config.Env
	if diff := cmp.Diff(rootfsConfig(digest.FromBytes(plain), plan.config), config); diff != "" || len(config.Config.Env) != 1 {
		t.Error(diff)
	}
	// The same file again is the same image; another one is not what was surveyed.
	if again, err := importRootfs(ctx, store, bytes.NewReader(data), found, importPlan{name: plan.name, config: ocispec.ImageConfig{Cmd: []string{"sh"}, WorkingDir: "/srv", User: "1000"}}); err != nil || again[0].Target.Digest != imported[0].Target.Digest {
		t.Errorf("again: %+v, %v", again, err)
	}
	found.file = digest.FromString("other")
	if _, err := importRootfs(ctx, store, bytes.NewReader(data), found, plan); err == nil {
		t.Error("a file that changed was imported")
	}
}

func TestImportArchive(t *testing.T) {
	for name, c := range map[string]struct {
		entries []entry
		as      string
		want    []string
		err     error
	}{
		"oci":           {ociEntries(t, "demo:1", "registry.example/demo:2"), "", []string{"docker.io/library/demo:1", "registry.example/demo:2"}, nil},
		"oci, renamed":  {ociEntries(t, "demo:1", "demo:2"), "docker.io/library/mine:latest", []string{"docker.io/library/mine:latest"}, nil},
		"oci, named":    {ociEntries(t, ""), "docker.io/library/mine:latest", []string{"docker.io/library/mine:latest"}, nil},
		"oci, nameless": {ociEntries(t, ""), "", nil, errdefs.ErrInvalidArgument},
		"oci, bad name": {ociEntries(t, "UPPER/../x"), "", nil, errdefs.ErrInvalidArgument},
		"docker":        {dockerEntries(t, "demo:latest"), "", []string{"docker.io/library/demo:latest"}, nil},
		"layer missing": {ociEntries(t, "demo:1")[:2], "", nil, errdefs.ErrNotFound},
	} {
		ctx, store, labels := contentStore(t)
		imported, err := importArchive(ctx, store, bytes.NewReader(gzipped(t, makeTar(t, c.entries...))), importPlan{name: c.as})
		if c.err != nil {
			if !errors.Is(err, c.err) {
				t.Errorf("%s: %v, want %v", name, err, c.err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		var names []string
		for _, image := range imported {
			names = append(names, image.Name)
			if len(labels.labels[image.Target.Digest]) != 2 {
				t.Errorf("%s: %s: labels %v", name, image.Name, labels.labels[image.Target.Digest])
			}
		}
		if diff := cmp.Diff(c.want, names); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

func TestImportRefusesALargeManifest(t *testing.T) {
	ctx, store, _ := contentStore(t)
	manifest := `{"schemaVersion":2,"junk":"` + strings.Repeat("x", maxManifest) + `"}`
	index := ocispec.Index{Manifests: []ocispec.Descriptor{descriptor(ocispec.MediaTypeImageManifest, manifest)}}
	data := makeTar(t, entry{name: "oci-layout", body: `{"imageLayoutVersion":"1.0.0"}`}, entry{name: "index.json", body: marshal(t, index)}, blob(manifest))
	if _, err := importArchive(ctx, store, bytes.NewReader(data), importPlan{}); !errdefs.IsResourceExhausted(err) {
		t.Errorf("error %v", err)
	}
}

func TestOpenArchive(t *testing.T) {
	a := &app{sys: System{TempDir: t.TempDir()}}
	dir := t.TempDir()
	wantInvalid(t, "directory", func() error { _, err := a.openArchive(t.Context(), dir); return err }())
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := w.WriteString("streamed"); err != nil {
		t.Fatal(err)
	}
	w.Close()
	a.sys.Stdin = r
	f, err := a.openArchive(t.Context(), "-")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	got := make([]byte, 100)
	if n, _ := f.ReadAt(got, 0); string(got[:n]) != "streamed" {
		t.Errorf("read %q", got[:n])
	}
	if left, err := filepath.Glob(filepath.Join(a.sys.TempDir, "*")); err != nil || len(left) > 0 {
		t.Errorf("left in the temporary directory: %v, %v", left, err)
	}
}
