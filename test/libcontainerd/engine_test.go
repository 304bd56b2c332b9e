package libcontainerd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/sirupsen/logrus"
	"google.golang.org/grpc/status"

	"caisson/libcontainerd"
	"caisson/libcontainerd/eventtest"
	"caisson/test/daemon"
	"caisson/test/harness"
)

// limit is of everything that a spec waits for.
const limit = time.Minute

// engine is a program that uses the library. It can be restarted.
type engine struct {
	libcontainerd.Client
	s    *server
	t    *testing.T
	dir  string
	dial func() (*containerd.Client, error)
	conn *containerd.Client
	log  *eventtest.Log
	out  *bytes.Buffer // what the library logged

	sandbox libcontainerd.Sandbox
	ids     []string // of containers, to be removed
	options any      // of the runtime
}

// number makes ids differ: specs share the servers.
var number atomic.Int64

func unique(name string) string { return fmt.Sprintf("%s-%d", name, number.Add(1)) }

// engine starts a program that is told events through the backend, or by its log
// alone if that is nil. When the spec ends, what it made is removed, the log is
// checked and nothing may be left in its directory.
func (s *server) engine(next libcontainerd.Backend) *engine {
	s.t.Helper()
	return s.engineBy(next, func() (*containerd.Client, error) { return s.Daemon.Client("") })
}

func (s *server) engineBy(next libcontainerd.Backend, dial func() (*containerd.Client, error)) *engine {
	s.t.Helper()
	e := &engine{s: s, t: s.t, dir: filepath.Join(s.Dir, unique("state")), dial: dial, log: &eventtest.Log{Next: next}, out: &bytes.Buffer{}}
	e.open()
	s.t.Cleanup(e.end)
	return e
}

func (e *engine) open() {
	e.t.Helper()
	var err error
	if e.conn, err = e.dial(); err != nil {
		e.t.Fatal(err)
	}
	logger := logrus.New()
	logger.SetOutput(e.out)
	logger.SetLevel(logrus.DebugLevel)
	e.Client, err = libcontainerd.New(context.Background(), e.conn, libcontainerd.Options{
		Namespace: e.s.Token, StateDir: e.dir, Backend: e.log, Logger: logrus.NewEntry(logger),
	})
	if err != nil {
		e.t.Fatal(err)
	}
	if e.sandbox != nil {
		if e.sandbox, err = e.LoadSandbox(e.ctx(), e.sandbox.ID()); err != nil {
			e.t.Fatal(err)
		}
	}
}

// close ends the program; its containers run on.
func (e *engine) close() {
	e.t.Helper()
	if err := errors.Join(e.Close(), e.conn.Close()); err != nil {
		e.t.Error(err)
	}
}

// reload starts the program again and loads the container.
func (e *engine) reload(id string) libcontainerd.Container {
	e.t.Helper()
	e.open()
	return e.load(id)
}

func (e *engine) load(id string) libcontainerd.Container {
	e.t.Helper()
	c, err := e.LoadContainer(e.ctx(), id)
	if err != nil {
		e.t.Fatal(err)
	}
	return c
}

func (e *engine) ctx() context.Context { return harness.Context(e.t, limit) }

func (e *engine) ctxShort() context.Context { return harness.Context(e.t, 2*time.Second) }

// end removes what the spec made.
func (e *engine) end() {
	ctx, cancel := context.WithTimeout(context.Background(), 2*limit)
	defer cancel()
	for _, id := range e.ids {
		if err := e.remove(ctx, id); err != nil {
			e.t.Errorf("remove %s: %v", id, err)
		}
	}
	if e.sandbox != nil {
		if err := e.sandbox.Shutdown(ctx); err != nil {
			e.t.Errorf("remove sandbox: %v", err)
		}
	}
	if err := daemon.Poll(ctx, 20*time.Second, func() error { return nothingLeft(e.dir) }); err != nil {
		e.t.Error(err)
	}
	if err := errors.Join(e.Close(), e.conn.Close()); err != nil {
		e.t.Error(err)
	}
	if err := e.log.Check(true); err != nil {
		e.t.Errorf("what was told is not right: %v", err)
	}
	if e.t.Failed() {
		for _, event := range e.log.Events("") {
			e.t.Logf("told: %s", event)
		}
		e.t.Logf("the library's log:\n%s", e.out)
	}
	if err := os.RemoveAll(e.dir); err != nil {
		e.t.Error(err)
	}
}

