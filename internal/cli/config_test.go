package cli

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/pelletier/go-toml/v2"
)

func TestConfigContainerd(t *testing.T) {
	for _, state := range []string{"", "/srv/state", `/a "quoted"\place`} {
		args := []string{"config", "containerd"}
		want := "/run/caisson/sandboxer.sock"
		if state != "" {
			args = append(args, "--state", state)
			want = state + "/sandboxer.sock"
		}
		code, out, stderr := runCLI(t, args...)
		if code != 0 {
			t.Fatalf("exit code %d: %s", code, stderr)
		}
		var got map[string]any
		if err := toml.Unmarshal([]byte(out), &got); err != nil {
			t.Fatal(err)
		}
		type table = map[string]any
		if diff := cmp.Diff(table{
			"version":       int64(3),
			"proxy_plugins": table{"caisson": table{"type": "sandbox", "address": want}},
			"plugins": table{criRuntimePlugin: table{"containerd": table{"runtimes": table{"caisson": table{
				"runtime_type": runtimeName, "sandboxer": sandboxer, "disable_pause_image_pull": true,
			}}}}},
		}, got); diff != "" {
			t.Error(diff)
		}
	}
	for _, state := range []string{"relative", "/new\nline", ""} {
		if code, out, stderr := runCLI(t, "config", "containerd", "--state", state); code != 1 || out != "" || stderr == "" {
			t.Errorf("state %q: exit code %d, %q", state, code, out)
		}
	}
}

// TestConfigKubernetes looks for what makes pods run in Caisson.
func TestConfigKubernetes(t *testing.T) {
	code, out, stderr := runCLI(t, "config", "kubernetes")
	if code != 0 {
		t.Fatalf("exit code %d: %s", code, stderr)
	}
	for _, line := range []string{"kind: RuntimeClass\n", "handler: caisson\n", "    memory: \"1Mi\"\n", "  runtimeClassName: caisson\n"} {
		if !strings.Contains(out, line) {
			t.Errorf("no line %q", line)
		}
	}
	if strings.Contains(out, "\t") {
		t.Error("a tab, which YAML does not allow")
	}
}

// TestDocs: what the pages tell people to paste is what the commands print.
func TestDocs(t *testing.T) {
	for page, args := range map[string][]string{
		"containerd.md": {"config", "containerd"},
		"kubernetes.md": {"config", "kubernetes"},
	} {
		text, err := os.ReadFile(filepath.Join("../../docs", page))
		if err != nil {
			t.Fatal(err)
		}
		_, out, _ := runCLI(t, args...)
		// The pages leave the comments out.
		var lines []string
		for line := range strings.Lines(out) {
			if !strings.HasPrefix(line, "#") {
				lines = append(lines, line)
			}
		}
		if want := strings.TrimSpace(strings.Join(lines, "")); !strings.Contains(string(text), want) {
			t.Errorf("docs/%s does not show\n%s", page, want)
		}
	}
}
