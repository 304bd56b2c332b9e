package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	taskevents "github.com/containerd/containerd/api/events"
	core "github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	api "caisson/api/caisson/sandbox/v1"
	"caisson/internal/isolation/namespace"
	"caisson/internal/monitor"
	"caisson/internal/network"
	"caisson/internal/stdio"
	"caisson/internal/task"
)

// These tests run real sandboxes with real runc: they need root, runc and
// busybox (Debian's packages runc and busybox-static).

// rig is a controller with everything below it in one temporary directory.
type rig struct {
	t      *testing.T
	dir    string
	ctl    *Controller
	store  *Store
	events *recorder
}

func newRig(t *testing.T) *rig {
	t.Helper()
	dir, err := os.MkdirTemp("", "cs")
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, dir: dir, events: &recorder{}}
	r.open()
	t.Cleanup(r.clear)
	return r
}

// open starts what a daemon starts.
func (r *rig) open() {
	r.t.Helper()
	var err error
	if r.store, err = OpenStore(filepath.Join(r.dir, "sandboxes.db")); err != nil {
		r.t.Fatal(err)
	}
	binary, err := monitor.Install(filepath.Join(r.dir, "libexec"))
	if err != nil {
		r.t.Fatal(err)
	}
	net, err := network.New(network.Config{
		NetNSDir:   filepath.Join(r.dir, "netns"),
		CNIConfDir: filepath.Join(r.dir, "cni"),
		CNIBinDirs: []string{"/usr/lib/cni"},
	})
	if err != nil {
		r.t.Fatal(err)
	}
	r.ctl = NewController(Config{
		Store:      r.store,
		Dir:        filepath.Join(r.dir, "s"),
		Cgroup:     "/caisson-test-" + filepath.Base(r.dir),
		Isolations: []NamedIsolation{{namespace.Name, namespace.New(binary)}},
		Network:    net,

		DefaultNetwork: network.None,
		Events:         r.events,
		Runtime:        RuntimeConfig{Name: "runc", Root: filepath.Join(r.dir, "runc")},
	})
	if err := r.ctl.Load(r.ctx(), hangUp{}); err != nil {
		r.t.Fatal(err)
	}
}

// close is the end of a daemon: sandboxes stay.
func (r *rig) close() {
	r.t.Helper()
	if err := errors.Join(r.ctl.Close(), r.store.Close()); err != nil {
		r.t.Error(err)
	}
}

// clear removes what a test left, and fails if something is left then.
func (r *rig) clear() {
	for _, id := range r.ids() {
		if err := r.ctl.Shutdown(r.ctx(), id); err != nil {
			r.t.Errorf("shutdown %s: %v", id, err)
		}
	}
	r.close()
	for _, sub := range []string{"s", "netns"} {
		left, err := filepath.Glob(filepath.Join(r.dir, sub, "*"))
		if err != nil || len(left) > 0 {
			r.t.Errorf("left over: %v, %v", left, err)
		}
	}
	if mounts, err := os.ReadFile("/proc/self/mountinfo"); err != nil || strings.Contains(string(mounts), r.dir) {
		r.t.Errorf("left over mounts under %s (%v)", r.dir, err)
	}
	cgroups, _ := filepath.Glob("/sys/fs/cgroup/*/caisson-test-" + filepath.Base(r.dir))
	unified, _ := filepath.Glob("/sys/fs/cgroup/caisson-test-" + filepath.Base(r.dir))
	for _, parent := range append(cgroups, unified...) {
		if err := os.Remove(parent); err != nil {
			r.t.Errorf("left over below cgroup %s: %v", parent, err)
		}
	}
	if err := os.RemoveAll(r.dir); err != nil {
		r.t.Error(err)
	}
}

func (r *rig) ids() []string {
	var ids []string
	for k := range r.ctl.boxes {
		ids = append(ids, k.id)
	}
	return ids
}

func (r *rig) ctx() context.Context { return namespaces.WithNamespace(context.Background(), "test") }

// run creates and starts a sandbox.
func (r *rig) run(id string, o *api.Options) core.ControllerInstance {
	r.t.Helper()
	if err := r.ctl.Create(r.ctx(), core.Sandbox{ID: id}, core.WithOptions(o)); err != nil {
		r.t.Fatal(err)
	}
	inst, err := r.ctl.Start(r.ctx(), id)
	if err != nil {
		r.t.Fatal(err)
	}
	return inst
}

