package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/api/types/runc/options"
	core "github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	api "caisson/api/caisson/sandbox/v1"
	"caisson/internal/network"
	"caisson/internal/stdio"
	"caisson/internal/task"
)

// fifos are the client's ends of a container's stdio.
type fifos struct {
	cfg    stdio.Config
	stdin  *os.File
	stdout *os.File
}

func (r *rig) fifos(id string, terminal bool) *fifos {
	r.t.Helper()
	f := &fifos{cfg: stdio.Config{
		Stdin:    filepath.Join(r.dir, id+".stdin"),
		Stdout:   filepath.Join(r.dir, id+".stdout"),
		Terminal: terminal,
	}}
	for _, path := range []string{f.cfg.Stdin, f.cfg.Stdout} {
		if err := unix.Mkfifo(path, 0o600); err != nil {
			r.t.Fatal(err)
		}
	}
	var err error
	if f.stdout, err = os.OpenFile(f.cfg.Stdout, os.O_RDONLY|unix.O_NONBLOCK, 0); err != nil {
		r.t.Fatal(err)
	}
	// Both ways, so that it opens before there is a reader.
	if f.stdin, err = os.OpenFile(f.cfg.Stdin, os.O_RDWR, 0); err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { f.stdin.Close(); f.stdout.Close() })
	return f
}

// readAll reads the container's output to its end.
func (f *fifos) readAll(t *testing.T) string {
	t.Helper()
	if err := f.stdout.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	data, err := io.ReadAll(f.stdout)
	if err != nil {
		t.Fatalf("after %q: %v", data, err)
	}
	return string(data)
}

// editSpec changes a bundle's config.json.
func (r *rig) editSpec(bundle string, edit func(*specs.Spec)) {
	r.t.Helper()
	path := filepath.Join(bundle, "config.json")
	data, err := os.ReadFile(path)
	if err != nil {
		r.t.Fatal(err)
	}
	var spec specs.Spec
	if err := json.Unmarshal(data, &spec); err != nil {
		r.t.Fatal(err)
	}
	edit(&spec)
	if data, err = json.Marshal(spec); err != nil {
		r.t.Fatal(err)
	}
	if err := os.WriteFile(path, data, 0o600); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) start(sandboxID string, req task.CreateRequest) {
	r.t.Helper()
	if _, err := r.ctl.CreateTask(r.ctx(), sandboxID, req); err != nil {
		r.t.Fatal(err)
	}
	if _, err := r.tasks(sandboxID).Start(r.ctx(), req.ID, ""); err != nil {
		r.t.Fatal(err)
	}
}

func TestStdioIsTheClientsFIFOs(t *testing.T) {
	r := newRig(t)
	r.run("sb", &api.Options{})
	tasks := r.tasks("sb")
	for name, end := range map[string]func(*fifos) error{
		"close-io": func(f *fifos) error {
			return errors.Join(tasks.CloseIO(r.ctx(), "close-io", ""), tasks.CloseIO(r.ctx(), "close-io", ""), f.stdin.Close())
		},
		"client-gone": func(f *fifos) error { return f.stdin.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			f := r.fifos(name, false)
			r.start("sb", task.CreateRequest{ID: name, Bundle: r.bundle(name, "busybox cat; echo end"), Stdio: f.cfg})
			text := strings.Repeat("0123456789abcdef\n", 1000)
			if _, err := io.WriteString(f.stdin, text); err != nil {
				t.Fatal(err)
			}
			if st, err := tasks.State(r.ctx(), name, ""); err != nil || st.State != task.Running {
				t.Errorf("state %+v, %v", st, err)
			}
			if err := end(f); err != nil {
				t.Error(err)
			}
			if got := f.readAll(t); got != text+"end\n" {
				t.Errorf("%d bytes, want %d", len(got), len(text)+4)
			}
			if exit := r.wait("sb", name); exit.Status != 0 {
				t.Errorf("exit %+v", exit)
			}
		})
	}
}

