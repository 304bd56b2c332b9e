package integration

import (
	"bytes"
	"encoding/json"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/registry/remote"

	"caisson/test/daemon"
	"caisson/test/harness"
)

// pushIndex makes, in a registry, an image for several platforms of the layers that it
// has for one.
func pushIndex(t *testing.T, h *harness.Host, host, repository, tag string, architectures ...string) digest.Digest {
	t.Helper()
	ctx := h.Context(time.Minute)
	repo, err := remote.NewRepository(host + "/" + repository)
	if err != nil {
		t.Fatal(err)
	}
	repo.PlainHTTP = true
	_, text, err := repo.FetchReference(ctx, tag)
	if err != nil {
		t.Fatal(err)
	}
	defer text.Close()
	var manifest ocispec.Manifest
	if err := json.NewDecoder(text).Decode(&manifest); err != nil {
		t.Fatal(err)
	}
	blob, err := repo.Fetch(ctx, manifest.Config)
	if err != nil {
		t.Fatal(err)
	}
	defer blob.Close()
	var config ocispec.Image
	if err := json.NewDecoder(blob).Decode(&config); err != nil {
		t.Fatal(err)
	}
	push := func(mediaType string, v any, as string) ocispec.Descriptor {
		t.Helper()
		text, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		desc := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(text), Size: int64(len(text))}
		if as != "" {
			err = repo.PushReference(ctx, desc, bytes.NewReader(text), as)
		} else {
			err = repo.Push(ctx, desc, bytes.NewReader(text))
		}
		if err != nil {
			t.Fatal(err)
		}
		return desc
	}
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex}
	for _, arch := range architectures {
		config.Architecture = arch
		manifest.Config = push(ocispec.MediaTypeImageConfig, config, "")
		desc := push(ocispec.MediaTypeImageManifest, manifest, "")
		desc.Platform = &ocispec.Platform{OS: "linux", Architecture: arch}
		index.Manifests = append(index.Manifests, desc)
	}
	return push(ocispec.MediaTypeImageIndex, index, tag).Digest
}

// TestRegistryPlatforms pulls some of an image's platforms, and pushes what it has.
func TestRegistryPlatforms(t *testing.T) {
	h := harness.New(t, daemon.Options{EngineConfig: tomlOfImages(t)[1]})
	h.StartDaemon()
	r := startRegistry(t, h, func(string) (string, error) { return "  none: {}\n", nil })
	name, copied := r.Host+"/many:1", r.Host+"/copied:1"
	importAs(t, h, name, nil)
	h.Caisson("image", "push", "-q", name)
	h.Caisson("image", "rm", name)
	index := pushIndex(t, h, r.Host, "many", "1", "s390x", "riscv64", runtime.GOARCH)
	// pushed is the digest that the copy gets, and how many platforms.
	pushed := func(args ...string) (digest.Digest, int) {
		t.Helper()
		h.Caisson("image", "tag", name, copied)
		out := h.Caisson(append([]string{"image", "push", "-q", copied}, args...)...)
		h.Caisson("image", "rm", copied)
		h.Caisson("image", "pull", "-q", "--all-platforms", copied)
		platforms := h.Caisson("image", "inspect", "-f", "{{len .platforms}}", copied)
		_, sum, _ := strings.Cut(strings.TrimSpace(out), "@")
		return digest.Digest(sum), int(platforms[0] - '0')
	}
	h.Caisson("image", "pull", "-q", name)
	if out := h.Caisson("run", "--rm", name); out != "from the registry\n" {
		t.Errorf("run: %q", out)
	}
	if sum, n := pushed(); sum == index || n != 1 {
		t.Errorf("pushed with one platform: %s, %d platforms", sum, n)
	}
	wantFailure(t, h.TryCaisson("image", "push", "--platform", "linux/riscv64", name), "is here")
	wantFailure(t, h.TryCaisson("image", "push", "--all-platforms", name), "3 platforms, and 1")
	wantFailure(t, h.TryCaisson("image", "pull", "--platform", "linux/mips64le", name), "only for other platforms")
	h.Caisson("image", "pull", "-q", "--platform", "linux/riscv64", name)
	if sum, n := pushed(); sum == index || n != 2 {
		t.Errorf("pushed with two platforms: %s, %d platforms", sum, n)
	}
	if sum, n := pushed("--platform", "linux/riscv64"); sum == index || n != 1 {
		t.Errorf("pushed one of two platforms: %s, %d platforms", sum, n)
	}
	h.Caisson("image", "pull", "-q", "--all-platforms", name)
	if sum, n := pushed(); sum != index || n != 3 {
		t.Errorf("pushed with all platforms: %s, %d platforms", sum, n)
	}
	if out := h.Caisson("image", "ls", "-q"); out != copied+"\n"+name+"\n" {
		t.Errorf("images: %q", out)
	}
}