// nothingLeft looks for what a client keeps of containers and sandboxes.
func nothingLeft(dir string) error {
	left, err := filepath.Glob(filepath.Join(dir, "[cs]", "*"))
	if len(left) > 0 {
		err = errors.Join(err, fmt.Errorf("left in the client's directory: %q", left))
	}
	return err
}

func (e *engine) remove(ctx context.Context, id string) error {
	c, err := e.LoadContainer(ctx, id)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	task, err := c.Task(ctx)
	if err == nil {
		err = task.ForceDelete(ctx)
	}
	if err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	return c.Delete(ctx)
}

// in is where the spec's containers go: the client, or a sandbox that is made for
// the spec.
func (e *engine) newContainer(ctx context.Context, id string, spec *specs.Spec, opts ...containerd.NewContainerOpts) (libcontainerd.Container, error) {
	if !e.s.place.sandbox {
		return e.NewContainer(ctx, id, spec, e.s.runtime, e.options, opts...)
	}
	if e.sandbox == nil {
		e.sandbox = e.newSandbox()
		if err := e.sandbox.Start(ctx); err != nil {
			e.t.Fatal(err)
		}
	}
	return e.sandbox.NewContainer(ctx, id, spec, e.s.runtime, e.options, opts...)
}

// record is a sandbox as a client describes it.
func record(id string) sandbox.Sandbox {
	return sandbox.Sandbox{
		ID: id, Sandboxer: harness.Sandboxer, Runtime: sandbox.RuntimeOpts{Name: harness.Runtime},
		CreatedAt: time.Now(), UpdatedAt: time.Now(),
	}
}

func (e *engine) newSandbox() libcontainerd.Sandbox {
	e.t.Helper()
	sb, err := e.NewSandbox(e.ctx(), record(unique("sandbox")))
	if err != nil {
		e.t.Fatal(err)
	}
	return sb
}

// spec is of a container of the test image that runs a script of the shell.
func (s *server) spec(id, script string, opts ...oci.SpecOpts) *specs.Spec {
	s.t.Helper()
	ctx := s.In(limit)
	opts = append([]oci.SpecOpts{oci.WithProcessArgs("/bin/sh", "-c", script)}, opts...)
	spec, err := oci.GenerateSpec(ctx, s.Client(""), &containers.Container{ID: id}, opts...)
	if err != nil {
		s.t.Fatal(err)
	}
	return spec
}

func (s *server) snapshot(id string) containerd.NewContainerOpts {
	s.t.Helper()
	image, err := s.Client("").GetImage(s.In(limit), harness.Image)
	if err != nil {
		s.t.Fatal(err)
	}
	return containerd.WithNewSnapshot(id, image)
}

// container makes a container of the script.
func (e *engine) container(script string, opts ...oci.SpecOpts) (libcontainerd.Container, string) {
	e.t.Helper()
	id := unique("c")
	c, err := e.newContainer(e.ctx(), id, e.s.spec(id, script, opts...), e.s.snapshot(id))
	if err != nil {
		e.t.Fatal(err)
	}
	e.ids = append(e.ids, id)
	return c, id
}

// run makes a container of the script and starts it.
func (e *engine) run(script string, opts ...oci.SpecOpts) (libcontainerd.Task, string) {
	e.t.Helper()
	c, id := e.container(script, opts...)
	task, err := c.Start(e.ctx(), "", false, discard)
	if err != nil {
		e.t.Fatal(err)
	}
	return task, id
}

