package faults

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	sandboxapi "github.com/containerd/containerd/api/services/sandbox/v1"
	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/containerd/v2/core/sandbox/proxy"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/ttrpc"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/anypb"

	"caisson/test/daemon"
)

// program is the daemon with fault points, as `make faults` builds it.
const program = "caissond-faults"

// world is a daemon with fault points, and a sandbox in it that lives through all
// cases.
type world struct {
	*daemon.Daemon
	dir     string // of the orders
	rootfs  string
	events  *receiver
	conn    *grpc.ClientConn // to the sandboxer; nil while there is no daemon
	serial  int              // of the case
	beside  *run             // the sandbox that must not notice anything
	pid     uint32           // of the container in it
	monitor uint32           // of the sandbox
	counted int              // lines that the container has printed
	base    *state           // with nothing but that
}

// newWorld makes a daemon that does not run yet.
func newWorld() (*world, error) {
	dir, err := os.MkdirTemp("", "faults-")
	if err != nil {
		return nil, err
	}
	d, err := daemon.New(daemon.Options{Engine: daemon.EngineNone, Program: program, Env: []string{"CAISSON_FAULTS=" + dir}})
	if err != nil {
		return nil, errors.Join(err, os.Remove(dir))
	}
	return &world{Daemon: d, dir: dir, rootfs: filepath.Join(d.Dir, "rootfs")}, nil
}

// fill starts the daemon and the sandbox beside.
func (w *world) fill(ctx context.Context) (err error) {
	if err := errors.Join(makeRootfs(w.rootfs), makeRuntimes(w.Dir)); err != nil {
		return err
	}
	if w.events, err = receive(w.EventSocket()); err != nil {
		return err
	}
	if err := w.start(ctx); err != nil {
		return err
	}
	return w.settle(ctx)
}

// start starts the daemon, or starts it again, and connects to it.
func (w *world) start(ctx context.Context) error {
	w.disconnect()
	if err := w.Start(ctx); err != nil {
		return err
	}
	conn, err := w.Dial(filepath.Join(w.State, "sandboxer.sock"))
	w.conn = conn
	return err
}

func (w *world) disconnect() {
	if w.conn != nil {
		_ = w.conn.Close() // nothing is under way
		w.conn = nil
	}
}

// close ends everything and lists what is left.
func (w *world) close(ctx context.Context) ([]string, error) {
	w.disconnect()
	left, err := w.Close(ctx)
	if w.events != nil {
		err = errors.Join(err, w.events.close())
	}
	return left, errors.Join(err, os.RemoveAll(w.dir))
}

// in is a context for calls.
func (w *world) in(ctx context.Context) context.Context {
	return namespaces.WithNamespace(ctx, w.Token)
}

func (w *world) controller() sandbox.Controller {
	return proxy.NewSandboxController(sandboxapi.NewControllerClient(w.conn), "caisson")
}

func (w *world) store() sandbox.Store {
	return proxy.NewSandboxStore(sandboxapi.NewStoreClient(w.conn))
}

// tasks calls the Task API at an address.
func tasks(address string, call func(taskapi.TTRPCTaskService) error) error {
	conn, err := net.Dial("unix", strings.TrimPrefix(strings.TrimPrefix(address, "ttrpc+"), "unix://"))
	if err != nil {
		return err
	}
	client := ttrpc.NewClient(conn)
	err = call(taskapi.NewTTRPCTaskClient(client))
	return errors.Join(errgrpc.ToNative(err), client.Close())
}

// shim runs the shim binary as containerd does.
func (w *world) shim(ctx context.Context, id, bundle, action string) (string, error) {
	path, err := w.Binary("containerd-shim-caisson-v2")
	if err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, path, "-namespace", w.Token, "-id", id, "-address", w.Address, "-bundle", bundle, action)
	cmd.Dir = bundle
	cmd.Env = append(os.Environ(), "CAISSON_SHIM_SOCKET="+filepath.Join(w.State, "shim.sock"), "CAISSON_SHIM_CONFIG="+w.ConfigFile)
	cmd.WaitDelay = time.Second
	out, err := cmd.Output()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		err = fmt.Errorf("%w: %s", err, exit.Stderr)
	}
	return string(out), err
}

// order lets a fault happen. Without a fault the daemon only traces.
func (w *world) order(point string, hit int, fault string) error {
	_ = os.Remove(filepath.Join(w.dir, "trace")) // it may not be there
	temp := filepath.Join(w.dir, "new")
	if err := os.WriteFile(temp, fmt.Appendf(nil, "%s %d %s", point, hit, fault), 0o600); err != nil {
		return err
	}
	return os.Rename(temp, filepath.Join(w.dir, "order"))
}

// done tells whether the fault has happened.
func (w *world) done() bool {
	_, err := os.Stat(filepath.Join(w.dir, "done"))
	return err == nil
}

// relieve takes the order away, and returns the points that were reached.
func (w *world) relieve() ([]string, error) {
	for _, name := range []string{"order", "done"} {
		if err := os.Remove(filepath.Join(w.dir, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
	}
	text, err := os.ReadFile(filepath.Join(w.dir, "trace"))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	return strings.Fields(string(text)), errors.Join(err, os.Remove(filepath.Join(w.dir, "trace")))
}

// An OCI runtime that makes checkpoints without CRIU, which few kernels and
// distributions have: of some files. The second one fails after the first of them.
const (
	runtimeScript = `#!/bin/sh
last= verb= image=
for arg; do
	[ "$arg" != checkpoint ] || verb=$arg
	[ "$last" != --image-path ] || image=$arg
	last=$arg
done
[ -n "$verb" ] || exec runc "$@"
mkdir -p "$image" && echo >"$image/pages-1.img"
%s
echo >"$image/inventory.img"
`
	imageFiles = 3 // and that which says what became of stdio
	noImage    = "runc checkpoint: exit status 99"
)

func makeRuntimes(dir string) error {
	var errs []error
	for name, line := range map[string]string{"whole": "", "half": "exit 99"} {
		path := filepath.Join(dir, "runtimes", name, "runc")
		errs = append(errs, os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, fmt.Appendf(nil, runtimeScript, line), 0o755))
	}
	return errors.Join(errs...)
}

// withoutCRIU are options that name one of the runtimes.
func (w *world) withoutCRIU(name string) *anypb.Any {
	any, err := anypb.New(&options.Options{BinaryName: filepath.Join(w.Dir, "runtimes", name, "runc")})
	if err != nil {
		panic(err) // never: it is a message
	}
	any.TypeUrl = "containerd.runc.v1.Options"
	return any
}

// makeRootfs makes a root filesystem with a shell.
func makeRootfs(dir string) error {
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		return fmt.Errorf("%w: install Debian's package busybox-static (make deps)", err)
	}
	for _, name := range []string{"bin", "dev", "etc", "proc", "run", "sys", "tmp"} {
		if err := os.MkdirAll(filepath.Join(dir, name), 0o755); err != nil {
			return err
		}
	}
	// What the sandbox's own are mounted on.
	for _, name := range []string{"hostname", "hosts", "resolv.conf"} {
		if err := os.WriteFile(filepath.Join(dir, "etc", name), nil, 0o644); err != nil {
			return err
		}
	}
	in, err := os.Open(busybox)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(filepath.Join(dir, "bin/busybox"), os.O_CREATE|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	for _, name := range []string{"sh", "sleep", "usleep", "echo", "cat"} {
		err = errors.Join(err, os.Link(out.Name(), filepath.Join(dir, "bin", name)))
	}
	return errors.Join(err, out.Close())
}