func TestTerminalOutlivesTheDaemon(t *testing.T) {
	r := newRig(t)
	r.run("sb", &api.Options{})
	f := r.fifos("c", true)
	bundle := r.bundle("c", "read x; busybox stty size; echo got $x; exit 5")
	r.editSpec(bundle, func(s *specs.Spec) {
		s.Process.Terminal = true
		s.Mounts = append(s.Mounts, specs.Mount{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"newinstance", "ptmxmode=0666"}})
	})
	r.start("sb", task.CreateRequest{ID: "c", Bundle: bundle, Stdio: f.cfg})
	r.close()
	r.open()
	if err := r.tasks("sb").ResizePty(r.ctx(), "c", "", 91, 17); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(f.stdin, "word\n"); err != nil {
		t.Fatal(err)
	}
	if exit := r.wait("sb", "c"); exit.Status != 5 {
		t.Errorf("exit %+v", exit)
	}
	if got := f.readAll(t); got != "word\r\n17 91\r\ngot word\r\n" {
		t.Errorf("output %q", got)
	}
}

// TestRuntimesOtherThanRuncGetAnOldVersion runs a container with runc by another
// name: nobody refuses to run a specification that claims an old version.
func TestRuntimesOtherThanRuncGetAnOldVersion(t *testing.T) {
	r := newRig(t)
	r.run("box", &api.Options{})
	runc, err := exec.LookPath("runc")
	if err != nil {
		t.Fatal(err)
	}
	other := filepath.Join(r.dir, "other")
	if err := os.Symlink(runc, other); err != nil {
		t.Fatal(err)
	}
	opts, err := typeurl.MarshalAny(&options.Options{BinaryName: other})
	if err != nil {
		t.Fatal(err)
	}
	bundle := r.bundle("c", "true")
	r.editSpec(bundle, func(spec *specs.Spec) { spec.Version = "1.3.0" })
	r.start("box", task.CreateRequest{ID: "c", Bundle: bundle, Options: opts})
	r.editSpec(bundle, func(spec *specs.Spec) {
		if spec.Version != "1.0.2" {
			t.Errorf("the runtime got a specification of version %s", spec.Version)
		}
	})
	r.wait("box", "c")
	if _, err := r.tasks("box").Delete(r.ctx(), "c", ""); err != nil {
		t.Error(err)
	}
}

func TestFailedCreateLeavesNothing(t *testing.T) {
	r := newRig(t)
	r.run("sb", &api.Options{})
	tasks := r.tasks("sb")
	for name, tc := range map[string]struct {
		req  func(bundle string) task.CreateRequest
		edit func(*specs.Spec)
		is   func(error) bool
		want string
	}{
		"no such program": {
			edit: func(s *specs.Spec) { s.Process.Args = []string{"nosuch"} },
			is:   errdefs.IsNotFound, want: "nosuch",
		},
		"not executable": {
			edit: func(s *specs.Spec) { s.Process.Args = []string{"/etc"} },
			is:   errdefs.IsInvalidArgument, want: "permission denied",
		},
		"no such runtime": {
			req: func(bundle string) task.CreateRequest {
				any, _ := typeurl.MarshalAny(&options.Options{BinaryName: "no-such-runtime"})
				return task.CreateRequest{ID: "c", Bundle: bundle, Options: any}
			},
			is: errdefs.IsNotFound, want: "no-such-runtime",
		},
		"options of another kind": {
			req: func(bundle string) task.CreateRequest {
				any, _ := typeurl.MarshalAny(&options.CheckpointOptions{})
				return task.CreateRequest{ID: "c", Bundle: bundle, Options: any}
			},
			is: errdefs.IsInvalidArgument, want: "CheckpointOptions",
		},
		"missing FIFO": {
			req: func(bundle string) task.CreateRequest {
				return task.CreateRequest{ID: "c", Bundle: bundle, Stdio: stdio.Config{Stdout: bundle + "/none"}}
			},
			is: errdefs.IsFailedPrecondition, want: "none",
		},
		"ID with a slash": {
			req: func(bundle string) task.CreateRequest { return task.CreateRequest{ID: "../c", Bundle: bundle} },
			is:  errdefs.IsInvalidArgument, want: "../c",
		},
		"no bundle": {
			req: func(string) task.CreateRequest { return task.CreateRequest{ID: "c", Bundle: "/no/bundle"} },
			is:  errdefs.IsInvalidArgument, want: "/no/bundle",
		},
		"relative bundle": {
			req: func(string) task.CreateRequest { return task.CreateRequest{ID: "c", Bundle: "bundle"} },
			is:  errdefs.IsInvalidArgument, want: "absolute",
		},
	} {
		bundle := r.bundle("c", "true")
		if tc.edit != nil {
			r.editSpec(bundle, tc.edit)
		}
		req := task.CreateRequest{ID: "c", Bundle: bundle}
		if tc.req != nil {
			req = tc.req(bundle)
		}
		_, err := tasks.Create(r.ctx(), req)
		if !tc.is(err) || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := tasks.State(r.ctx(), "c", ""); !errdefs.IsNotFound(err) {
			t.Errorf("%s: the task is there: %v", name, err)
		}
		if left, _ := filepath.Glob(filepath.Join(r.dir, "s/*/t/*")); len(left) > 0 {
			t.Errorf("%s: left over: %v", name, left)
		}
		if left, _ := filepath.Glob(filepath.Join(r.dir, "runc/*/*")); len(left) > 0 {
			t.Errorf("%s: left over in the runtime: %v", name, left)
		}
	}
	if events := r.events.all(); len(events) > 0 {
		t.Errorf("events of what never was: %q", events)
	}
	// After all that the ID is free, and the sandbox as good as new.
	r.container("sb", "c", "exit 6")
	if exit := r.wait("sb", "c"); exit.Status != 6 {
		t.Errorf("exit %+v", exit)
	}
	if _, err := tasks.Create(r.ctx(), task.CreateRequest{ID: "c", Bundle: r.bundle("c", "true")}); !errdefs.IsAlreadyExists(err) {
		t.Errorf("second create: %v", err)
	}
}

