package cli

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"caisson/internal/manifest"
)

const demoPod = "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec:\n  restartPolicy: Always\n  containers:\n  - {name: c, image: demo}\n"

func writePod(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "pod.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestApplyReadsFirst: what is wrong with a file is told without a daemon, one line each.
func TestApplyReadsFirst(t *testing.T) {
	path := writePod(t, strings.Replace(demoPod, "image: demo", "image: '', imagePullPolicy: x", 1))
	code, out, errs := runCLI(t, "--address", "/no/such.sock", "sandbox", "apply", "-f", path)
	if lines := strings.Split(strings.TrimSpace(errs), "\n"); code != 1 || out != "" || len(lines) != 2 ||
		!strings.HasPrefix(lines[0], "caisson: "+path+`: document 1 (Pod "web"): spec.containers[0].image`) || !strings.HasPrefix(lines[1], "caisson: ") {
		t.Errorf("code %d, %q, %q", code, out, errs)
	}
	code, _, errs = runCLI(t, "--address", "/no/such.sock", "sandbox", "apply", "-f", writePod(t, demoPod))
	if code != 1 || !strings.Contains(errs, "caisson: warning: ") || !strings.Contains(errs, "no caissond at /no/such.sock") {
		t.Errorf("without a daemon: code %d, %q", code, errs)
	}
	for args, want := range map[string]string{"": "-f pod.yaml", "--net bridge -f " + path: `unknown network "bridge"`, "-f /none.yaml": "/none.yaml", "pod.yaml -f x": "no arguments"} {
		if code, _, errs := runCLI(t, append([]string{"sandbox", "apply"}, strings.Fields(args)...)...); code != 1 || !strings.Contains(errs, want) {
			t.Errorf("apply %s: code %d, %q", args, code, errs)
		}
	}
}

// TestApplyLeavesOthersAlone: a sandbox that is not the manifest's stays as it is.
func TestApplyLeavesOthersAlone(t *testing.T) {
	d := startFake(t)
	path := writePod(t, demoPod)
	set, err := manifest.Read(path, []byte(demoPod), manifest.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct{ label, want string }{
		"made by hand": {"", "was not made from a manifest"},
		"changed":      {labelManifest + "=other", "another version of the manifest"},
		"not running":  {labelManifest + "=" + set.Pods[0].Digest, "does not run"},
	} {
		args := []string{"sandbox", "create", "web"}
		if tc.label != "" {
			args = append(args, "--label", tc.label)
		}
		d.must(t, args...)
		code, out, errs := d.run(t, "sandbox", "apply", "-f", path)
		if code != 1 || out != "" || !strings.Contains(errs, tc.want) || !strings.Contains(errs, "--replace") || d.records["web"] == nil {
			t.Errorf("%s: code %d, %q, %q", name, code, out, errs)
		}
		d.must(t, "sandbox", "rm", "web")
	}
	// A container of somebody else's has the name.
	d.addContainer("web-c", "other", 0, map[string]string{labelSandbox: "other"})
	if code, _, errs := d.run(t, "sandbox", "apply", "-f", path); code != 1 || !strings.Contains(errs, "caisson rm web-c") || len(d.records) != 0 {
		t.Errorf("a name that is taken: code %d, %q", code, errs)
	}
}

// TestRemoveVolumesOfOurs: a label does not lead to somebody else's directory.
func TestRemoveVolumesOfOurs(t *testing.T) {
	d := startFake(t)
	dir := t.TempDir()
	ours := filepath.Join(dir, "volumes", "default", "web")
	for path, gone := range map[string]bool{ours: true, dir: false, filepath.Join(dir, "volumes", "default", "other"): false, ours + "/../web": false} {
		if err := os.MkdirAll(path, 0o700); err != nil {
			t.Fatal(err)
		}
		d.must(t, "sandbox", "create", "web", "--label", labelVolumes+"="+path)
		code, _, errs := d.run(t, "sandbox", "rm", "web")
		if _, err := os.Stat(path); (err != nil) != gone || (code == 0) != gone {
			t.Errorf("%s: code %d, %q, %v", path, code, errs, err)
		}
		delete(d.records, "web")
		delete(d.states, "web")
	}
}
