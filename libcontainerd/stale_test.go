package libcontainerd_test

import (
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"caisson/libcontainerd"
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