func TestVerbsInTheWrongState(t *testing.T) {
	r := newRig(t)
	r.run("sb", &api.Options{})
	tasks, ctx := r.tasks("sb"), r.ctx()
	spec, _ := json.Marshal(specs.Process{Args: []string{"/bin/sh"}, Cwd: "/"})
	exec := task.ExecRequest{ID: "c", ExecID: "e", Spec: rawAny(spec)}
	if _, err := tasks.Create(ctx, task.CreateRequest{ID: "c", Bundle: r.bundle("c", "busybox sleep 1000")}); err != nil {
		t.Fatal(err)
	}
	for name, err := range map[string]error{
		"pause of a created task":  tasks.Pause(ctx, "c"),
		"resume of a created task": tasks.Resume(ctx, "c"),
		"resize without terminal":  tasks.ResizePty(ctx, "c", "", 1, 1),
		"checkpoint when created":  tasks.Checkpoint(ctx, "c", r.dir, nil),
	} {
		if !errdefs.IsFailedPrecondition(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := tasks.Start(ctx, "c", ""); err != nil {
		t.Fatal(err)
	}
	if _, err := tasks.Start(ctx, "c", ""); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("second start: %v", err)
	}
	if _, err := tasks.Delete(ctx, "c", ""); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("delete of a running task: %v", err)
	}
	if err := tasks.Kill(ctx, "c", "", 0, false); !errdefs.IsInvalidArgument(err) {
		t.Errorf("signal 0: %v", err)
	}
	if err := tasks.Exec(ctx, exec); err != nil {
		t.Fatal(err)
	}
	if err := tasks.Exec(ctx, exec); !errdefs.IsAlreadyExists(err) {
		t.Errorf("second exec: %v", err)
	}
	if err := tasks.Kill(ctx, "c", "e", 15, false); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("kill of an exec that was not started: %v", err)
	}
	if _, err := tasks.Delete(ctx, "c", "e"); err != nil {
		t.Errorf("delete of an exec that was not started: %v", err)
	}
	if err := tasks.Kill(ctx, "c", "", 9, true); err != nil {
		t.Errorf("kill all: %v", err)
	}
	r.wait("sb", "c")
	if err := tasks.Kill(ctx, "c", "", 9, true); !errdefs.IsNotFound(err) {
		t.Errorf("kill of an ended task: %v", err)
	}
	if err := tasks.Exec(ctx, exec); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("exec in an ended task: %v", err)
	}
	if pids, err := tasks.Pids(ctx, "c"); err != nil || len(pids) != 1 {
		t.Errorf("pids of an ended task: %v, %v", pids, err)
	}
	exit, err := tasks.Delete(ctx, "c", "")
	if err != nil || exit.Status != 137 {
		t.Errorf("delete: %+v, %v", exit, err)
	}
	if _, err := tasks.Delete(ctx, "c", ""); !errdefs.IsNotFound(err) {
		t.Errorf("second delete: %v", err)
	}
}

