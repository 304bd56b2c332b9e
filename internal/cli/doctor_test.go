package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	introspection "github.com/containerd/containerd/api/services/introspection/v1"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/runtime-spec/specs-go/features"
	"golang.org/x/sys/unix"
	rpc "google.golang.org/genproto/googleapis/rpc/status"

	"caisson/internal/cgroup"
	"caisson/internal/config"
)

// judged is what a doctor says of things that a test made up: a line each.
func judged(judge func(*doctor)) []string {
	cfg := config.Default()
	d := &doctor{cfg: cfg}
	judge(d)
	var lines []string
	for _, f := range d.findings {
		line := string(f.Status) + " " + f.Check + ": " + f.Found
		if (f.Status == ok) != (f.Mend == "") {
			line += " (and what to do: " + f.Mend + ")"
		}
		lines = append(lines, line)
	}
	return lines
}

func TestDoctorJudges(t *testing.T) {
	enabled := true
	modern := &features.Features{Linux: &features.Linux{MountExtensions: &features.MountExtensions{IDMap: &features.IDMap{Enabled: &enabled}}}}
	plugin := func(id, address string, err *rpc.Status) *introspection.Plugin {
		return &introspection.Plugin{Type: "io.containerd.sandbox.controller.v1", ID: id, Exports: map[string]string{"address": address}, InitErr: err}
	}
	handler := func(r criRuntime) criConfig {
		var c criConfig
		c.Containerd.Runtimes = map[string]criRuntime{"runc": {Type: "io.containerd.runc.v2", Sandboxer: "podsandbox"}, "h": r}
		return c
	}
	all := func(uint) bool { return true }
	for name, tc := range map[string]struct {
		judge func(*doctor)
		want  []string
	}{
		"old kernel":        {func(d *doctor) { d.judgeKernel("5.4.0-42-generic") }, []string{"fail kernel: Linux 5.4.0-42-generic"}},
		"new kernel":        {func(d *doctor) { d.judgeKernel("5.10.0") }, []string{"ok kernel: Linux 5.10.0"}},
		"newest kernel":     {func(d *doctor) { d.judgeKernel("6.1-rc1") }, []string{"ok kernel: Linux 6.1-rc1"}},
		"no call":           {func(d *doctor) { d.judgeSyscall("pidfd", unix.ENOSYS, true, "x") }, []string{"fail pidfd: not available: x"}},
		"no optional call":  {func(d *doctor) { d.judgeSyscall("mapped mounts", unix.ENOSYS, false, "x") }, []string{"warn mapped mounts: not available: x"}},
		"refused arguments": {func(d *doctor) { d.judgeSyscall("mapped mounts", unix.EBADF, false, "x") }, []string{"ok mapped mounts: available"}},
		"v2":                {func(d *doctor) { d.judgeCgroups(cgroup.Unified, nil, nil) }, []string{"ok cgroups: v2", "ok cgroup controllers: all that are used"}},
		"v1": {func(d *doctor) { d.judgeCgroups(cgroup.Legacy, []string{"pids"}, nil) },
			[]string{"warn cgroups: v1", "warn cgroup controllers: missing: pids"}},
		"hybrid": {func(d *doctor) { d.judgeCgroups(cgroup.Hybrid, nil, nil) },
			[]string{"warn cgroups: hybrid: v1 controllers beside a v2 hierarchy", "ok cgroup controllers: all that are used"}},
		"no cgroups":     {func(d *doctor) { d.judgeCgroups(cgroup.Unavailable, nil, errors.New("none")) }, []string{"fail cgroups: not mounted"}},
		"a user":         {func(d *doctor) { d.judgeCapabilities(1000, all) }, []string{"fail capabilities: you are user 1000; caissond runs as root"}},
		"root":           {func(d *doctor) { d.judgeCapabilities(0, all) }, []string{"ok capabilities: all that are used"}},
		"root of little": {func(d *doctor) { d.judgeCapabilities(0, func(c uint) bool { return c != unix.CAP_SYS_ADMIN }) }, []string{"fail capabilities: missing: CAP_SYS_ADMIN"}},
		"no resource": {func(d *doctor) { d.judgeCapabilities(0, func(c uint) bool { return c != unix.CAP_SYS_RESOURCE }) },
			[]string{"warn capabilities: CAP_SYS_RESOURCE is missing: OOM scores cannot be lowered, nor hard limits raised"}},
		"old runc": {func(d *doctor) {
			d.judgeRuntime("runc", "runc version 1.1.5", &features.Features{}, cgroup.Unified, true)
		}, []string{"warn OCI runtime runc: runc version 1.1.5, the default; it cannot mount with mapped ids"}},
		"new runc": {func(d *doctor) { d.judgeRuntime("/x/runc", "runc version 1.2.0", modern, cgroup.Hybrid, false) },
			[]string{"ok OCI runtime runc: runc version 1.2.0"}},
		"crun on hybrid": {func(d *doctor) { d.judgeRuntime("crun", "crun version 1.20", modern, cgroup.Hybrid, true) },
			[]string{"fail OCI runtime crun: crun version 1.20, the default; it refuses hosts with hybrid cgroups, such as this"}},
		"crun beside, on hybrid": {func(d *doctor) { d.judgeRuntime("crun", "crun version 1.20", modern, cgroup.Hybrid, false) },
			[]string{"warn OCI runtime crun: crun version 1.20; it refuses hosts with hybrid cgroups, such as this"}},
		"broken runtime": {func(d *doctor) { d.judgeRuntime("x", "", nil, cgroup.Unified, true) }, []string{"fail OCI runtime x: it does not run"}},
		"old containerd": {func(d *doctor) { d.judgeContainerd("v1.7.30", "/c") }, []string{"fail containerd: v1.7.30 at /c"}},
		"containerd":     {func(d *doctor) { d.judgeContainerd("2.4.2+unknown", "/c") }, []string{"ok containerd: 2.4.2+unknown at /c"}},
		"containerd 2.3": {func(d *doctor) { d.judgeContainerd("v2.3.7", "/c") }, []string{"warn containerd: v2.3.7 at /c; it pulls a pause image, which nothing runs"}},
		"odd containerd": {func(d *doctor) { d.judgeContainerd("main", "/c") }, []string{"ok containerd: main at /c"}},
		"no plugin":      {func(d *doctor) { d.judgePlugins([]*introspection.Plugin{plugin("shim", "", nil)}) }, []string{`warn containerd plugin: containerd has no sandboxer "caisson"; only ` + "`ctr run`" + ` and the sandboxer "shim" can use Caisson`}},
		"plugin": {func(d *doctor) {
			d.judgePlugins([]*introspection.Plugin{plugin("caisson", "/run/caisson/sandboxer.sock", nil)})
		}, []string{`ok containerd plugin: sandboxer "caisson"`}},
		"plugin failed": {func(d *doctor) {
			d.judgePlugins([]*introspection.Plugin{plugin("caisson", "", &rpc.Status{Message: "no"})})
		}, []string{`fail containerd plugin: sandboxer "caisson": no`}},
		"plugin of other": {func(d *doctor) { d.judgePlugins([]*introspection.Plugin{plugin("caisson", "/x", nil)}) }, []string{`fail containerd plugin: sandboxer "caisson" is expected at /x, caissond has it in /run/caisson`}},
		"handler":         {func(d *doctor) { d.judgeHandler(handler(criRuntime{Type: runtimeName, Sandboxer: "caisson"})) }, []string{`ok CRI handler h: sandboxer "caisson"`}},
		"handler by shim": {func(d *doctor) { d.judgeHandler(handler(criRuntime{Type: runtimeName, Sandboxer: "shim"})) }, []string{`ok CRI handler h: sandboxer "shim"`}},
		"no handler":      {func(d *doctor) { d.judgeHandler(criConfig{}) }, []string{"warn CRI handler: no runtime handler uses Caisson"}},
		"options": {func(d *doctor) {
			d.judgeHandler(handler(criRuntime{Type: runtimeName, Sandboxer: "caisson", Options: map[string]any{"a": 1}}))
		}, []string{"fail CRI handler h: it has options, with which pods with a user namespace fail"}},
		"pause": {func(d *doctor) { d.judgeHandler(handler(criRuntime{Type: runtimeName, Sandboxer: "podsandbox"})) },
			[]string{`fail CRI handler h: runtime_type "io.containerd.caisson.v2" with sandboxer "podsandbox"`}},
		"other runtime": {func(d *doctor) { d.judgeHandler(handler(criRuntime{Type: "x", Sandboxer: "caisson"})) },
			[]string{`fail CRI handler h: sandboxer "caisson" with runtime_type "x"`}},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(tc.want, judged(tc.judge)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestDoctorCNI(t *testing.T) {
	for name, tc := range map[string]struct{ file, text, want string }{
		"nothing":        {"", "", "warn CNI configuration: none in DIR"},
		"no JSON":        {"1.conflist", "{", "fail CNI configuration: DIR/1.conflist: unexpected EOF"},
		"no plugins":     {"1.conflist", `{"name": "n"}`, "fail CNI configuration: DIR/1.conflist: it names no network, or no plugin"},
		"missing plugin": {"1.conflist", `{"name": "n", "plugins": [{"type": "here"}, {"type": "there"}]}`, "fail CNI plugins: network n needs there, not in DIR"},
		"list":           {"1.conflist", `{"name": "n", "plugins": [{"type": "here"}]}`, "ok CNI configuration: network n of DIR/1.conflist, plugins installed"},
		"single":         {"1.conf", `{"name": "n", "type": "here"}`, "ok CNI configuration: network n of DIR/1.conf, plugins installed"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, "here"), nil, 0o755); err != nil {
				t.Fatal(err)
			}
			if tc.file != "" {
				if err := os.WriteFile(filepath.Join(dir, tc.file), []byte(tc.text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			got := judged(func(d *doctor) {
				d.cfg.Network.CNIConfDir, d.cfg.Network.CNIBinDirs = dir, []string{dir}
				d.checkCNI()
			})
			if want := []string{strings.ReplaceAll(tc.want, "DIR", dir)}; !cmp.Equal(want, got) {
				t.Error(cmp.Diff(want, got))
			}
		})
	}
}

// TestDoctorCommand runs the whole on this machine, whatever it is.
func TestDoctorCommand(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "config.toml")
	if err := os.WriteFile(file, []byte("state = \""+dir+"/state\"\n[runtime]\ndefault = \"/no/such/runtime\"\n[containerd]\naddress = \""+dir+"/c.sock\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	code, out, _ := runCLI(t, "--address", dir+"/a.sock", "doctor", "--config", file, "--format", "json")
	var findings []finding
	if err := json.Unmarshal([]byte(out), &findings); err != nil {
		t.Fatal(err)
	}
	if code != 1 {
		t.Errorf("exit code %d without an OCI runtime", code)
	}
	found := map[string]finding{}
	for _, f := range findings {
		found[f.Check] = f
		if f.Status != ok && f.Mend == "" || f.Found == "" {
			t.Errorf("%+v says too little", f)
		}
	}
	if found["OCI runtime runtime"].Status != fail || found["kernel"].Status != ok || found["caissond"].Status != warn {
		t.Errorf("findings %+v", findings)
	}

	for args, want := range map[string]string{
		"doctor --config /no/such/file": "does not exist",
		"doctor --format yaml":          "unknown format",
		"doctor x":                      "no arguments",
	} {
		if code, _, stderr := runCLI(t, strings.Fields(args)...); code != 1 || !strings.Contains(stderr, want) {
			t.Errorf("%s: exit code %d, %q", args, code, stderr)
		}
	}
}

// TestDoctorKernel looks at kernels without what ours has.
func TestDoctorKernel(t *testing.T) {
	proc := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(filepath.Join(proc, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(proc, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	look := func(d *doctor) {
		d.checkNamespaces(proc)
		d.checkFilesystems(proc)
	}
	for _, step := range []struct {
		change func()
		want   []string
	}{
		{func() {}, []string{"fail namespaces: missing: mnt, net, ipc, uts, pid", "warn user namespaces: not available", "warn overlayfs: not registered"}},
		{func() {
			for _, ns := range []string{"mnt", "net", "ipc", "uts", "pid"} {
				write("self/ns/"+ns, "")
			}
			write("sys/user/max_user_namespaces", "100\n")
			write("filesystems", "nodev\toverlayfs\n\text4\n")
		}, []string{"ok namespaces: mnt, net, ipc, uts, pid", "warn user namespaces: not available", "warn overlayfs: not registered"}},
		{func() {
			write("self/ns/user", "")
			write("filesystems", "\text4\nnodev\toverlay\n")
		}, []string{"ok namespaces: mnt, net, ipc, uts, pid", "ok user namespaces: at most 100", "ok overlayfs: available"}},
		{func() { write("sys/user/max_user_namespaces", "0\n") },
			[]string{"ok namespaces: mnt, net, ipc, uts, pid", "warn user namespaces: not available", "ok overlayfs: available"}},
	} {
		step.change()
		if diff := cmp.Diff(step.want, judged(look)); diff != "" {
			t.Error(diff)
		}
	}
}

// TestDoctorShim looks for the shim binary in the PATH of a process.
func TestDoctorShim(t *testing.T) {
	dir := t.TempDir()
	cmd := exec.Command("/bin/cat")
	cmd.Env = []string{"PATH=/nothing:" + dir}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	// Once it echoes, it has its own environment: Start returns a little before.
	if _, err := io.WriteString(stdin, "x"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(stdout, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	pid := cmd.Process.Pid
	look := func(want string) {
		t.Helper()
		if got := judged(func(d *doctor) { d.checkShim(pid) }); !cmp.Equal(got, []string{want}) {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	look(fmt.Sprintf("fail shim binary: containerd (pid %d) does not find %s", pid, shimName))
	if err := os.WriteFile(filepath.Join(dir, shimName), nil, 0o755); err != nil {
		t.Fatal(err)
	}
	look("ok shim binary: " + filepath.Join(dir, shimName))
	if err := errors.Join(stdin.Close(), cmd.Wait()); err != nil {
		t.Fatal(err)
	}
	look(fmt.Sprintf("warn shim binary: containerd's environment cannot be read: open /proc/%d/environ: no such file or directory", pid))
}