func (r *rig) tasks(id string) *task.Set {
	r.t.Helper()
	tasks, err := r.ctl.Tasks(r.ctx(), id)
	if err != nil {
		r.t.Fatal(err)
	}
	return tasks
}

// bundle makes a busybox container that runs a shell script.
func (r *rig) bundle(id, script string) string {
	r.t.Helper()
	bundle := filepath.Join(r.dir, "bundles", id)
	bin := filepath.Join(bundle, "rootfs", "bin")
	for _, dir := range []string{bin, filepath.Join(bundle, "rootfs/proc"), filepath.Join(bundle, "rootfs/dev"), filepath.Join(bundle, "rootfs/etc"), filepath.Join(bundle, "rootfs/tmp")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			r.t.Fatal(err)
		}
	}
	if out, err := exec.Command("cp", "/bin/busybox", bin).CombinedOutput(); err != nil {
		r.t.Fatalf("busybox: %v: %s", err, out)
	}
	if err := os.Symlink("busybox", filepath.Join(bin, "sh")); err != nil && !errors.Is(err, os.ErrExist) {
		r.t.Fatal(err)
	}
	spec := &specs.Spec{
		Version: "1.0.2",
		Process: &specs.Process{Args: []string{"/bin/sh", "-c", script}, Cwd: "/", Env: []string{"PATH=/bin"}},
		Root:    &specs.Root{Path: "rootfs"},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc"},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "mode=755"}},
			{Destination: "/dev/shm", Type: "tmpfs", Source: "shm"},
		},
		Linux: &specs.Linux{
			CgroupsPath: "/test/" + id,
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.PIDNamespace}, {Type: specs.MountNamespace}, {Type: specs.NetworkNamespace},
				{Type: specs.IPCNamespace}, {Type: specs.UTSNamespace},
			},
		},
	}
	data, err := json.Marshal(spec)
	if err != nil {
		r.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(bundle, "config.json"), data, 0o600); err != nil {
		r.t.Fatal(err)
	}
	return bundle
}

// container creates and starts a container whose output goes to a file.
func (r *rig) container(sandboxID, id, script string) (output string) {
	r.t.Helper()
	output = filepath.Join(r.dir, id+".out")
	_, err := r.ctl.CreateTask(r.ctx(), sandboxID, task.CreateRequest{
		ID:     id,
		Bundle: r.bundle(id, script),
		Stdio:  stdio.Config{Stdout: "file://" + output, Stderr: "file://" + output},
	})
	if err != nil {
		r.t.Fatal(err)
	}
	if _, err := r.tasks(sandboxID).Start(r.ctx(), id, ""); err != nil {
		r.t.Fatal(err)
	}
	return output
}

func (r *rig) wait(sandboxID, id string) task.Exit {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.ctx(), 20*time.Second)
	defer cancel()
	exit, err := r.tasks(sandboxID).Wait(ctx, id, "")
	if err != nil {
		r.t.Fatal(err)
	}
	return exit
}

func (r *rig) output(path string) string {
	r.t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		r.t.Fatal(err)
	}
	return strings.TrimSpace(string(data))
}

// hangUp is a Server that has nothing to say.
type hangUp struct{}

func (hangUp) Serve(_, _ string, l net.Listener) func() {
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			conn.Close()
		}
	}()
	return func() { l.Close() }
}

// recorder keeps events in the order in which they were published.
type recorder struct {
	mu   sync.Mutex
	keys map[string]bool
	list []string
}

func (r *recorder) Publish(_ context.Context, key, _ string, event any) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if key != "" {
		if r.keys[key] {
			return nil
		}
		if r.keys == nil {
			r.keys = map[string]bool{}
		}
		r.keys[key] = true
	}
	var text string
	switch e := event.(type) {
	case *taskevents.TaskCreate:
		text = "create " + e.ContainerID
	case *taskevents.TaskStart:
		text = "start " + e.ContainerID
	case *taskevents.TaskExit:
		text = fmt.Sprintf("exit %s %s %d", e.ContainerID, e.ID, e.ExitStatus)
	case *taskevents.TaskDelete:
		text = "delete " + e.ContainerID
	case *taskevents.TaskExecAdded:
		text = "exec-added " + e.ExecID
	case *taskevents.TaskExecStarted:
		text = "exec-started " + e.ExecID
	default:
		text = fmt.Sprintf("%T", event)
	}
	r.list = append(r.list, text)
	return nil
}

func (r *recorder) all() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.list)
}