func TestPauseStatsUpdateAndOOM(t *testing.T) {
	r := newRig(t)
	r.run("sb", &api.Options{Resources: &api.Resources{MemoryLimit: 64 << 20}})
	r.container("sb", "c", "busybox sleep 1000")
	tasks, ctx := r.tasks("sb"), r.ctx()
	if err := tasks.Pause(ctx, "c"); err != nil {
		t.Fatal(err)
	}
	if st, err := tasks.State(ctx, "c", ""); err != nil || !st.Paused {
		t.Errorf("state %+v, %v", st, err)
	}
	// A new daemon knows that it is paused.
	r.close()
	r.open()
	tasks = r.tasks("sb")
	if st, err := tasks.State(ctx, "c", ""); err != nil || !st.Paused {
		t.Errorf("state after a restart %+v, %v", st, err)
	}
	if err := tasks.Resume(ctx, "c"); err != nil {
		t.Fatal(err)
	}
	if stats, err := tasks.Stats(ctx, "c"); err != nil || !strings.Contains(stats.GetTypeUrl(), "Metrics") {
		t.Errorf("stats %v, %v", stats, err)
	}
	if m, err := r.ctl.Metrics(ctx, "sb"); err != nil || m.GetID() != "sb" {
		t.Errorf("metrics %v, %v", m, err)
	}
	limit := int64(32 << 20)
	res, _ := json.Marshal(specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit}})
	if err := tasks.Update(ctx, "c", rawAny(res)); err != nil {
		t.Errorf("update: %v", err)
	}
	if err := tasks.Update(ctx, "c", rawAny("{")); !errdefs.IsInvalidArgument(err) {
		t.Errorf("update with a torn message: %v", err)
	}
	change, _ := typeurl.MarshalAny(&api.Options{Resources: &api.Resources{MemoryLimit: 48 << 20}, Annotations: map[string]string{"a": "b"}})
	sb := core.Sandbox{ID: "sb", Labels: map[string]string{"l": "m"}, Extensions: map[string]typeurl.Any{"caisson.sandbox.v1.Options": change}}
	if err := r.ctl.Update(ctx, "sb", sb, "labels", "extensions"); err != nil {
		t.Fatal(err)
	}
	if got, err := r.store.Get(ctx, "sb"); err != nil || got.Labels["l"] != "m" {
		t.Errorf("record %+v, %v", got, err)
	}
	// The sandbox's new limit holds for its containers.
	r.container("sb", "hog", "busybox head -c 60000000 /dev/zero | busybox tail; exit 3")
	r.wait("sb", "hog")
	events := r.events.all()
	if oom := slices.Index(events, "*events.TaskOOM"); oom < 0 || oom > slices.Index(events, "exit hog hog 3") {
		t.Errorf("no OOM before the exit in %q", events)
	}
}

func TestSharedPIDNamespace(t *testing.T) {
	r := newRig(t)
	r.run("sb", &api.Options{Namespaces: &api.Namespaces{SharePid: true}})
	r.container("sb", "a", "busybox sleep 1000")
	out := r.container("sb", "b", "busybox ps -o pid,args; busybox cat /proc/1/comm; (busybox sleep 1000 &); exit 2")
	if exit := r.wait("sb", "b"); exit.Status != 2 {
		t.Errorf("exit %+v", exit)
	}
	if got := r.output(out); !strings.Contains(got, "sleep 1000") || !strings.Contains(got, "caisson-holder") {
		t.Errorf("b saw:\n%s", got)
	}
	// What b left behind ended with it: only a's process and ours are there.
	if pids, err := r.tasks("sb").Pids(r.ctx(), "a"); err != nil || len(pids) != 1 {
		t.Errorf("pids of a: %v, %v", pids, err)
	}
}

