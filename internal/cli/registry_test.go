package cli

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	transfers "github.com/containerd/containerd/v2/core/transfer"
	"github.com/containerd/containerd/v2/core/transfer/registry"
	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"caisson/internal/progress"
)

func TestPlatformFlags(t *testing.T) {
	f := platformFlags{names: []string{"linux/arm64", "linux/amd64"}}
	if err := f.check(); err != nil || len(f.want) != 2 {
		t.Fatalf("%+v, %v", f.want, err)
	}
	wantInvalid(t, "both", func() error { return (&platformFlags{names: []string{"linux/amd64"}, all: true}).check() }())
	wantInvalid(t, "no platform", func() error { return (&platformFlags{names: []string{"a/b/c/d"}}).check() }())
	foreign := platformFlags{names: []string{"plan9/s390x"}}
	if err := foreign.check(); err != nil || foreign.host() {
		t.Errorf("foreign: host %t, %v", foreign.host(), err)
	}
	if (&platformFlags{}).host() != true {
		t.Error("without flags it is this machine's")
	}
}

func TestCredentials(t *testing.T) {
	dir := t.TempDir()
	env := map[string]string{"HOME": dir}
	a := &app{sys: System{Env: func(name string) string { return env[name] }}}
	get := func(host string) (registry.Credentials, error) {
		t.Helper()
		var failed error
		h, err := a.credentials(func(err error) { failed = err })
		if err != nil {
			return registry.Credentials{}, err
		}
		got, err := h.GetCredentials(t.Context(), "", host)
		if err != nil {
			t.Fatalf("an error leaves the daemon waiting: %v", err)
		}
		return got, failed
	}
	if got, err := get("registry.example"); err != nil || got != (registry.Credentials{Host: "registry.example"}) {
		t.Errorf("without a file: %+v, %v", got, err)
	}
	write := func(path, text string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(filepath.Join(dir, ".docker", "config.json"), `{"auths": {
		"https://index.docker.io/v1/": {"auth": "aHViOnB3"},
		"registry.example": {"auth": "bWU6c2VjcmV0"},
		"tokens.example": {"identitytoken": "abc"},
		"broken.example": {"auth": "bm9jb2xvbg=="}},
		"credHelpers": {"helped.example": "is-not-installed"}}`)
	for host, want := range map[string]registry.Credentials{
		"registry.example":     {Username: "me", Secret: "secret"},
		"registry-1.docker.io": {Username: "hub", Secret: "pw"},
		"tokens.example":       {Secret: "abc"},
		"other.example":        {},
	} {
		want.Host = host
		if got, err := get(host); err != nil || got != want {
			t.Errorf("%s: %+v, %v", host, got, err)
		}
	}
	for _, host := range []string{"broken.example", "helped.example"} {
		if _, err := get(host); !errdefs.IsUnauthorized(err) {
			t.Errorf("%s: %v", host, err)
		}
	}
	env["DOCKER_CONFIG"] = filepath.Join(dir, "other")
	if got, err := get("registry.example"); err != nil || got.Username != "" {
		t.Errorf("another directory: %+v, %v", got, err)
	}
	write(filepath.Join(dir, "other", "config.json"), "{")
	if _, err := get("registry.example"); !errdefs.IsInvalidArgument(err) {
		t.Errorf("broken file: %v", err)
	}
	clear(env)
	if got, err := get("registry.example"); err != nil || got.Username != "" {
		t.Errorf("nowhere: %+v, %v", got, err)
	}
	if _, err := a.credentialStore(); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("login without a home: %v", err)
	}
}

func TestLoginArguments(t *testing.T) {
	for args, want := range map[string]string{
		"login a b":              "not 2 arguments",
		"login":                  "add --username and --password-stdin",
		"login --password-stdin": "add --username",
		"login -u me --password-stdin no/registry": "is no registry",
		"logout /": "is no registry",
	} {
		code, _, stderr := runCLI(t, strings.Fields(args)...)
		if code != 1 || !strings.Contains(stderr, want) {
			t.Errorf("%s: code %d, %q", args, code, stderr)
		}
	}
}

func TestPassword(t *testing.T) {
	wantInvalid(t, "no name", func() error { _, err := password("", "x"); return err }())
	wantInvalid(t, "no password", func() error { _, err := password("me", ""); return err }())
	if c, err := password("me", "x"); err != nil || c.Username != "me" || c.Password != "x" {
		t.Errorf("%+v, %v", c, err)
	}
}

