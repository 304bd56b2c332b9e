package image

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func write(t *testing.T, opts Options) []byte {
	t.Helper()
	var buf bytes.Buffer
	err := Write(&buf, opts)
	if errors.Is(err, ErrNoBusybox) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func files(t *testing.T, archive []byte) map[string][]byte {
	t.Helper()
	all := map[string][]byte{}
	for tr := tar.NewReader(bytes.NewReader(archive)); ; {
		hdr, err := tr.Next()
		if err == io.EOF {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(tr)
		if err != nil {
			t.Fatal(err)
		}
		all[hdr.Name] = content
	}
}

func TestSameBytes(t *testing.T) {
	opts := Options{Ref: "example.com/x:1", Files: map[string]string{"/a/b": "1", "/a/c": "2"}}
	if !bytes.Equal(write(t, opts), write(t, opts)) {
		t.Error("two archives of the same options differ")
	}
}

// TestLayout follows the links of the archive from the index to the layer.
func TestLayout(t *testing.T) {
	all := files(t, write(t, Options{
		Ref: "example.com/x:1", Entrypoint: []string{"/bin/cat"}, Env: []string{"A=b"},
		Files: map[string]string{"/www/index.html": "hello"},
	}))
	blob := func(d digest.Digest) []byte {
		content, ok := all[blobPath(d)]
		if !ok || digest.FromBytes(content) != d {
			t.Fatalf("blob %s: missing or of another digest", d)
		}
		return content
	}
	decode := func(content []byte, v any) {
		if err := json.Unmarshal(content, v); err != nil {
			t.Fatal(err)
		}
	}
	var index ocispec.Index
	decode(all["index.json"], &index)
	if got := index.Manifests[0].Annotations[annotationImageName]; got != "example.com/x:1" {
		t.Errorf("image name %q", got)
	}
	var manifest ocispec.Manifest
	decode(blob(index.Manifests[0].Digest), &manifest)
	var img ocispec.Image
	decode(blob(manifest.Config.Digest), &img)
	if len(img.Config.Cmd) != 0 || img.Config.Entrypoint[0] != "/bin/cat" || img.Config.Env[0] != "A=b" {
		t.Errorf("configuration: %+v", img.Config)
	}
	if img.RootFS.DiffIDs[0] != manifest.Layers[0].Digest {
		t.Error("the diff id is not the digest of the uncompressed layer")
	}
	root := files(t, blob(manifest.Layers[0].Digest))
	for _, name := range []string{"bin/busybox", "bin/sh", "etc/passwd", "etc/group", "tmp/", "www/index.html"} {
		if _, ok := root[name]; !ok {
			t.Errorf("no %s in the layer", name)
		}
	}
	if got := string(root["www/index.html"]); got != "hello" {
		t.Errorf("index.html is %q", got)
	}
	var docker []dockerManifest
	decode(all["manifest.json"], &docker)
	if _, ok := all[docker[0].Layers[0]]; !ok || docker[0].RepoTags[0] != "example.com/x:1" {
		t.Errorf("manifest.json: %+v", docker)
	}
}

// TestModesAndLinks reads the layer as an unpacker does, which makes a hard link
// only to a file that is there already.
func TestModesAndLinks(t *testing.T) {
	var rootfs bytes.Buffer
	err := RootFS(&rootfs, Options{
		Files: map[string]string{"/bin/script": "#!/bin/sh\n", "/bin/su": "x"},
		Modes: map[string]int64{"/bin/su": 0o4755},
	})
	if errors.Is(err, ErrNoBusybox) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	modes := map[string]int64{}
	for tr := tar.NewReader(&rootfs); ; {
		hdr, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if _, there := modes[hdr.Linkname]; hdr.Typeflag == tar.TypeLink && !there {
			t.Errorf("%s is linked to %s, which comes later", hdr.Name, hdr.Linkname)
		}
		modes[hdr.Name] = hdr.Mode
	}
	for name, want := range map[string]int64{"bin/script": 0o755, "bin/su": 0o4755, "etc/passwd": 0o644, "bin/ls": 0o755} {
		if modes[name] != want {
			t.Errorf("%s has mode %o, want %o", name, modes[name], want)
		}
	}
}

func TestNoBusybox(t *testing.T) {
	if err := Write(io.Discard, Options{Busybox: "/nonexistent"}); err == nil {
		t.Error("no error for a busybox that is not there")
	}
}