func TestContainersShareTheirSandbox(t *testing.T) {
	r := newRig(t)
	inst := r.run("sb", &api.Options{Hostname: "shared", Dns: &api.DNS{Servers: []string{"192.0.2.1"}}, ExtraHosts: map[string]string{"db": "192.0.2.7"}})
	if inst.Pid == 0 || inst.Version != 3 || !strings.HasPrefix(inst.Address, "ttrpc+unix:///") {
		t.Errorf("instance %+v", inst)
	}
	const show = "busybox hostname; busybox cat /etc/hostname /etc/resolv.conf; busybox grep db /etc/hosts; busybox readlink /proc/self/ns/net /proc/self/ns/ipc /proc/self/ns/uts; "
	a := r.container("sb", "a", show+"echo from-a > /dev/shm/x")
	r.wait("sb", "a")
	b := r.container("sb", "b", show+"busybox cat /dev/shm/x; exit 7")
	if exit := r.wait("sb", "b"); exit.Status != 7 {
		t.Errorf("exit %+v", exit)
	}
	gotA, gotB := r.output(a), r.output(b)
	if !strings.HasPrefix(gotA, "shared\nshared\nnameserver 192.0.2.1\n192.0.2.7\tdb\n") {
		t.Errorf("a saw:\n%s", gotA)
	}
	if gotB != gotA+"\nfrom-a" {
		t.Errorf("a saw:\n%s\nb saw:\n%s", gotA, gotB)
	}
	host, err := os.Readlink("/proc/self/ns/net")
	if err != nil || strings.Contains(gotA, host) {
		t.Errorf("a is in the host's network: %s", gotA)
	}
}

func TestAContainerCannotFillTheHostWithItsSandboxsFiles(t *testing.T) {
	r := newRig(t)
	r.run("sb", &api.Options{})
	r.container("sb", "c", "busybox dd if=/dev/zero of=/etc/hosts bs=1M count=64")
	if exit := r.wait("sb", "c"); exit.Status == 0 {
		t.Error("64 MiB fit into /etc/hosts")
	}
	info, err := os.Stat(filepath.Join(r.ctl.dir(key{"test", "sb"}), "etc/hosts"))
	if err != nil || info.Size() > 4<<20 {
		t.Errorf("/etc/hosts: %v, %v", info.Size(), err)
	}
}

func TestStateMachineOfVerbs(t *testing.T) {
	r := newRig(t)
	ctx := r.ctx()
	for name, call := range map[string]func() error{
		"start":    func() error { _, err := r.ctl.Start(ctx, "sb"); return err },
		"stop":     func() error { return r.ctl.Stop(ctx, "sb") },
		"wait":     func() error { _, err := r.ctl.Wait(ctx, "sb"); return err },
		"status":   func() error { _, err := r.ctl.Status(ctx, "sb", true); return err },
		"shutdown": func() error { return r.ctl.Shutdown(ctx, "sb") },
		"metrics":  func() error { _, err := r.ctl.Metrics(ctx, "sb"); return err },
		"platform": func() error { _, err := r.ctl.Platform(ctx, "sb"); return err },
		"update":   func() error { return r.ctl.Update(ctx, "sb", core.Sandbox{ID: "sb"}, "labels") },
	} {
		if err := call(); !errdefs.IsNotFound(err) {
			t.Errorf("%s of an unknown sandbox: %v", name, err)
		}
	}
	r.run("sb", &api.Options{})
	if err := r.ctl.Create(ctx, core.Sandbox{ID: "sb"}); !errdefs.IsAlreadyExists(err) {
		t.Errorf("second create: %v", err)
	}
	if _, err := r.ctl.Start(ctx, "sb"); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("second start: %v", err)
	}
	status, err := r.ctl.Status(ctx, "sb", true)
	if err != nil || status.State != "SANDBOX_READY" || status.Pid == 0 || !strings.Contains(status.Info["info"], `"pid"`) {
		t.Errorf("status %+v, %v", status, err)
	}
	for range 2 {
		if err := r.ctl.Stop(ctx, "sb"); err != nil {
			t.Errorf("stop: %v", err)
		}
	}
	if exit, err := r.ctl.Wait(ctx, "sb"); err != nil || exit.ExitStatus != 0 || exit.ExitedAt.IsZero() {
		t.Errorf("wait %+v, %v", exit, err)
	}
	if status, err := r.ctl.Status(ctx, "sb", false); err != nil || status.State != "SANDBOX_NOTREADY" {
		t.Errorf("status %+v, %v", status, err)
	}
	if err := unix.Kill(int(status.Pid), 0); !errors.Is(err, unix.ESRCH) {
		t.Errorf("the holder lives: %v", err)
	}
	if err := r.ctl.Shutdown(ctx, "sb"); err != nil {
		t.Errorf("shutdown: %v", err)
	}
	if err := r.ctl.Shutdown(ctx, "sb"); !errdefs.IsNotFound(err) {
		t.Errorf("second shutdown: %v", err)
	}
}

