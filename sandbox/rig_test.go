package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
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
	t      testing.TB
	dir    string
	ctl    *Controller
	store  *Store
	events *recorder

	server   hangUp
	patience time.Duration
}

func newRig(t testing.TB) *rig {
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
		Isolations: []NamedIsolation{{namespace.Name, namespace.New(binary, nil)}},
		Network:    net,

		DefaultNetwork: network.None,
		Events:         r.events,
		Patience:       r.patience,
		Runtime:        RuntimeConfig{Name: "runc", Root: filepath.Join(r.dir, "runc")},
	})
	if err := r.ctl.Load(r.ctx(), r.server); err != nil {
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
	r.ctl.mu.Lock()
	defer r.ctl.mu.Unlock()
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

// hangUp is a Server that has nothing to say. It can claim that there are clients,
// and requests, from before.
type hangUp struct {
	connected bool
	owes      string
}

func (hangUp) Serve(_, _, path string) (Endpoint, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			conn.Close()
		}
	}()
	return closer{l}, nil
}

func (h hangUp) Connected(_, _ string) bool { return h.connected }
func (h hangUp) Owes(request string) bool   { return request == h.owes }

type closer struct{ net.Listener }

func (c closer) Remove() error { return c.Close() }

// recorder keeps events in the order in which they were published.
type recorder struct {
	mu   sync.Mutex
	keys map[string]bool
	list []string
}

func (r *recorder) Tell(ctx context.Context, key, topic string, event any) error {
	return r.Publish(ctx, key, topic, event)
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
	case *taskevents.TaskPaused:
		text = "paused " + e.ContainerID
	case *taskevents.TaskResumed:
		text = "resumed " + e.ContainerID
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

// shell runs a command to its end.
func (r *rig) shell(command string) {
	r.t.Helper()
	if out, err := exec.Command("/bin/sh", "-c", command).CombinedOutput(); err != nil {
		r.t.Fatalf("%s: %v: %s", command, err, out)
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