func TestUserNamespace(t *testing.T) {
	r := newRig(t)
	ids := []*api.IDMapping{{ContainerId: 0, HostId: 100000, Size: 65536}}
	inst := r.run("sb", &api.Options{
		Namespaces: &api.Namespaces{Uids: ids, Gids: ids},
		Sysctls:    map[string]string{"net.ipv4.ip_unprivileged_port_start": "7", "kernel.shmmni": "99"},
	})
	got, err := os.ReadFile(fmt.Sprintf("/proc/%d/uid_map", inst.Pid))
	if err != nil || strings.Join(strings.Fields(string(got)), " ") != "0 100000 65536" {
		t.Errorf("uid_map %q, %v", got, err)
	}
	for _, name := range []string{"etc/hostname", "etc/hosts", "etc/resolv.conf", "shm"} {
		var st unix.Stat_t
		if err := unix.Stat(r.path("sb", name), &st); err != nil || st.Uid != 100000 || st.Gid != 100000 {
			t.Errorf("%s belongs to %d:%d, not to the sandbox's root (%v)", name, st.Uid, st.Gid, err)
		}
	}
	spec := &specs.Spec{}
	if err := json.Unmarshal(inst.Spec.GetValue(), spec); err != nil {
		t.Fatal(err)
	}
	var kinds []string
	for _, ns := range spec.Linux.Namespaces {
		kinds = append(kinds, string(ns.Type))
	}
	slices.Sort(kinds)
	if want := []string{"ipc", "network", "user", "uts"}; !slices.Equal(kinds, want) {
		t.Errorf("namespaces %v, want %v", kinds, want)
	}
}

func TestCRIOptions(t *testing.T) {
	config := func(ns *cri.NamespaceOption) *cri.PodSandboxConfig {
		return &cri.PodSandboxConfig{
			Hostname:    "pod",
			Annotations: map[string]string{"from": "config"},
			Linux:       &cri.LinuxPodSandboxConfig{SecurityContext: &cri.LinuxSandboxSecurityContext{NamespaceOptions: ns}},
		}
	}
	create := func(ns *cri.NamespaceOption, netns string) (settings, error) {
		any, err := typeurl.MarshalAny(config(ns))
		if err != nil {
			t.Fatal(err)
		}
		return parseSettings(core.Sandbox{ID: "sb"}, core.CreateOptions{Options: any, NetNSPath: netns, Annotations: map[string]string{"from": "create", "x": "y"}}, network.None)
	}
	node, pod := cri.NamespaceMode_NODE, cri.NamespaceMode_POD
	s, err := create(&cri.NamespaceOption{Network: pod, Pid: cri.NamespaceMode_CONTAINER}, "/run/netns/x")
	if err != nil || s.HostUTS || s.SharePID || s.Sysctls["net.ipv4.ip_unprivileged_port_start"] != "0" || s.Sysctls["net.ipv4.ping_group_range"] == "" {
		t.Errorf("pod network: %+v, %v", s, err)
	}
	if s.Annotations["from"] != "config" || s.Annotations["x"] != "y" {
		t.Errorf("annotations %v", s.Annotations)
	}
	s, err = create(&cri.NamespaceOption{Network: node, Ipc: node, Pid: pod}, "")
	if err != nil || !s.HostUTS || !s.HostIPC || !s.SharePID || len(s.Sysctls) > 0 {
		t.Errorf("host network: %+v, %v", s, err)
	}
	if _, err := create(&cri.NamespaceOption{Network: pod}, ""); !errdefs.IsInvalidArgument(err) {
		t.Errorf("pod network without a namespace: %v", err)
	}
	user := func(mode cri.NamespaceMode, ids ...*cri.IDMapping) *cri.NamespaceOption {
		return &cri.NamespaceOption{Network: pod, UsernsOptions: &cri.UserNamespace{Mode: mode, Uids: ids, Gids: ids}}
	}
	s, err = create(user(pod, &cri.IDMapping{HostId: 70000, Length: 1000}), "/run/netns/x")
	if err != nil || len(s.UIDs) != 1 || s.UIDs[0].HostID != 70000 || s.Sysctls["net.ipv4.ping_group_range"] != "" {
		t.Errorf("user namespace: %+v, %v", s, err)
	}
	for _, mode := range []cri.NamespaceMode{cri.NamespaceMode_CONTAINER, cri.NamespaceMode_TARGET} {
		if _, err := create(user(mode, &cri.IDMapping{Length: 1}), "/run/netns/x"); !errdefs.IsInvalidArgument(err) {
			t.Errorf("user namespace mode %v: %v", mode, err)
		}
	}
	for name, ids := range map[string]*cri.IDMapping{"without ID 0": {ContainerId: 1, HostId: 70000, Length: 1000}, "empty": {HostId: 70000}} {
		if _, err := create(user(pod, ids), "/run/netns/x"); !errdefs.IsInvalidArgument(err) {
			t.Errorf("a mapping %s: %v", name, err)
		}
	}
}

