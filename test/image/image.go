// Package image makes small OCI images for tests and the demo out of Debian's
// busybox-static. An archive holds one image of one layer, as an OCI layout that
// also carries Docker's manifest.json, so that every importer reads it. The same
// options and the same busybox give the same bytes.
package image

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"runtime"
	"time"

	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/opencontainers/go-digest"
)

// DefaultRef names the image when Options.Ref is empty.
const DefaultRef = "docker.io/library/caisson-test:latest"

// annotationImageName is where containerd looks for an image's full name.
const annotationImageName = "io.containerd.image.name"

// Options describe an image. The zero value is an image that starts a shell.
type Options struct {
	// Ref is the full name of the image; DefaultRef if empty.
	Ref string
	// Entrypoint, Cmd, Env, User and WorkingDir go into the image's
	// configuration. Cmd is /bin/sh if Entrypoint and Cmd are empty, Env is a
	// PATH if empty.
	Entrypoint []string
	Cmd        []string
	Env        []string
	User       string
	WorkingDir string
	// StopSignal is the signal that a runtime stops the container with.
	StopSignal string
	// Files are added to the root filesystem: absolute path to content. The
	// mode is 0755 for what begins with #!, else 0644, unless Modes says another.
	Files map[string]string
	Modes map[string]int64
	// Nodes are added in the place of what else is there: links, FIFOs, devices. The
	// header has the type and what belongs to it.
	Nodes map[string]tar.Header
	// Busybox is the static binary to use; found in PATH if empty.
	Busybox string
}

// epoch is the one time stamp in an image, to keep it the same from run to run.
var epoch = time.Unix(0, 0).UTC()

// WriteFile makes the archive path. It leaves no file behind when it fails.
func WriteFile(path string, opts Options) (err error) {
	f, err := os.Create(path)
	if err != nil {
		return fmt.Errorf("image archive: %w", err)
	}
	defer func() {
		if err = errors.Join(err, f.Close()); err != nil {
			_ = os.Remove(path) // the error that matters is already in err
		}
	}()
	return Write(f, opts)
}

// Write writes the archive to w.
func Write(w io.Writer, opts Options) error {
	if opts.Ref == "" {
		opts.Ref = DefaultRef
	}
	layer, err := rootfs(opts)
	if err != nil {
		return fmt.Errorf("image %q: make layer: %w", opts.Ref, err)
	}
	a := archive{tw: tar.NewWriter(w)}
	layerDesc := a.blob(ocispec.MediaTypeImageLayer, layer)
	configDesc := a.jsonBlob(ocispec.MediaTypeImageConfig, config(opts, layerDesc.Digest))
	manifestDesc := a.jsonBlob(ocispec.MediaTypeImageManifest, ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageManifest,
		Config:    configDesc,
		Layers:    []ocispec.Descriptor{layerDesc},
	})
	manifestDesc.Platform = &ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH}
	manifestDesc.Annotations = map[string]string{annotationImageName: opts.Ref, ocispec.AnnotationRefName: opts.Ref}
	a.jsonFile(ocispec.ImageIndexFile, ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageIndex,
		Manifests: []ocispec.Descriptor{manifestDesc},
	})
	a.jsonFile(ocispec.ImageLayoutFile, ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion})
	a.jsonFile("manifest.json", []dockerManifest{{
		Config:   blobPath(configDesc.Digest),
		RepoTags: []string{opts.Ref},
		Layers:   []string{blobPath(layerDesc.Digest)},
	}})
	if err := errors.Join(a.err, a.tw.Close()); err != nil {
		return fmt.Errorf("image %q: write archive: %w", opts.Ref, err)
	}
	return nil
}

// RootFS writes the image's root filesystem to w as a plain tar, which is what
// `caisson image import` takes besides image archives.
func RootFS(w io.Writer, opts Options) error {
	layer, err := rootfs(opts)
	if err != nil {
		return fmt.Errorf("root filesystem: %w", err)
	}
	_, err = w.Write(layer)
	return err
}

// dockerManifest is an entry of the manifest.json of `docker save`.
type dockerManifest struct {
	Config   string
	RepoTags []string
	Layers   []string
}

func config(opts Options, diffID digest.Digest) ocispec.Image {
	created := epoch
	img := ocispec.Image{
		Created:  &created,
		Platform: ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH},
		Config: ocispec.ImageConfig{
			User:       opts.User,
			Env:        opts.Env,
			Entrypoint: opts.Entrypoint,
			Cmd:        opts.Cmd,
			WorkingDir: opts.WorkingDir,
			StopSignal: opts.StopSignal,
		},
		RootFS: ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{diffID}},
	}
	if len(opts.Env) == 0 {
		img.Config.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	}
	if len(opts.Entrypoint) == 0 && len(opts.Cmd) == 0 {
		img.Config.Cmd = []string{"/bin/sh"}
	}
	return img
}

// archive writes the files of an image archive and keeps the first error.
type archive struct {
	tw  *tar.Writer
	err error
}

func (a *archive) file(name string, content []byte) {
	if a.err != nil {
		return
	}
	hdr := &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(content)), ModTime: epoch}
	if a.err = a.tw.WriteHeader(hdr); a.err == nil {
		_, a.err = io.Copy(a.tw, bytes.NewReader(content))
	}
}

func (a *archive) jsonFile(name string, v any) {
	content, err := json.Marshal(v)
	a.err = errors.Join(a.err, err)
	a.file(name, content)
}

func (a *archive) blob(mediaType string, content []byte) ocispec.Descriptor {
	sum := digest.NewDigestFromBytes(digest.SHA256, sha256sum(content))
	a.file(blobPath(sum), content)
	return ocispec.Descriptor{MediaType: mediaType, Digest: sum, Size: int64(len(content))}
}

func (a *archive) jsonBlob(mediaType string, v any) ocispec.Descriptor {
	content, err := json.Marshal(v)
	a.err = errors.Join(a.err, err)
	return a.blob(mediaType, content)
}

func blobPath(d digest.Digest) string {
	return path.Join(ocispec.ImageBlobsDir, d.Algorithm().String(), d.Encoded())
}

func sha256sum(b []byte) []byte {
	sum := sha256.Sum256(b)
	return sum[:]
}