func TestCreateRefusesBadInputAndLeavesNothing(t *testing.T) {
	r := newRig(t)
	for name, tc := range map[string]struct {
		id   string
		opts *api.Options
		want string
	}{
		"slash":           {"a/b", &api.Options{}, "a/b"},
		"dots":            {"..", &api.Options{}, ".."},
		"empty":           {"", &api.Options{}, "ID"},
		"isolation":       {"x", &api.Options{Isolation: "wall"}, "wall"},
		"hostname":        {"x", &api.Options{Hostname: "a b"}, "hostname"},
		"host sysctl":     {"x", &api.Options{Sysctls: map[string]string{"vm.swappiness": "1"}}, "vm.swappiness"},
		"path in sysctl":  {"x", &api.Options{Sysctls: map[string]string{"net/../vm/swappiness": "1"}}, "sysctl"},
		"one mapping":     {"x", &api.Options{Namespaces: &api.Namespaces{Uids: []*api.IDMapping{{Size: 1}}}}, "user namespace"},
		"extra host":      {"x", &api.Options{ExtraHosts: map[string]string{"db": "nowhere"}}, "nowhere"},
		"line in DNS":     {"x", &api.Options{Dns: &api.DNS{Servers: []string{"1.1.1.1\noptions x"}}}, "DNS"},
		"ports, no CNI":   {"x", &api.Options{PortMappings: []*api.PortMapping{{HostPort: 1, ContainerPort: 1}}}, "port"},
		"unknown network": {"x", &api.Options{Network: 17}, "network"},
	} {
		err := r.ctl.Create(r.ctx(), core.Sandbox{ID: tc.id}, core.WithOptions(tc.opts))
		if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	err := r.ctl.Create(r.ctx(), core.Sandbox{ID: "x"}, core.WithOptions(&specs.Spec{}))
	if !errdefs.IsInvalidArgument(err) {
		t.Errorf("options of another kind: %v", err)
	}
	if left, _ := filepath.Glob(filepath.Join(r.dir, "s", "*")); len(left) > 0 {
		t.Errorf("left over: %v", left)
	}
	if list, err := r.store.List(r.ctx()); err != nil || len(list) > 0 {
		t.Errorf("records left over: %v, %v", list, err)
	}
}

func TestClientsOwnRecordIsTaken(t *testing.T) {
	r := newRig(t)
	ctx := r.ctx()
	sb := core.Sandbox{ID: "sb", Labels: map[string]string{"by": "client"}, Runtime: core.RuntimeOpts{Name: runtimeType}}
	if _, err := r.store.Create(ctx, sb); err != nil {
		t.Fatal(err)
	}
	r.run("sb", &api.Options{})
	if err := r.ctl.Shutdown(ctx, "sb"); err != nil {
		t.Fatal(err)
	}
	if got, err := r.store.Get(ctx, "sb"); err != nil || got.Labels["by"] != "client" {
		t.Errorf("the client's record: %+v, %v", got, err)
	}
	if err := r.store.Delete(ctx, "sb"); err != nil {
		t.Error(err)
	}
}

func TestFailedStartLeavesNothing(t *testing.T) {
	r := newRig(t)
	err := r.ctl.Create(r.ctx(), core.Sandbox{ID: "sb"}, core.WithNetNSPath(filepath.Join(r.dir, "none")))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.ctl.Start(r.ctx(), "sb"); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("start in a missing namespace: %v", err)
	}
	if _, err := r.ctl.Status(r.ctx(), "sb", false); !errdefs.IsNotFound(err) {
		t.Errorf("the sandbox is still there: %v", err)
	}
	if _, err := r.store.Get(r.ctx(), "sb"); !errdefs.IsNotFound(err) {
		t.Errorf("the record is still there: %v", err)
	}
}

