package main

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path"
	"strconv"
	"strings"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"caisson/test/image"
)

// registry serves images, from memory, to a daemon that has it as the mirror of
// every host. It is filled first and served then.
type registry struct {
	manifests map[string]digest.Digest // "path:tag"
	blobs     map[digest.Digest]blob   // manifests too
}

type blob struct {
	mediaType string
	content   []byte
}

func newRegistry() *registry {
	return &registry{manifests: map[string]digest.Digest{}, blobs: map[digest.Digest]blob{}}
}

// add makes the image and serves it under its name, whatever its host.
func (r *registry) add(opts image.Options) (digest.Digest, error) {
	named, err := reference.ParseNormalizedNamed(opts.Ref)
	if err != nil {
		return "", fmt.Errorf("image %q: %w", opts.Ref, err)
	}
	var archive bytes.Buffer
	if err := image.Write(&archive, opts); err != nil {
		return "", err
	}
	var index ocispec.Index
	for tr := tar.NewReader(&archive); ; {
		hdr, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return "", fmt.Errorf("image %q: %w", opts.Ref, err)
		}
		content, err := io.ReadAll(tr)
		if err == nil && hdr.Name == ocispec.ImageIndexFile {
			err = json.Unmarshal(content, &index)
		}
		if err != nil {
			return "", fmt.Errorf("image %q: %s: %w", opts.Ref, hdr.Name, err)
		}
		if dir, sum := path.Split(hdr.Name); strings.HasPrefix(dir, ocispec.ImageBlobsDir) {
			r.blobs[digest.NewDigestFromEncoded(digest.SHA256, sum)] = blob{"application/octet-stream", content}
		}
	}
	if len(index.Manifests) != 1 {
		return "", errors.New("the image builder made more than one image")
	}
	desc := index.Manifests[0]
	r.blobs[desc.Digest] = blob{desc.MediaType, r.blobs[desc.Digest].content}
	tagged := reference.TagNameOnly(named).(reference.Tagged)
	r.manifests[reference.Path(named)+":"+tagged.Tag()] = desc.Digest
	return desc.Digest, nil
}

// ServeHTTP is the part of the distribution API that a pull uses.
func (r *registry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	w.Header().Set("Docker-Distribution-Api-Version", "registry/2.0")
	rest, ok := strings.CutPrefix(req.URL.Path, "/v2/")
	if !ok || (req.Method != http.MethodGet && req.Method != http.MethodHead) {
		http.Error(w, "this registry only serves pulls", http.StatusNotFound)
		return
	}
	if rest == "" {
		return
	}
	dir, last := path.Split(rest)
	sum := digest.Digest(last)
	if repository, ok := strings.CutSuffix(dir, "/manifests/"); ok && sum.Validate() != nil {
		sum = r.manifests[repository+":"+last]
	}
	b, ok := r.blobs[sum]
	if !ok {
		http.NotFound(w, req)
		return
	}
	w.Header().Set("Content-Type", b.mediaType)
	w.Header().Set("Docker-Content-Digest", sum.String())
	w.Header().Set("Content-Length", strconv.Itoa(len(b.content)))
	if req.Method == http.MethodGet {
		_, _ = w.Write(b.content) // the client went away
	}
}