func TestShowTransfer(t *testing.T) {
	var out strings.Builder
	d := progress.Start(&out, nil)
	desc := descriptor(ocispec.MediaTypeImageLayerGzip, "layer")
	for _, p := range []transfers.Progress{
		{Event: "Pulling from x"},
		{Event: "waiting", Desc: &desc},
		{Event: "downloading", Desc: &desc, Progress: 2},
		{Event: "complete", Desc: &desc},
		{Event: "something new", Desc: &desc},
		{Event: "extracting", Desc: &desc},
		{Event: "extracted", Desc: &desc},
		{Event: "complete", Desc: &ocispec.Descriptor{MediaType: "\x1b[2J", Digest: "\x1b[2J"}},
	} {
		showTransfer(d, p)
	}
	d.Close()
	name := "layer " + desc.Digest.Encoded()[:12]
	if diff := cmp.Diff(name+": downloading 5B\n"+name+": done 5B\n"+name+": unpacking 5B\n"+name+": unpacked 5B\nblob : done\n", out.String()); diff != "" {
		t.Error(diff)
	}
}

// TestPushTarget: what is missing or not wanted is left out of what is pushed.
func TestPushTarget(t *testing.T) {
	ctx, store, labels := contentStore(t)
	put := func(mediaType, text string) ocispec.Descriptor {
		t.Helper()
		desc := descriptor(mediaType, text)
		if err := content.WriteBlob(ctx, store, text, strings.NewReader(text), desc); err != nil {
			t.Fatal(err)
		}
		return desc
	}
	layer := put(ocispec.MediaTypeImageLayer, "layer")
	manifest := func(arch string, layer ocispec.Descriptor) ocispec.Descriptor {
		p := ocispec.Platform{OS: "linux", Architecture: arch}
		config := put(ocispec.MediaTypeImageConfig, marshal(t, ocispec.Image{Platform: p}))
		desc := put(ocispec.MediaTypeImageManifest, marshal(t, ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, Config: config, Layers: []ocispec.Descriptor{layer}}))
		desc.Platform = &p
		return desc
	}
	index := func(all ...ocispec.Descriptor) ocispec.Descriptor {
		return put(ocispec.MediaTypeImageIndex, marshal(t, ocispec.Index{MediaType: ocispec.MediaTypeImageIndex, Manifests: all}))
	}
	amd, arm := manifest("amd64", layer), manifest("arm64", layer)
	partial := manifest("s390x", descriptor(ocispec.MediaTypeImageLayer, "is not here"))
	absent := descriptor(ocispec.MediaTypeImageManifest, "is not here")
	two := index(amd, arm)
	for name, c := range map[string]struct {
		target ocispec.Descriptor
		flags  platformFlags
		want   digest.Digest
		err    error
	}{
		"a manifest":               {amd, platformFlags{}, amd.Digest, nil},
		"for its platform":         {amd, platformFlags{names: []string{"linux/amd64"}}, amd.Digest, nil},
		"for another":              {amd, platformFlags{names: []string{"linux/arm64"}}, "", errdefs.ErrNotFound},
		"a layer missing":          {partial, platformFlags{}, "", errdefs.ErrNotFound},
		"all of an index":          {two, platformFlags{}, two.Digest, nil},
		"one of two":               {two, platformFlags{names: []string{"linux/arm64"}}, arm.Digest, nil},
		"both of two":              {two, platformFlags{names: []string{"linux/arm64", "linux/amd64"}}, two.Digest, nil},
		"one here":                 {index(absent, amd, partial), platformFlags{}, amd.Digest, nil},
		"one here, all wanted":     {index(absent, amd), platformFlags{all: true}, "", errdefs.ErrNotFound},
		"nothing here":             {index(absent, partial), platformFlags{}, "", errdefs.ErrNotFound},
		"two here":                 {index(amd, absent, arm), platformFlags{}, two.Digest, nil},
		"an index that is no JSON": {put(ocispec.MediaTypeImageIndex, "no JSON"), platformFlags{}, "", errdefs.ErrInvalidArgument},
	} {
		if err := c.flags.check(); err != nil {
			t.Fatal(err)
		}
		got, err := pushTarget(ctx, store, "demo", c.target, c.flags)
		if got.Digest != c.want || !errors.Is(err, c.err) {
			t.Errorf("%s: %s, %v", name, got.Digest, err)
		}
	}
	written, err := pushTarget(ctx, store, "demo", index(arm, amd, partial), platformFlags{})
	if err != nil {
		t.Fatal(err)
	}
	if all, err := images.Platforms(ctx, store, written); err != nil || len(all) != 2 {
		t.Errorf("platforms of the index that was written: %v, %v", all, err)
	}
	if diff := cmp.Diff(map[string]string{
		"containerd.io/gc.ref.content.m.0": arm.Digest.String(),
		"containerd.io/gc.ref.content.m.1": amd.Digest.String(),
	}, labels.labels[written.Digest]); diff != "" {
		t.Error(diff)
	}
}