// loop is a script that ends with the code when it gets a SIGTERM. Before it says
// that it is ready, the signal would end it otherwise.
func loop(code int) string {
	return fmt.Sprintf("trap 'exit %d' TERM; echo ready; while :; do sleep 0.05; done", code)
}

func (e *engine) loop(code int) (libcontainerd.Task, string) {
	e.t.Helper()
	c, id := e.container(loop(code))
	var con console
	task, err := c.Start(e.ctx(), "", false, con.attach)
	must(e.t, "Start", err)
	must(e.t, "output", con.await(e.ctx(), "ready"))
	return task, id
}

// command is a process for Exec.
func command(args ...string) *specs.Process {
	return &specs.Process{Args: args, Cwd: "/", Env: []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}}
}

func shell(script string) *specs.Process { return command("/bin/sh", "-c", script) }

// line is an event in short: its type, the exec's id and an exit's code.
func line(e eventtest.Event) string {
	words := []string{string(e.Type)}
	if e.Info.ProcessID != e.ID {
		words = append(words, e.Info.ProcessID)
	}
	if e.Type == libcontainerd.EventExit {
		words = append(words, fmt.Sprint(e.Info.ExitCode))
		if e.Info.Error != nil {
			words = append(words, "lost")
		}
	}
	return strings.Join(words, " ")
}

// told are the events of a container, each as a line.
func (e *engine) told(id string) []string {
	var lines []string
	for _, event := range e.log.Events(id) {
		lines = append(lines, line(event))
	}
	return lines
}

// await waits until the events of the container have the line.
func (e *engine) await(id, want string) eventtest.Event {
	e.t.Helper()
	event, err := e.log.Wait(e.ctx(), func(event eventtest.Event) bool { return event.ID == id && line(event) == want })
	if err != nil {
		e.t.Fatalf("%q of %s: %v; told: %q", want, id, err, e.told(id))
	}
	return event
}

// expect waits for the last of the lines and compares all.
func (e *engine) expect(id string, want ...string) {
	e.t.Helper()
	e.await(id, want[len(want)-1])
	if got := e.told(id); !slices.Equal(got, want) {
		e.t.Errorf("told %q, want %q", got, want)
	}
}

// classes are all of package errdefs.
var classes = []error{
	errdefs.ErrUnknown, errdefs.ErrInvalidArgument, errdefs.ErrNotFound, errdefs.ErrAlreadyExists, errdefs.ErrPermissionDenied,
	errdefs.ErrResourceExhausted, errdefs.ErrFailedPrecondition, errdefs.ErrConflict, errdefs.ErrNotModified, errdefs.ErrAborted,
	errdefs.ErrOutOfRange, errdefs.ErrNotImplemented, errdefs.ErrInternal, errdefs.ErrUnavailable, errdefs.ErrDataLoss,
	errdefs.ErrUnauthenticated, context.Canceled, context.DeadlineExceeded,
}

// classed: an error has a class, and nothing of gRPC.
func classed(err error) error {
	if !slices.ContainsFunc(classes, func(class error) bool { return errors.Is(err, class) }) {
		return fmt.Errorf("error without a class: %w", err)
	}
	if st, ok := status.FromError(err); ok {
		return fmt.Errorf("error of gRPC, %s: %w", st.Code(), err)
	}
	return nil
}

// refused: the call failed with an error of one of the classes.
func refused(t *testing.T, what string, err error, want ...error) {
	t.Helper()
	if err == nil {
		t.Errorf("%s succeeded", what)
		return
	}
	if err := classed(err); err != nil {
		t.Errorf("%s: %v", what, err)
	}
	if !slices.ContainsFunc(want, func(class error) bool { return errors.Is(err, class) }) {
		t.Errorf("%s: %v, want one of %v", what, err, want)
	}
}

// must ends the spec if a call failed.
func must(t *testing.T, what string, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

// other is what another program does with the server: it knows the library not.
func (s *server) other() (*containerd.Client, context.Context) {
	return s.Client(""), namespaces.WithNamespace(harness.Context(s.t, limit), s.Token)
}
