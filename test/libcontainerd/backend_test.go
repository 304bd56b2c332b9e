package libcontainerd

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"caisson/libcontainerd"
)

// backendFunc is a backend.
type backendFunc func(id string, event libcontainerd.EventType, ei libcontainerd.EventInfo) error

func (f backendFunc) ProcessEvent(id string, event libcontainerd.EventType, ei libcontainerd.EventInfo) error {
	return f(id, event, ei)
}

// TestBackendFails: a backend that returns an error, or panics, gets the same event
// again, and other containers' events meanwhile.
func TestBackendFails(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		var mu sync.Mutex
		failing, seen := "", map[string]int{}
		release := make(chan struct{})
		e := s.engine(backendFunc(func(id string, event libcontainerd.EventType, _ libcontainerd.EventInfo) error {
			mu.Lock()
			defer mu.Unlock()
			if id != failing {
				return nil
			}
			seen[string(event)]++
			select {
			case <-release:
				return nil
			default:
			}
			if seen[string(event)]%2 == 0 {
				panic("a bug of the engine")
			}
			return errors.New("not now")
		}))
		c, bad := e.container("exit 30")
		mu.Lock()
		failing = bad
		mu.Unlock()
		_, err := c.Start(e.ctx(), "", false, discard)
		must(t, "Start", err)
		for range 3 {
			_, good := e.run("exit 31")
			e.expect(good, "create", "start", "exit 31")
		}
		must(t, "repetitions", poll(e.ctx(), func() error {
			mu.Lock()
			defer mu.Unlock()
			if seen["create"] < 3 {
				return fmt.Errorf("create was told %d times", seen["create"])
			}
			return nil
		}))
		close(release)
		e.expect(bad, "create", "start", "exit 30")
		mu.Lock()
		defer mu.Unlock()
		if seen["start"] != 1 || seen["exit"] != 1 {
			t.Errorf("told %v", seen)
		}
	})
}

// TestSlowBackend: when a backend is behind, Exec waits, and says so when its time
// is over; what waits does not grow. Nothing is lost when the backend comes round.
func TestSlowBackend(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		release := make(chan struct{})
		var once sync.Once
		unblock := func() { once.Do(func() { close(release) }) }
		var slow sync.Map
		e := s.engine(backendFunc(func(id string, event libcontainerd.EventType, _ libcontainerd.EventInfo) error {
			if _, ok := slow.Load(id); ok && event != libcontainerd.EventCreate {
				<-release
			}
			return nil
		}))
		t.Cleanup(unblock)
		c, id := e.container("exec sleep 1000")
		slow.Store(id, true)
		task, err := c.Start(e.ctx(), "", false, discard)
		must(t, "Start", err)
		const before = 128/3 - 1 // execs that need not wait
		var execs []string
		for i, wait := 0, 3*time.Second; ; i++ {
			if i > 200 {
				t.Fatalf("%d execs and no end", i)
			}
			name := fmt.Sprintf("x%d", i)
			ctx, cancel := e.ctx(), context.CancelFunc(func() {})
			if len(execs) >= before {
				ctx, cancel = context.WithTimeout(e.ctx(), wait)
			}
			p, err := task.Exec(ctx, name, command("true"), false, discard)
			cancel()
			if errdefs.IsResourceExhausted(err) {
				refused(t, "Exec", err, context.DeadlineExceeded)
				break
			}
			if errors.Is(err, context.DeadlineExceeded) && len(execs) >= before && wait < limit {
				wait *= 2 // it was the machine that was slow
				continue
			}
			must(t, "Exec", err)
			must(t, "exit", waitGone(e, p))
			execs = append(execs, name)
		}
		_, other := e.run("exit 32")
		e.expect(other, "create", "start", "exit 32")

		waiting := make(chan error, 1)
		go func() {
			_, err := task.Exec(e.ctx(), "late", shell("exit 33"), false, discard)
			waiting <- err
		}()
		unblock()
		must(t, "the Exec that waited", <-waiting)
		e.await(id, "exit late 33")
		for _, name := range execs {
			e.await(id, "exit "+name+" 0")
		}
	})
}

// waitGone deletes an exec once it has exited, which the backend may not know yet.
func waitGone(e *engine, p libcontainerd.Process) error {
	return poll(e.ctx(), func() error {
		_, err := p.Delete(e.ctx())
		return err
	})
}

// TestManyEvents: a backend that never takes an event while another program makes
// thousands of them: what the library keeps is bounded.
func TestManyEvents(t *testing.T) {
	if testing.Short() {
		t.Skip("left out: -short")
	}
	each(t, func(t *testing.T, s *server) {
		release := make(chan struct{})
		e := s.engine(backendFunc(func(_ string, event libcontainerd.EventType, _ libcontainerd.EventInfo) error {
			if event != libcontainerd.EventCreate {
				<-release
			}
			return nil
		}))
		c, id := e.container("exec sleep 1000")
		_, err := c.Start(e.ctx(), "", false, discard)
		must(t, "Start", err)
		other, ctx := s.other()
		theirs, err := other.LoadContainer(ctx, id)
		must(t, "load", err)
		task, err := theirs.Task(ctx, nil)
		must(t, "task", err)
		heap := func() uint64 {
			runtime.GC()
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			return m.HeapAlloc
		}
		before := heap()
		for range 100 {
			must(t, "pause", task.Pause(ctx))
			must(t, "resume", task.Resume(ctx))
		}
		if grown := int64(heap()) - int64(before); grown > 16<<20 {
			t.Errorf("the heap grew by %d bytes", grown)
		}
		close(release)
		e.await(id, "start")
		if n := strings.Count(strings.Join(e.told(id), " "), "paused"); n > 1 {
			t.Errorf("%d pauses were told, that the backend was too late for", n)
		}
	})
}
