package oci

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

func TestCommandLines(t *testing.T) {
	r := Runtime{Binary: "/usr/bin/runc", Root: "/run/r", SystemdCgroup: true, NoPivotRoot: true, NoNewKeyring: true}
	f := Files{Log: "/l", Pid: "/p", Console: "/c"}
	global := []string{"/usr/bin/runc", "--root", "/run/r", "--log", "/l", "--log-format", "json", "--systemd-cgroup"}
	for name, tc := range map[string]struct{ got, want []string }{
		"create":  {r.CreateArgs("c1", "/b", f), []string{"create", "--bundle", "/b", "--pid-file", "/p", "--console-socket", "/c", "--no-pivot", "--no-new-keyring", "c1"}},
		"exec":    {r.ExecArgs("c1", "/spec", Files{Log: "/l", Pid: "/p"}), []string{"exec", "--detach", "--process", "/spec", "--pid-file", "/p", "c1"}},
		"restore": {r.RestoreArgs("c1", "/b", f, Restore{ImagePath: "/i", WorkPath: "/w"}), []string{"restore", "--detach", "--bundle", "/b", "--image-path", "/i", "--work-path", "/w", "--pid-file", "/p", "--console-socket", "/c", "--no-pivot", "c1"}},
	} {
		if want := append(slices.Clone(global), tc.want...); !slices.Equal(tc.got, want) {
			t.Errorf("%s:\n got %q\nwant %q", name, tc.got, want)
		}
	}
}

func TestExplainTellsTheRuntimesLastWords(t *testing.T) {
	log := filepath.Join(t.TempDir(), "log")
	lines := []string{
		`{"level":"error","msg":"first"}`,
		`{"level":"error","msg":"exec: \"nosuch\": executable file not found in $PATH"}`,
		`{"level":"info","msg":"chatter"}`,
		`no JSON`,
	}
	if err := os.WriteFile(log, []byte(strings.Join(lines, "\n")), 0o600); err != nil {
		t.Fatal(err)
	}
	r := Runtime{Binary: "/usr/bin/runc"}
	cause := errors.New("exit status 1")
	err := r.Explain("create", log, cause)
	if !errors.Is(err, cause) || !errdefs.IsNotFound(err) {
		t.Errorf("class lost: %v", err)
	}
	if want := `runc create: exec: "nosuch": executable file not found in $PATH`; err.Error() != want {
		t.Errorf("got %q, want %q", err, want)
	}
	if err := r.Explain("create", log, nil); err != nil {
		t.Errorf("no failure became one: %v", err)
	}
	if err := r.Explain("create", log+".missing", cause); err.Error() != "runc create: exit status 1" {
		t.Errorf("without a log: %v", err)
	}
}

func TestExplainReadsTheEndOfALongLog(t *testing.T) {
	log := filepath.Join(t.TempDir(), "log")
	text := strings.Repeat(`{"level":"error","msg":"old"}`+"\n", 10000) + `{"level":"error","msg":"container does not exist"}` + "\n"
	if err := os.WriteFile(log, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := (Runtime{Binary: "runc"}).Explain("state", log, errors.New("x")); !errdefs.IsNotFound(err) {
		t.Errorf("got %v", err)
	}
}

func TestFindNamesTheMissingRuntime(t *testing.T) {
	if _, err := Find("no-such-runtime"); !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), "no-such-runtime") {
		t.Errorf("got %v", err)
	}
	if path, err := Find("/bin/sh"); err != nil || path != "/bin/sh" {
		t.Errorf("got %q, %v", path, err)
	}
}

func TestAcceptKeepsRuncsVersion(t *testing.T) {
	for binary, want := range map[string]string{"/usr/bin/runc": "1.3.0", "/usr/bin/crun": "1.0.2"} {
		spec := &specs.Spec{Version: "1.3.0"}
		r := Runtime{Binary: binary}
		if changed := r.Accept(spec); spec.Version != want || changed != (want != "1.3.0") {
			t.Errorf("%s: %s, changed: %v", binary, spec.Version, changed)
		}
		if r.Accept(spec) {
			t.Errorf("%s: changed twice", binary)
		}
	}
}

func TestDeleteOfWhatARuntimeDoesNotKnow(t *testing.T) {
	for _, name := range []string{"runc", "crun"} {
		t.Run(name, func(t *testing.T) {
			binary, err := Find(name)
			if err != nil {
				t.Skip(err)
			}
			dir := t.TempDir()
			r := Runtime{Binary: binary, Root: filepath.Join(dir, "root")}
			for _, force := range []bool{false, true} {
				if err := r.Delete(t.Context(), "none", filepath.Join(dir, "log"), force); err != nil {
					t.Errorf("force %v: %v", force, err)
				}
			}
		})
	}
}

// TestWhatIsLeft: nobody looks after containers of known runtimes but hooks.
func TestWhatIsLeft(t *testing.T) {
	hook := []specs.Hook{{Path: "/bin/true"}}
	for name, tc := range map[string]struct {
		binary         string
		hooks          *specs.Hooks
		little, rootfs bool
	}{
		"runc":                    {"/usr/bin/runc", nil, true, true},
		"crun":                    {"crun", &specs.Hooks{CreateRuntime: hook}, true, true},
		"hook after":              {"runc", &specs.Hooks{Poststop: hook}, false, false},
		"hook when it is started": {"runc", &specs.Hooks{Poststart: hook}, true, false},
		"another runtime":         {"/usr/bin/youki", nil, false, false},
	} {
		r, spec := Runtime{Binary: tc.binary}, &specs.Spec{Hooks: tc.hooks, Linux: &specs.Linux{}}
		if little, rootfs := r.LeavesLittle(spec), r.LeavesRootfs(spec); little != tc.little || rootfs != tc.rootfs {
			t.Errorf("%s: leaves little: %v, rootfs: %v", name, little, rootfs)
		}
	}
}