func TestSingleContainersHaveNoWalls(t *testing.T) {
	r := newRig(t)
	ctx := r.ctx()
	for range 2 {
		address, err := r.ctl.Endpoint(ctx, "solo")
		if err != nil || !strings.HasPrefix(address, "unix:///") {
			t.Fatalf("endpoint %q, %v", address, err)
		}
	}
	out := r.container("solo", "solo", "busybox cat /etc/hostname; busybox ls /dev/shm; exit 8")
	if exit := r.wait("solo", "solo"); exit.Status != 8 {
		t.Errorf("exit %+v", exit)
	}
	if got := r.output(out); !strings.Contains(got, "No such file") {
		t.Errorf("it has a sandbox's files: %q", got)
	}
	if _, err := r.ctl.Status(ctx, "solo", false); !errdefs.IsNotFound(err) {
		t.Errorf("it is told as a sandbox: %v", err)
	}
	if err := r.ctl.Release(ctx, "solo"); err != nil {
		t.Fatal(err)
	}
	if r.tasks("solo").Len() != 1 {
		t.Error("released with a container in it")
	}
	exit, err := r.ctl.Cleanup(ctx, "solo", "")
	if err != nil || exit.Status != 8 {
		t.Errorf("cleanup %+v, %v", exit, err)
	}
	if _, err := r.ctl.Tasks(ctx, "solo"); !errdefs.IsNotFound(err) {
		t.Errorf("it is still there: %v", err)
	}
	if exit, err := r.ctl.Cleanup(ctx, "solo", ""); err != nil || exit.Status != 255 {
		t.Errorf("second cleanup %+v, %v", exit, err)
	}
}

