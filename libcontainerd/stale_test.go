package libcontainerd_test

import (
	"syscall"
	"testing"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"

	"caisson/libcontainerd"
	"caisson/libcontainerd/eventtest"
)

// TestStaleContainer: what an engine keeps of a container that was deleted does nothing
// to another of the id.
func TestStaleContainer(t *testing.T) {
	for name, told := range map[string]bool{"forgotten": true, "still being told of": false} {
		t.Run(name, func(t *testing.T) {
			m := &mood{act: content}
			w := newWorld(t, m)
			release := make(chan struct{})
			m.set(func(_ string, event libcontainerd.EventType) error {
				if !told && event == libcontainerd.EventExit {
					<-release
				}
				return nil
			})
			old, err := w.c.NewContainer(w.ctx, "k", spec(), "fake", nil)
			w.must(err)
			task, err := old.Start(w.ctx, "", false, nil)
			w.must(err)
			w.must(task.ForceDelete(w.ctx))
			w.must(old.Delete(w.ctx))
			for told && libcontainerd.LedgerSize(w.c, "k") > 0 {
				time.Sleep(time.Millisecond)
			}
			calls := map[string]func() error{
				"NewTask":    func() error { _, err := old.NewTask(w.ctx, "", false, nil); return err },
				"Start":      func() error { _, err := old.Start(w.ctx, "", false, nil); return err },
				"Task":       func() error { _, err := old.Task(w.ctx); return err },
				"AttachTask": func() error { _, err := old.AttachTask(w.ctx, nil); return err },
				"Delete":     func() error { return old.Delete(w.ctx) },
			}
			refused := func() {
				t.Helper()
				for name, call := range calls {
					if err := call(); !errdefs.IsNotFound(err) {
						t.Errorf("%s: %v", name, err)
					}
				}
			}
			refused()
			if told && !w.empty() {
				t.Error("something is left in the state directory")
			}
			ctr, err := w.c.NewContainer(w.ctx, "k", spec(), "fake", nil)
			w.must(err)
			refused()
			task, err = ctr.Start(w.ctx, "", false, nil)
			w.must(err)
			refused()
			w.must(task.ForceDelete(w.ctx))
			w.must(ctr.Delete(w.ctx))
			close(release)
			w.expect("k", "create", "start", "exit 137", "create", "start", "exit 137")
			w.end()
			w.must(w.log.Check(true))
			if !w.empty() {
				t.Error("something is left in the state directory")
			}
		})
	}
}

// TestTaskOfADeletedContainer: another program has deleted the container.
func TestTaskOfADeletedContainer(t *testing.T) {
	w := newWorld(t, nil)
	ctr, err := w.c.NewContainer(w.ctx, "k", spec(), "fake", nil)
	w.must(err)
	w.do("k", "K")
	w.f.before("create", func() error { return errdefs.ErrNotFound })
	if _, err := ctr.NewTask(w.ctx, "", false, nil); !errdefs.IsNotFound(err) {
		t.Errorf("new task: %v", err)
	}
	for began := time.Now(); !w.empty(); time.Sleep(time.Millisecond) {
		if time.Since(began) > 10*time.Second {
			t.Fatal("something is left in the state directory")
		}
	}
	w.end()
}

// TestStaleProcess: what an engine keeps of a task or an exec that was deleted does
// nothing to another of the id.
func TestStaleProcess(t *testing.T) {
	w := newWorld(t, nil)
	ctr, err := w.c.NewContainer(w.ctx, "k", spec(), "fake", nil)
	w.must(err)
	unstarted, err := ctr.NewTask(w.ctx, "", false, nil)
	w.must(err)
	w.must(unstarted.ForceDelete(w.ctx))
	old, err := ctr.Start(w.ctx, "", false, nil)
	w.must(err)
	exec := func(task libcontainerd.Task) libcontainerd.Process {
		t.Helper()
		p, err := task.Exec(w.ctx, "e", &specs.Process{Args: []string{"true"}}, false, nil)
		w.must(err)
		return p
	}
	oldExec := exec(old)
	w.f.end("k", "e", 7)
	w.expect("k", "create", "create", "start", "exec-added e", "exec-started e", "exit e 7")
	refused := func(calls map[string]func() error) {
		t.Helper()
		for name, call := range calls {
			if err := call(); !errdefs.IsNotFound(err) {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	process := func(p libcontainerd.Process) map[string]func() error {
		return map[string]func() error{
			"Kill":   func() error { return p.Kill(w.ctx, syscall.SIGKILL) },
			"Resize": func() error { return p.Resize(w.ctx, 80, 25) },
			"Delete": func() error { _, err := p.Delete(w.ctx); return err },
		}
	}
	w.do("k", "DA") // added by another program, and not started yet
	refused(process(oldExec))
	w.do("k", "S")
	refused(process(oldExec))
	w.expect("k", "create", "create", "start", "exec-added e", "exec-started e", "exit e 7", "exec-added e", "exec-started e")

	w.must(old.ForceDelete(w.ctx))
	task, err := ctr.Start(w.ctx, "", false, nil)
	w.must(err)
	exec(task)
	refused(process(oldExec))
	refused(process(old))
	refused(map[string]func() error{
		"Start":            func() error { return unstarted.Start(w.ctx) },
		"Pause":            func() error { return old.Pause(w.ctx) },
		"Resume":           func() error { return old.Resume(w.ctx) },
		"Stats":            func() error { _, err := old.Stats(w.ctx); return err },
		"Pids":             func() error { _, err := old.Pids(w.ctx); return err },
		"Summary":          func() error { _, err := old.Summary(w.ctx); return err },
		"Status":           func() error { _, err := old.Status(w.ctx); return err },
		"UpdateResources":  func() error { return old.UpdateResources(w.ctx, &libcontainerd.Resources{}) },
		"CreateCheckpoint": func() error { return old.CreateCheckpoint(w.ctx, t.TempDir(), false) },
		"Exec": func() error {
			_, err := old.Exec(w.ctx, "f", &specs.Process{Args: []string{"true"}}, false, nil)
			return err
		},
	})
	if st, err := task.Status(w.ctx); err != nil || st.Status != containerd.Running {
		t.Errorf("the new task: %+v, %v", st, err)
	}
	w.must(task.ForceDelete(w.ctx))
	w.must(ctr.Delete(w.ctx))
	_, err = w.log.Wait(w.ctx, func(eventtest.Event) bool { return len(exits(w.log, "k")) == 5 })
	w.must(err)
	w.end()
	w.must(w.log.Check(true))
}
