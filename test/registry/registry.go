// Package registry serves images, from memory and on loopback, to servers that
// have it as the mirror of every registry.
package registry

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"caisson/test/image"
)

// Registry is filled first and served then.
type Registry struct {
	manifests map[string]digest.Digest // "path:tag"
	blobs     map[digest.Digest]blob   // manifests too
}

type blob struct {
	mediaType string
	content   []byte
}

// New is a registry without images.
func New() *Registry {
	return &Registry{manifests: map[string]digest.Digest{}, blobs: map[digest.Digest]blob{}}
}

// Add makes the image and serves it under its name, whatever its host.
func (r *Registry) Add(opts image.Options) (digest.Digest, error) {
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

// Serve serves on loopback until close is called. In dir it makes the hosts.toml
// that containerd's config_path wants: the registry is the mirror of every host
// and that host itself.
func (r *Registry) Serve(dir string) (close func() error, err error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("registry: %w", err)
	}
	text := fmt.Sprintf("server = \"http://%[1]s\"\n[host.\"http://%[1]s\"]\ncapabilities = [\"pull\", \"resolve\"]\n", listener.Addr())
	hosts := filepath.Join(dir, "_default")
	if err = os.Mkdir(hosts, 0o755); err == nil {
		err = os.WriteFile(filepath.Join(hosts, "hosts.toml"), []byte(text), 0o644)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("registry: %w", err), listener.Close())
	}
	server := &http.Server{Handler: r, ReadHeaderTimeout: time.Minute}
	go func() { _ = server.Serve(listener) }() // ends with Close
	return server.Close, nil
}

// ServeHTTP is the part of the distribution API that a pull uses.
func (r *Registry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
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