func TestContainersOutliveTheDaemon(t *testing.T) {
	r := newRig(t)
	r.run("sb", &api.Options{})
	gate := func(name string) string {
		return fmt.Sprintf("while [ ! -e /dev/shm/%s ]; do busybox sleep 0.01; done; ", name)
	}
	shm := filepath.Join(r.ctl.dir(key{"test", "sb"}), "shm")
	short := r.container("sb", "short", gate("short")+"echo short; exit 3")
	long := r.container("sb", "long", "echo before; "+gate("long")+"echo after; exit 4")

	st, err := r.tasks("sb").State(r.ctx(), "short", "")
	if err != nil {
		t.Fatal(err)
	}
	ended, err := unix.PidfdOpen(st.Pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(ended)
	r.close()
	touch := func(name string) {
		if err := os.WriteFile(filepath.Join(shm, name), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	touch("short")
	if n, err := unix.Poll([]unix.PollFd{{Fd: int32(ended), Events: unix.POLLIN}}, 20000); n != 1 || err != nil {
		t.Fatalf("the container goes on: %v", err)
	}
	if got := r.output(short); got != "short" {
		t.Errorf("output %q", got)
	}
	gone := time.Now()
	r.open()
	exit := r.wait("sb", "short")
	if exit.Status != 3 || exit.At.After(gone.Add(time.Second)) || exit.At.Before(gone.Add(-20*time.Second)) {
		t.Errorf("exit of the container that ended without a daemon: %+v", exit)
	}
	if st, err := r.tasks("sb").State(r.ctx(), "long", ""); err != nil || st.State != task.Running {
		t.Errorf("state %+v, %v", st, err)
	}
	touch("long")
	if exit := r.wait("sb", "long"); exit.Status != 4 {
		t.Errorf("exit %+v", exit)
	}
	if got := r.output(long); got != "before\nafter" {
		t.Errorf("output %q", got)
	}
	want := []string{"create short", "start short", "create long", "start long", "exit short short 3", "exit long long 4"}
	if got := r.events.all(); !slices.Equal(got, want) {
		t.Errorf("events %q\nwant   %q", got, want)
	}
}

func TestDeathOfHolderOrMonitorEndsTheSandbox(t *testing.T) {
	for _, victim := range []string{"holder", "monitor"} {
		t.Run(victim, func(t *testing.T) {
			r := newRig(t)
			inst := r.run("sb", &api.Options{})
			r.container("sb", "c", "busybox sleep 1000")
			pid, reason := int(inst.Pid), "holder died"
			if victim == "monitor" {
				conn, err := r.tasks("sb").Connect(r.ctx(), "c")
				if err != nil {
					t.Fatal(err)
				}
				pid, reason = conn.MonitorPid, "monitor died"
			}
			if err := unix.Kill(pid, unix.SIGKILL); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(r.ctx(), 20*time.Second)
			defer cancel()
			if exit, err := r.ctl.Wait(ctx, "sb"); err != nil || exit.ExitStatus == 0 {
				t.Errorf("wait %+v, %v", exit, err)
			}
			if exit := r.wait("sb", "c"); exit.Status != 137 {
				t.Errorf("the container's exit %+v", exit)
			}
			status, err := r.ctl.Status(ctx, "sb", true)
			if err != nil || !strings.Contains(status.Info["info"], reason) {
				t.Errorf("status %+v, %v", status, err)
			}
		})
	}
}

func TestExecExitsComeBeforeTheContainers(t *testing.T) {
	r := newRig(t)
	r.run("sb", &api.Options{})
	r.container("sb", "c", "busybox sleep 1000")
	tasks := r.tasks("sb")
	for i := range 5 {
		id := fmt.Sprintf("e%d", i)
		spec, _ := json.Marshal(specs.Process{Args: []string{"/bin/busybox", "sleep", "1000"}, Cwd: "/"})
		err := tasks.Exec(r.ctx(), task.ExecRequest{ID: "c", ExecID: id, Spec: rawAny(spec)})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := tasks.Start(r.ctx(), "c", id); err != nil {
			t.Fatal(err)
		}
	}
	if err := tasks.Kill(r.ctx(), "c", "", 9, false); err != nil {
		t.Fatal(err)
	}
	r.wait("sb", "c")
	events := r.events.all()
	if last := events[len(events)-1]; last != "exit c c 137" {
		t.Errorf("last event %q of %q", last, events)
	}
	exits := 0
	for _, e := range events {
		if strings.HasPrefix(e, "exit c e") {
			exits++
		}
	}
	if exits != 5 {
		t.Errorf("%d exits of execs in %q", exits, events)
	}
}

// rawAny is a JSON value on its way through the Task API.
type rawAny []byte

func (rawAny) GetTypeUrl() string { return "types.containerd.io/opencontainers/runtime-spec/1/Process" }
func (a rawAny) GetValue() []byte { return a }
