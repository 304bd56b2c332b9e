package libcontainerd_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"caisson/libcontainerd"
)

// TestErrorsHaveAClass: whatever code the server answers a call with, the error has
// the class and is not gRPC's.
func TestErrorsHaveAClass(t *testing.T) {
	w := newWorld(t, nil)
	ctr, err := w.c.NewContainer(w.ctx, "k", spec(), "fake", nil)
	w.must(err)
	idle, err := w.c.NewContainer(w.ctx, "idle", spec(), "fake", nil)
	w.must(err)
	unstarted, err := idle.NewTask(w.ctx, "", false, nil)
	w.must(err)
	task, err := ctr.Start(w.ctx, "", false, nil)
	w.must(err)
	exec, err := task.Exec(w.ctx, "e", &specs.Process{}, false, nil)
	w.must(err)
	sb, err := w.c.NewSandbox(w.ctx, sandbox.Sandbox{ID: "s", Sandboxer: sandboxer})
	w.must(err)
	process := &specs.Process{Args: []string{"true"}}
	calls := map[string]func(ctx context.Context) error{
		"NewContainer": func(ctx context.Context) error {
			_, err := w.c.NewContainer(ctx, "new", spec(), "fake", nil)
			return err
		},
		"LoadContainer": func(ctx context.Context) error { _, err := w.c.LoadContainer(ctx, "k"); return err },
		"NewSandbox": func(ctx context.Context) error {
			_, err := w.c.NewSandbox(ctx, sandbox.Sandbox{ID: "new", Sandboxer: sandboxer})
			return err
		},
		"LoadSandbox":      func(ctx context.Context) error { _, err := w.c.LoadSandbox(ctx, "s"); return err },
		"NewTask":          func(ctx context.Context) error { _, err := ctr.NewTask(ctx, "", false, nil); return err },
		"Container.Start":  func(ctx context.Context) error { _, err := ctr.Start(ctx, "", false, nil); return err },
		"Task":             func(ctx context.Context) error { _, err := ctr.Task(ctx); return err },
		"AttachTask":       func(ctx context.Context) error { _, err := ctr.AttachTask(ctx, nil); return err },
		"Container.Delete": ctr.Delete,
		"Task.Start":       unstarted.Start,
		"Pause":            task.Pause,
		"Resume":           task.Resume,
		"Stats":            func(ctx context.Context) error { _, err := task.Stats(ctx); return err },
		"Pids":             func(ctx context.Context) error { _, err := task.Pids(ctx); return err },
		"Summary":          func(ctx context.Context) error { _, err := task.Summary(ctx); return err },
		"ForceDelete":      task.ForceDelete,
		"Status":           func(ctx context.Context) error { _, err := task.Status(ctx); return err },
		"Exec":             func(ctx context.Context) error { _, err := task.Exec(ctx, "f", process, false, nil); return err },
		"UpdateResources":  func(ctx context.Context) error { return task.UpdateResources(ctx, &libcontainerd.Resources{}) },
		"CreateCheckpoint": func(ctx context.Context) error { return task.CreateCheckpoint(ctx, t.TempDir(), false) },
		"Kill":             func(ctx context.Context) error { return exec.Kill(ctx, syscall.SIGTERM) },
		"Resize":           func(ctx context.Context) error { return exec.Resize(ctx, 80, 25) },
		"Process.Delete":   func(ctx context.Context) error { _, err := exec.Delete(ctx); return err },
		"Sandbox.Start":    sb.Start,
		"Sandbox.Stop":     func(ctx context.Context) error { return sb.Stop(ctx, 0) },
		"Sandbox.Wait":     func(ctx context.Context) error { _, err := sb.Wait(ctx); return err },
		"Sandbox.Status":   func(ctx context.Context) error { _, err := sb.Status(ctx, false); return err },
		"Sandbox.Metrics":  func(ctx context.Context) error { _, err := sb.Metrics(ctx); return err },
		"Sandbox.Update":   func(ctx context.Context) error { return sb.Update(ctx, sandbox.Sandbox{}, "labels") },
		"Sandbox.Shutdown": sb.Shutdown,
	}
	done := map[string]bool{"ForceDelete": true, "Sandbox.Shutdown": true} // when there is nothing left
	last := map[string]bool{"LoadContainer": true, "LoadSandbox": true, "NewTask": true, "Container.Start": true, "Container.Delete": true, "Process.Delete": true}
	for code, class := range classes {
		w.f.refuse(status.Error(code, "no"))
		for name, call := range calls {
			if code == codes.NotFound && (done[name] || last[name]) {
				continue // they take what they are about for gone
			}
			patience := time.Minute
			switch code {
			case codes.Unavailable, codes.Canceled, codes.DeadlineExceeded:
				patience = 20 * time.Millisecond // some try again
			}
			if name == "Task.Start" { // until it knows what became of an attempt without an answer
				patience = 20 * time.Millisecond
			}
			ctx, cancel := context.WithTimeout(w.ctx, patience)
			err := call(ctx)
			// Before there was an answer, and perhaps before this side saw the deadline.
			late := patience < time.Minute && errors.Is(err, context.DeadlineExceeded)
			cancel()
			if !errors.Is(err, class) && !late {
				t.Errorf("%s, code %s: %v", name, code, err)
			}
			if _, ok := status.FromError(err); ok {
				t.Errorf("%s, code %s: the error is gRPC's: %v", name, code, err)
			}
		}
	}
	w.f.refuse(status.Error(codes.NotFound, "no"))
	for name := range last {
		if err := calls[name](w.ctx); !errdefs.IsNotFound(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	w.must(task.ForceDelete(w.ctx))
	w.must(sb.Shutdown(w.ctx))
}

var classes = map[codes.Code]error{
	codes.Canceled:           context.Canceled,
	codes.Unknown:            errdefs.ErrUnknown,
	codes.InvalidArgument:    errdefs.ErrInvalidArgument,
	codes.DeadlineExceeded:   context.DeadlineExceeded,
	codes.NotFound:           errdefs.ErrNotFound,
	codes.AlreadyExists:      errdefs.ErrAlreadyExists,
	codes.PermissionDenied:   errdefs.ErrPermissionDenied,
	codes.ResourceExhausted:  errdefs.ErrResourceExhausted,
	codes.FailedPrecondition: errdefs.ErrFailedPrecondition,
	codes.Aborted:            errdefs.ErrAborted,
	codes.OutOfRange:         errdefs.ErrOutOfRange,
	codes.Unimplemented:      errdefs.ErrNotImplemented,
	codes.Internal:           errdefs.ErrInternal,
	codes.Unavailable:        errdefs.ErrUnavailable,
	codes.DataLoss:           errdefs.ErrDataLoss,
	codes.Unauthenticated:    errdefs.ErrUnauthenticated,
}

func TestArgumentsAreChecked(t *testing.T) {
	w := newWorld(t, nil)
	ctr, err := w.c.NewContainer(w.ctx, "k", spec(), "fake", nil)
	w.must(err)
	task, err := ctr.Start(w.ctx, "", false, nil)
	w.must(err)
	for name, call := range map[string]func() error{
		"id":         func() error { _, err := w.c.NewContainer(w.ctx, "../k", spec(), "fake", nil); return err },
		"no spec":    func() error { _, err := w.c.NewContainer(w.ctx, "l", nil, "fake", nil); return err },
		"load":       func() error { _, err := w.c.LoadContainer(w.ctx, "a/b"); return err },
		"exec id":    func() error { _, err := task.Exec(w.ctx, "*", &specs.Process{}, false, nil); return err },
		"own id":     func() error { _, err := task.Exec(w.ctx, "k", &specs.Process{}, false, nil); return err },
		"no process": func() error { _, err := task.Exec(w.ctx, "e", nil, false, nil); return err },
		"sandbox":    func() error { _, err := w.c.LoadSandbox(w.ctx, ""); return err },
		"sandboxer":  func() error { _, err := w.c.NewSandbox(w.ctx, sandbox.Sandbox{ID: "s"}); return err },
		"options":    func() error { _, err := libcontainerd.New(w.ctx, nil, libcontainerd.Options{}); return err },
		"directory": func() error {
			_, err := libcontainerd.New(w.ctx, w.f.connect(t), libcontainerd.Options{Namespace: "n", StateDir: "here", Backend: w.log})
			return err
		},
	} {
		if err := call(); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	w.must(task.ForceDelete(w.ctx))
}

// TestLocalErrorsHaveAClass: what fails on this machine has a class, too.
func TestLocalErrorsHaveAClass(t *testing.T) {
	w := newWorld(t, nil)
	ctr, err := w.c.NewContainer(w.ctx, "k", spec(), "fake", nil)
	w.must(err)
	task, err := ctr.Start(w.ctx, "", false, nil)
	w.must(err)
	w.expect("k", "create", "start")
	file := filepath.Join(t.TempDir(), "file")
	w.must(os.WriteFile(file, nil, 0o600))
	for err := errors.New("not yet"); err != nil; { // the start may still be being written down
		w.must(os.Rename(w.dir, filepath.Join(t.TempDir(), "old")))
		err = os.WriteFile(w.dir, nil, 0o600) // a file where a directory should be
	}
	for name, call := range map[string]func() error{
		"New": func() error {
			_, err := libcontainerd.New(w.ctx, w.f.connect(t), libcontainerd.Options{Namespace: "n", StateDir: file + "/state", Backend: w.log})
			return err
		},
		"Exec": func() error {
			_, err := task.Exec(w.ctx, "e", &specs.Process{Args: []string{"true"}}, false, nil)
			return err
		},
	} {
		if err := call(); !errdefs.IsInternal(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	w.f.end("k", "", 7)
	if _, err := task.Delete(w.ctx); !errdefs.IsInternal(err) {
		t.Errorf("Delete: %v", err)
	}
}
