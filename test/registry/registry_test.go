package registry

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"caisson/test/image"
)

// TestRegistry pulls an image as containerd does: manifest by tag, the rest by digest.
func TestRegistry(t *testing.T) {
	r := New()
	sum, err := r.Add(image.Options{Ref: "registry.example/a/b:1", Files: map[string]string{"/x": "y"}})
	if errors.Is(err, image.ErrNoBusybox) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(r)
	defer server.Close()
	get := func(path string, status int) []byte {
		t.Helper()
		resp, err := http.Get(server.URL + path)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode != status {
			t.Fatalf("GET %s: %s, %v", path, resp.Status, err)
		}
		return body
	}
	get("/v2/", http.StatusOK)
	byTag := get("/v2/a/b/manifests/1?ns=registry.example", http.StatusOK)
	if !bytes.Equal(byTag, get("/v2/a/b/manifests/"+sum.String(), http.StatusOK)) {
		t.Error("another manifest by digest than by tag")
	}
	var manifest ocispec.Manifest
	if err := json.Unmarshal(byTag, &manifest); err != nil {
		t.Fatal(err)
	}
	for _, desc := range append(manifest.Layers, manifest.Config) {
		if body := get("/v2/a/b/blobs/"+desc.Digest.String(), http.StatusOK); int64(len(body)) != desc.Size {
			t.Errorf("%s has %d bytes, want %d", desc.MediaType, len(body), desc.Size)
		}
	}
	get("/v2/a/b/manifests/2", http.StatusNotFound)
	get("/v2/a/c/manifests/1", http.StatusNotFound)
	get("/v2/a/b/blobs/1", http.StatusNotFound)
}
