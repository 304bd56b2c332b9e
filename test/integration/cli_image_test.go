package integration

import (
	"path/filepath"
	"strings"
	"testing"

	"caisson/test/daemon"
	"caisson/test/harness"
	"caisson/test/image"
)

func TestCLIImageSave(t *testing.T) {
	h := harness.New(t, daemon.Options{})
	h.StartDaemon()
	archive, saved := filepath.Join(h.Dir, "image.tar"), filepath.Join(h.Dir, "saved.tar")
	if err := image.WriteFile(archive, image.Options{Ref: "docker.io/library/one:1", Cmd: []string{"echo", "from the archive"}}); err != nil {
		t.Fatal(err)
	}
	if res := h.TryCaisson("image", "import", archive); res.Stdout != "docker.io/library/one:1\n" || !strings.Contains(res.Stderr, "archive: imported ") || !strings.Contains(res.Stderr, "one:1: unpacked 1 layers\n") {
		t.Errorf("import: %+v", res)
	}
	if out := h.Caisson("image", "inspect", "-f", `{{.name}} {{json .config.config.Cmd}}`, "one:1"); out != `docker.io/library/one:1 ["echo","from the archive"]`+"\n" {
		t.Errorf("inspect: %q", out)
	}
	digest := h.Caisson("image", "inspect", "-f", "{{.digest}}", "one:1")
	if out := h.Caisson("image", "tag", "one:1", "two:2"); out != "docker.io/library/two:2\n" {
		t.Errorf("tag: %q", out)
	}
	if out := h.Caisson("image", "inspect", "-f", "{{.digest}}", "two:2"); out != digest {
		t.Errorf("digest of the tag: %q, not %q", out, digest)
	}
	h.Caisson("image", "save", "-o", saved, "one:1", "two:2")
	piped := h.Caisson("image", "save", "two:2")
	if out := h.Caisson("image", "save", "-o", "-", "two:2"); out != piped {
		t.Errorf("save to -: %d bytes, not %d", len(out), len(piped))
	}
	h.Caisson("image", "rm", "one:1", "two:2")
	if res := h.TryCaisson("image", "import", "-q", saved); res.Stderr != "" {
		t.Errorf("import -q: %+v", res)
	}
	if out := h.Caisson("image", "import", saved); !strings.Contains(out, "one:1") || !strings.Contains(out, "two:2") {
		t.Errorf("import of what was saved: %q", out)
	}
	if out := h.Caisson("run", "--rm", "two:2"); out != "from the archive\n" {
		t.Errorf("run of what was saved: %q", out)
	}
	h.Caisson("image", "rm", "one:1", "two:2")
	if res := h.TryInput(strings.NewReader(piped), "caisson", "image", "import", "-"); res.Code != 0 || res.Stdout != "docker.io/library/two:2\n" {
		t.Errorf("import from a pipe: %+v", res)
	}
	h.Caisson("image", "rm", "two:2")
	for _, args := range [][]string{{"inspect", "no"}, {"tag", "no", "other"}, {"save", "no"}, {"save", "-o", filepath.Join(h.Dir, "none", "x"), "no"}} {
		if res := h.TryCaisson(append([]string{"image"}, args...)...); res.Code != 1 || !strings.Contains(res.Stderr, `no image "no"`) {
			t.Errorf("image %s: %+v", strings.Join(args, " "), res)
		}
	}
}
