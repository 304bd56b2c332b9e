package libcontainerd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/pkg/archive"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/sirupsen/logrus"

	"caisson/libcontainerd"
	"caisson/test/image"
)

// program is the calling program between two restarts.
type program struct {
	libcontainerd.Client
	conn *containerd.Client
}

// client is the program that runs now.
func (k *soak) client() *program {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.program
}

func (k *soak) setAlive(id, box string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.alive[id] = box
}

func (k *soak) setDead(id string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.alive, id)
}

// open starts the program.
func (k *soak) open() {
	conn, err := k.proxy.client(k.s.Token)()
	if err != nil {
		k.t.Error(err)
		return
	}
	logger := logrus.New()
	logger.SetOutput(k.out)
	logger.SetLevel(logrus.DebugLevel)
	c, err := libcontainerd.New(context.Background(), conn, libcontainerd.Options{
		Namespace: k.s.Token, StateDir: k.dir, Backend: k, Logger: logrus.NewEntry(logger),
	})
	if err != nil {
		k.t.Error(err)
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.program = &program{Client: c, conn: conn}
}

func (k *soak) closeProgram() {
	p := k.client()
	if err := errors.Join(p.Close(), p.conn.Close()); err != nil {
		k.t.Error(err)
	}
}

// restart ends the program, starts it again and has it load all containers that may exist,
// or whose end it was not told.
func (k *soak) restart() {
	k.closeProgram()
	k.open()
	k.mu.Lock()
	alive := maps.Clone(k.alive)
	k.mu.Unlock()
	for id, box := range alive {
		ctx, cancel := context.WithTimeout(context.Background(), soakWait)
		err := retry(ctx, func() (err error) {
			if box != "" {
				_, err = k.client().LoadSandbox(ctx, box)
			}
			if err == nil || errdefs.IsNotFound(err) {
				_, err = k.client().LoadContainer(ctx, id)
			}
			if errdefs.IsNotFound(err) {
				return nil
			}
			return err
		})
		cancel()
		if err != nil {
			k.t.Errorf("load %s after a restart: %v", id, err)
		}
	}
}

// life is a worker's container.
type life struct {
	k *soak
	plan
}

// task finds the container's task in the program that runs now.
func (w *life) task(ctx context.Context) (libcontainerd.Task, error) {
	c, err := w.k.client().LoadContainer(ctx, w.id)
	if err != nil {
		return nil, err
	}
	return c.Task(ctx)
}

// through goes through the plan; its error says where that ended.
func (w *life) through() error {
	ctx, cancel := context.WithTimeout(context.Background(), soakWait)
	defer cancel()
	code := w.k.code(w.id, "")
	c, err := w.container(ctx, w.spec(script(w.end, code, int(code)%40)))
	if err != nil {
		return err
	}
	var con console
	t, err := c.NewTask(ctx, "", false, con.attach)
	if err != nil {
		return err
	}
	w.begin("", code)
	if w.end == byKill {
		w.mayDie("")
	}
	if err := t.Start(ctx); err != nil {
		return err
	}
	w.began("")
	if w.end == byItself {
		return w.exited(ctx, "", t.Pid())
	}
	// Before it has its trap, a signal would end it otherwise.
	if err := con.await(ctx, "ready"); err != nil {
		return err
	}
	if w.pause {
		if err := errors.Join(t.Pause(ctx), t.Resume(ctx)); err != nil {
			return err
		}
	}
	var execs sync.WaitGroup
	errs := make([]error, len(w.execs))
	seen := map[string]bool{}
	for i, x := range w.execs {
		if seen[x.id] { // an id that is used again
			execs.Wait()
		}
		seen[x.id] = true
		execs.Go(func() { errs[i] = w.exec(ctx, t, x) })
	}
	execs.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return w.finish(ctx, t.Pid())
}

// container makes it, and the sandbox it is in.
func (w *life) container(ctx context.Context, spec *specs.Spec) (libcontainerd.Container, error) {
	if w.box == "" {
		return w.k.client().NewContainer(ctx, w.id, spec, w.k.s.runtime, nil)
	}
	sb, err := w.k.client().NewSandbox(ctx, record(w.box))
	if err != nil {
		return nil, err
	}
	w.k.book.note(w.box, "", func(e *entry) { e.any = true; e.begin() })
	if err := sb.Start(ctx); err != nil {
		return nil, err
	}
	w.k.book.note(w.box, "", func(e *entry) { e.started++ })
	return sb.NewContainer(ctx, w.id, spec, w.k.s.runtime, nil)
}

// finish ends the container as planned.
func (w *life) finish(ctx context.Context, pid uint32) error {
	signal := syscall.SIGTERM
	switch w.end {
	case byForce:
		return nil
	case byKill:
		signal = syscall.SIGKILL
	}
	for _, x := range w.execs {
		w.mayDie(x.id) // those that still run, with their container
	}
	// Until there is an answer: the server may be away, and the program.
	err := retry(ctx, func() error {
		t, err := w.task(ctx)
		if err == nil {
			err = t.Kill(ctx, signal)
		}
		if errdefs.IsNotFound(err) {
			return nil // it has ended
		}
		return err
	})
	if err != nil {
		return err
	}
	return w.exited(ctx, "", pid)
}

// exec runs one as planned, and deletes it if it was seen to its end.
func (w *life) exec(ctx context.Context, t libcontainerd.Task, x execPlan) error {
	code := w.k.code(w.id, x.id)
	w.begin(x.id, code)
	if x.end != byItself {
		w.mayDie(x.id)
	}
	if x.others {
		return w.other(ctx, x, code)
	}
	p, err := t.Exec(ctx, x.id, shell(script(x.end, code, x.millis)), false, discard)
	if err != nil {
		return err
	}
	w.began(x.id)
	switch x.end {
	case byForce:
		return nil
	case byKill:
		if err := p.Kill(ctx, syscall.SIGKILL); err != nil {
			return err
		}
	}
	if err := w.exited(ctx, x.id, p.Pid()); err != nil {
		return err
	}
	_, err = p.Delete(ctx)
	return err
}

// other starts the exec with a program that does not use the library, and leaves it.
func (w *life) other(ctx context.Context, x execPlan, code uint32) error {
	other, nctx := w.k.other, w.k.in(ctx)
	w.k.book.note(w.id, x.id, func(e *entry) { e.last().lost = true })
	p, err := startOther(nctx, other, w.id, x.id, script(x.end, code, x.millis))
	if err != nil {
		return fmt.Errorf("the other program: %w: %w", errdefs.ErrUnavailable, errors.New(err.Error()))
	}
	if x.end == byItself {
		select {
		case <-p.exited:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

func (w *life) begin(exec string, code uint32) {
	w.k.starts.Add(1)
	w.k.book.note(w.id, exec, func(e *entry) { e.code = code; e.begin() })
}

func (w *life) began(exec string) { w.k.book.note(w.id, exec, func(e *entry) { e.started++ }) }

// owed says whether the exit of a container or a sandbox that was removed is perhaps still
// to be told. A program that restarts must load it for that, once more.
func (w *life) owed(id string) bool {
	var asked time.Time
	w.k.book.note(id, "", func(e *entry) { asked = e.last().at })
	return !asked.IsZero() && !w.k.endedSince(id, id, asked)
}

// mayDie says that the process is killed now, which does nothing to one whose exit was
// told.
func (w *life) mayDie(exec string) {
	process := exec
	if exec == "" {
		process = w.id
	}
	w.k.book.note(w.id, exec, func(e *entry) {
		a := e.last()
		a.killed = a.killed || !w.k.endedSince(w.id, process, a.at)
	})
}

// exited waits for an exit, which must be told.
func (w *life) exited(ctx context.Context, exec string, pid uint32) error {
	if exec == "" {
		exec = w.id
	}
	err := w.k.exited(ctx, w.id, exec, pid)
	if err != nil {
		w.k.t.Errorf("%v; told: %v", err, w.k.log.Events(w.id))
	}
	return err
}

// remove removes the container, whatever has become of it.
func (w *life) remove(ctx context.Context) error {
	if w.end == byForce || w.end == byKill {
		w.mayDie("")
	}
	return errors.Join(w.removeContainer(ctx), w.removeBox(ctx))
}

func (w *life) removeBox(ctx context.Context) error {
	if w.box == "" {
		return nil
	}
	return retry(ctx, func() error {
		sb, err := w.k.client().LoadSandbox(ctx, w.box)
		if errdefs.IsNotFound(err) {
			return nil
		}
		if err != nil {
			return err
		}
		return sb.Shutdown(ctx)
	})
}

func (w *life) removeContainer(ctx context.Context) error {
	return retry(ctx, func() error {
		c, err := w.k.client().LoadContainer(ctx, w.id)
		if errdefs.IsNotFound(err) {
			return nil
		}
		if err != nil {
			return err
		}
		t, err := c.Task(ctx)
		if err == nil {
			w.mayDie("")
			for _, x := range w.execs {
				w.mayDie(x.id)
			}
			err = t.ForceDelete(ctx)
		}
		if err != nil && !errdefs.IsNotFound(err) {
			return err
		}
		if err := c.Delete(ctx); !errdefs.IsNotFound(err) {
			return err
		}
		return nil
	})
}

// spec is of a container of the common root.
func (w *life) spec(script string) *specs.Spec {
	spec, err := oci.GenerateSpec(w.k.in(context.Background()), w.k.other, &containers.Container{ID: w.id}, oci.WithProcessArgs("/bin/sh", "-c", script))
	if err != nil {
		panic(err) // it touches nothing
	}
	spec.Root = &specs.Root{Path: w.k.root, Readonly: true}
	return spec
}

// makeRoot unpacks the test image's root filesystem.
func makeRoot(t *testing.T, dir string) {
	t.Helper()
	var tar bytes.Buffer
	must(t, "root", image.RootFS(&tar, image.Options{}))
	must(t, "root", os.Mkdir(dir, 0o755))
	_, err := archive.Apply(t.Context(), dir, &tar)
	must(t, "root", err)
}

// in puts the namespace into a context for the other program.
func (k *soak) in(ctx context.Context) context.Context {
	return namespaces.WithNamespace(ctx, k.s.Token)
}