func TestUnfinishedWorkOfADeadDaemonIsSettled(t *testing.T) {
	r := newRig(t)
	r.run("sb", &api.Options{})
	r.container("sb", "keep", "busybox sleep 1000")
	// What a daemon leaves that dies while it creates a container, or a sandbox.
	if _, err := r.tasks("sb").Create(r.ctx(), task.CreateRequest{ID: "half", Bundle: r.bundle("half", "true")}); err != nil {
		t.Fatal(err)
	}
	if err := r.ctl.Create(r.ctx(), core.Sandbox{ID: "half"}); err != nil {
		t.Fatal(err)
	}
	r.close()
	rewrite := func(path string, change func(map[string]any)) {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		var rec map[string]any
		if err := json.Unmarshal(data, &rec); err != nil {
			t.Fatal(err)
		}
		change(rec)
		if data, err = json.Marshal(rec); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	rewrite(filepath.Join(r.ctl.dir(key{"test", "sb"}), "t/half/init.json"), func(rec map[string]any) {
		rec["State"], rec["Pid"], rec["Serial"] = "adding", 0, 0
	})
	rewrite(filepath.Join(r.ctl.dir(key{"test", "half"}), "sandbox.json"), func(rec map[string]any) { rec["State"] = "creating" })
	r.open()
	if _, err := r.tasks("sb").State(r.ctx(), "half", ""); !errdefs.IsNotFound(err) {
		t.Errorf("the half-made container is there: %v", err)
	}
	if _, err := r.ctl.Status(r.ctx(), "half", false); !errdefs.IsNotFound(err) {
		t.Errorf("the half-made sandbox is there: %v", err)
	}
	if _, err := r.store.Get(r.ctx(), "half"); !errdefs.IsNotFound(err) {
		t.Errorf("its record is there: %v", err)
	}
	if st, err := r.tasks("sb").State(r.ctx(), "keep", ""); err != nil || st.State != task.Running {
		t.Errorf("the other container: %+v, %v", st, err)
	}
	r.container("sb", "half", "exit 9")
	if exit := r.wait("sb", "half"); exit.Status != 9 {
		t.Errorf("exit %+v", exit)
	}
}

func TestRebootStopsSandboxes(t *testing.T) {
	r := newRig(t)
	if _, err := r.store.Create(r.ctx(), core.Sandbox{ID: "old", Runtime: core.RuntimeOpts{Name: runtimeType}}); err != nil {
		t.Fatal(err)
	}
	r.close()
	r.open()
	ctx, cancel := context.WithTimeout(r.ctx(), 10*time.Second)
	defer cancel()
	if exit, err := r.ctl.Wait(ctx, "old"); err != nil || exit.ExitStatus != 255 {
		t.Errorf("wait %+v, %v", exit, err)
	}
	status, err := r.ctl.Status(ctx, "old", true)
	if err != nil || status.State != stateNotReady || !strings.Contains(status.Info["info"], "restarted") {
		t.Errorf("status %+v, %v", status, err)
	}
	if m, err := r.ctl.Metrics(ctx, "old"); !errdefs.IsNotFound(err) {
		t.Errorf("metrics %v, %v", m, err)
	}
	if err := r.ctl.Shutdown(ctx, "old"); err != nil {
		t.Error(err)
	}
	if _, err := r.store.Get(ctx, "old"); !errdefs.IsNotFound(err) {
		t.Errorf("the record is there: %v", err)
	}
}

func TestCancelledCreateEndsTheRuntime(t *testing.T) {
	r := newRig(t)
	r.run("sb", &api.Options{})
	ctx, cancel := context.WithTimeout(r.ctx(), 5*time.Millisecond) // runc takes longer
	defer cancel()
	_, err := r.tasks("sb").Create(ctx, task.CreateRequest{ID: "c", Bundle: r.bundle("c", "true")})
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("create: %v", err)
	}
	r.container("sb", "c", "exit 1")
	r.wait("sb", "c")
}

func TestCleanupRemovesOnlyTheSandboxesOfContainerdsSandboxer(t *testing.T) {
	r := newRig(t)
	ctx := r.ctx()
	if _, err := r.ctl.Endpoint(ctx, "shimmed"); err != nil {
		t.Fatal(err)
	}
	r.run("shimmed", &api.Options{})
	r.run("proxied", &api.Options{})
	if _, err := r.store.Get(ctx, "shimmed"); !errdefs.IsNotFound(err) {
		t.Errorf("record of a sandbox that containerd keeps itself: %v", err)
	}
	if err := r.ctl.Update(ctx, "shimmed", core.Sandbox{Labels: map[string]string{"a": "b"}}, "labels"); err != nil {
		t.Error(err)
	}
	r.close()
	r.open() // it is remembered
	for _, id := range []string{"shimmed", "proxied"} {
		if _, err := r.ctl.Cleanup(ctx, id, r.dir); err != nil {
			t.Errorf("cleanup of %s: %v", id, err)
		}
	}
	if _, err := r.ctl.Status(ctx, "shimmed", false); !errdefs.IsNotFound(err) {
		t.Errorf("what containerd gave up on is there: %v", err)
	}
	if st, err := r.ctl.Status(ctx, "proxied", false); err != nil || st.State != stateReady {
		t.Errorf("the other sandbox: %+v, %v", st, err)
	}
	// A container in a sandbox of its own ID names it in its bundle.
	if _, err := r.ctl.Endpoint(ctx, "both"); err != nil {
		t.Fatal(err)
	}
	r.run("both", &api.Options{})
	bundle := t.TempDir()
	if err := os.WriteFile(filepath.Join(bundle, "sandbox"), []byte("both"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := r.ctl.Cleanup(ctx, "c", bundle); err != nil {
		t.Error(err)
	}
	if st, err := r.ctl.Status(ctx, "both", false); err != nil || st.State != stateReady {
		t.Errorf("the sandbox of a container that is gone: %+v, %v", st, err)
	}
}
