package libcontainerd_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"

	"caisson/libcontainerd"
	"caisson/libcontainerd/eventtest"
)

// program is one life of the calling program. A kill takes it between two events, or
// after the backend took one and before that was written down.
type program struct {
	next libcontainerd.Backend

	mu     sync.Mutex
	killed bool
	last   map[string][]eventtest.Event // that the programs before took, of each container
}

func (p *program) ProcessEvent(id string, event libcontainerd.EventType, ei libcontainerd.EventInfo) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.killed {
		return errors.New("killed")
	}
	now := eventtest.Event{ID: id, Type: event, Info: ei}
	last := p.last[id]
	if i := slices.IndexFunc(last, func(e eventtest.Event) bool { return same(e, now) }); i >= 0 {
		p.last[id] = slices.Delete(last, i, i+1)
		return nil
	}
	p.last[id] = slices.DeleteFunc(last, mayRecur)
	return p.next.ProcessEvent(id, event, ei)
}

// mayRecur: a later event may be the same in earnest.
func mayRecur(e eventtest.Event) bool {
	switch e.Type {
	case libcontainerd.EventStart, libcontainerd.EventExecStarted, libcontainerd.EventExit:
		return e.Info.Pid == 0
	}
	return true
}

func same(a, b eventtest.Event) bool {
	lost := errdefs.IsDataLoss(a.Info.Error) == errdefs.IsDataLoss(b.Info.Error)
	at := a.Info.ExitedAt.Equal(b.Info.ExitedAt)
	a.Info.Error, b.Info.Error, a.Info.ExitedAt, b.Info.ExitedAt = nil, nil, time.Time{}, time.Time{}
	return a == b && lost && at
}

// kill ends the program and returns its successor.
func (p *program) kill(log *eventtest.Log) *program {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.killed = true
	next := &program{next: p.next, last: map[string][]eventtest.Event{}}
	last := map[string]eventtest.Event{}
	for _, e := range log.Events("") {
		last[e.ID] = e
	}
	for id, e := range last {
		next.last[id] = append(slices.Clone(p.last[id]), e)
	}
	return next
}

// TestKilledBeforeItIsWrittenDown kills the program after each event that the
// backend took: the event comes again, with the same content, and no other does.
func TestKilledBeforeItIsWrittenDown(t *testing.T) {
	steps := []struct {
		do   string
		want string
	}{{"c", "create"}, {"s", "start"}, {"A", "exec-added e"}, {"S", "exec-started e"}, {"p", "paused"}, {"r", "resumed"},
		{"X", "exit e 7"}, {"o", "oom"}, {"x", "exit 9"}}
	for kill := range steps {
		t.Run(steps[kill].want, func(t *testing.T) {
			m := &mood{act: content}
			bubble(t, func() *mood { return m }, func(w *world) {
				taken := 0
				log := &eventtest.Log{Next: m}
				w.end()
				w.log = log
				w.begin(w.log)
				w.has("k")
				w.load("k")
				var want, late []string
				for i, step := range steps {
					killed := make(chan struct{})
					m.set(func(string, libcontainerd.EventType) error {
						taken++
						if i == kill && taken == i+1 {
							w.f.cut(true)
							w.move()
							close(killed)
						}
						return nil
					})
					w.do("k", step.do)
					want = append(append(want, late...), step.want)
					late = nil
					w.expect("k", want...)
					if i == kill {
						<-killed
						w.end()
						if step.do == "x" || step.do == "X" {
							w.do("k", map[string]string{"x": "d", "X": "D"}[step.do]) // the server forgets as well
						}
						w.begin(w.log)
						w.load("k")
						time.Sleep(time.Minute)
						if step.do != "A" || len(w.told("k")) > len(want) {
							want = append(want, step.want)
						} else { // nobody wrote it down, or can be asked about it before it starts
							late = []string{step.want}
						}
						w.expect("k", want...)
						events := w.log.Events("k")
						if a, b := events[i], events[len(want)-1]; !same(a, b) {
							t.Errorf("told %s, then %s", a, b)
						}
					}
				}
				w.end()
			})
		})
	}
}

func TestOneClientForADirectory(t *testing.T) {
	bubble(t, nil, func(w *world) {
		_, err := libcontainerd.New(w.ctx, w.f.connect(w.t), libcontainerd.Options{Namespace: namespace, StateDir: w.dir, Backend: w.log})
		if !errdefs.IsFailedPrecondition(err) {
			t.Errorf("second client: %v", err)
		}
		w.end()
		w.begin(w.log)
		w.end()
		w.end() // Close may be repeated
		if _, err := w.c.LoadContainer(w.ctx, "k"); !errors.Is(err, libcontainerd.ErrClosed) {
			t.Errorf("closed client: %v", err)
		}
	})
}

// TestLateEvents: the stream is behind what calls have answered.
func TestLateEvents(t *testing.T) {
	w := newWorld(t, nil)
	ctr, err := w.c.NewContainer(w.ctx, "k", spec(), "fake", nil)
	w.must(err)
	task, err := ctr.Start(w.ctx, "", false, nil)
	w.must(err)
	w.expect("k", "create", "start")
	w.f.hold()
	want := []string{"create", "start"}
	for range 3 {
		p, err := task.Exec(w.ctx, "e", &specs.Process{Args: []string{"true"}}, false, nil)
		w.must(err)
		w.f.end("k", "e", 7)
		_, err = p.Delete(w.ctx)
		w.must(err)
		want = append(want, "exec-added e", "exec-started e", "exit e 7")
		w.expect("k", want...)
	}
	w.must(task.Pause(w.ctx))
	w.must(task.Resume(w.ctx))
	p, err := task.Exec(w.ctx, "e", &specs.Process{Args: []string{"true"}}, false, nil)
	w.must(err)
	w.expect("k", append(want, "exec-added e", "exec-started e")...)
	w.f.release()
	w.f.end("k", "e", 8)
	_, err = w.log.Wait(w.ctx, func(e eventtest.Event) bool { return short(e) == "exit e 8" })
	w.must(err)
	_, err = p.Delete(w.ctx)
	w.must(err)
	w.f.hold()
	w.must(task.ForceDelete(w.ctx))
	task, err = ctr.Start(w.ctx, "", false, nil)
	w.must(err)
	w.f.release()
	w.must(task.ForceDelete(w.ctx))
	w.must(ctr.Delete(w.ctx))
	_, err = w.log.Wait(w.ctx, func(eventtest.Event) bool { // the second task's
		told := w.told("k")
		return told[len(told)-1] == "exit 137" && slices.Index(told, "exit 137") < len(told)-1
	})
	w.must(err)
	w.end()
	w.must(w.log.Check(true))
	got := slices.DeleteFunc(w.told("k"), func(s string) bool { return s == "paused" || s == "resumed" })
	want = append(want, "exec-added e", "exec-started e", "exit e 8", "exit 137", "create", "start", "exit 137")
	if !slices.Equal(got, want) {
		t.Errorf("told %q, want %q", got, want)
	}
}

// TestLateStartOfAnExec: the start of an exec is heard when another of the id is about
// to start, and the backend has not taken what it was told of the first.
func TestLateStartOfAnExec(t *testing.T) {
	m := &mood{act: content}
	w := newWorld(t, m)
	ctr, err := w.c.NewContainer(w.ctx, "k", spec(), "fake", nil)
	w.must(err)
	task, err := ctr.Start(w.ctx, "", false, nil)
	w.must(err)
	w.expect("k", "create", "start")
	release := make(chan struct{})
	m.set(func(string, libcontainerd.EventType) error { <-release; return nil })
	w.f.hold()
	for i := range 2 {
		if i == 1 {
			w.f.before("start", func() error {
				w.f.release()
				time.Sleep(100 * time.Millisecond) // it is heard
				return nil
			})
		}
		p, err := task.Exec(w.ctx, "e", &specs.Process{Args: []string{"true"}}, false, nil)
		w.must(err)
		w.f.end("k", "e", 7)
		_, err = p.Delete(w.ctx)
		w.must(err)
	}
	close(release)
	w.must(task.ForceDelete(w.ctx))
	w.must(ctr.Delete(w.ctx))
	exec := []string{"exec-added e", "exec-started e", "exit e 7"}
	w.expect("k", slices.Concat([]string{"create", "start"}, exec, exec, []string{"exit 137"})...)
	if got, want := exits(w.log, "k"), w.f.truth("k"); !slices.Equal(got, want) {
		t.Errorf("told %v, want %v", got, want)
	}
	w.end()
}

func TestExecWaitsForRoom(t *testing.T) {
	m := &mood{act: content}
	w := newWorld(t, m)
	release := make(chan struct{})
	m.set(func(string, libcontainerd.EventType) error { <-release; return nil })
	ctr, err := w.c.NewContainer(w.ctx, "k", spec(), "fake", nil)
	w.must(err)
	task, err := ctr.Start(w.ctx, "", false, nil)
	w.must(err)
	exec := func(ctx context.Context) error {
		p, err := task.Exec(ctx, "e", &specs.Process{Args: []string{"true"}}, false, nil)
		if err != nil {
			return err
		}
		w.f.end("k", "e", 0)
		_, err = p.Delete(w.ctx)
		return err
	}
	n := 0
	for ; err == nil && n < 200; n++ {
		ctx, cancel := context.WithTimeout(w.ctx, 300*time.Millisecond)
		err = exec(ctx)
		cancel()
	}
	if !errdefs.IsResourceExhausted(err) || n < 40 {
		t.Errorf("after %d execs: %v", n, err)
	}
	close(release)
	w.must(exec(w.ctx))
	w.must(task.ForceDelete(w.ctx))
	w.must(ctr.Delete(w.ctx))
	_, err = w.log.Wait(w.ctx, func(e eventtest.Event) bool { return short(e) == "exit 137" })
	w.must(err)
	w.end()
	w.must(w.log.Check(true))
	if !w.empty() {
		t.Error("something is left in the state directory")
	}
}

// TestEngineDeletesFromItsBackend: a daemon deletes the task and the container while
// it is told of the exit.
func TestEngineDeletesFromItsBackend(t *testing.T) {
	m := &mood{act: content}
	w := newWorld(t, m)
	ctr, err := w.c.NewContainer(w.ctx, "k", spec(), "fake", nil)
	w.must(err)
	task, err := ctr.Start(w.ctx, "", true, nil)
	w.must(err)
	m.set(func(_ string, event libcontainerd.EventType) error {
		if event != libcontainerd.EventExit {
			return nil
		}
		_, err := task.Delete(w.ctx)
		return errors.Join(err, ctr.Delete(w.ctx))
	})
	w.f.end("k", "", 3)
	w.expect("k", "create", "start", "exit 3")
	w.end()
	if !w.empty() {
		t.Error("something is left in the state directory")
	}
}

func TestSandbox(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { sandboxLife(newWorld(t, nil)) })
}

// TestTaskThatNobodyStarted: NewTask gets no answer, and what it made ends before
// anyone looks. It looks like one that ran; but it has no start, and no exit.
func TestTaskThatNobodyStarted(t *testing.T) {
	for _, restart := range []bool{false, true} {
		bubble(t, nil, func(w *world) {
			ctr, err := w.c.NewContainer(w.ctx, "k", spec(), "fake", nil)
			w.must(err)
			w.f.hold() // the stream is late as well
			w.f.lose(1)
			if _, err := ctr.NewTask(w.ctx, "", false, nil); !errdefs.IsUnavailable(err) {
				t.Fatalf("a call without an answer: %v", err)
			}
			w.f.lose(0)
			w.f.end("k", "", 137)
			if restart {
				w.end()
				w.begin(w.log)
				ctr = w.load("k")
			}
			_, err = ctr.Task(w.ctx)
			w.must(err)
			w.expect("k", "create")
			w.f.release()
			task, err := ctr.Start(w.ctx, "", false, nil)
			w.must(err)
			w.must(task.ForceDelete(w.ctx))
			w.expect("k", "create", "create", "start", "exit 137")
			w.end()
		})
	}
}

// TestTaskThatIsMadeLate: the server comes to do what a NewTask without an answer asked
// for when the repetition has looked for it.
func TestTaskThatIsMadeLate(t *testing.T) {
	w := newWorld(t, nil)
	ctr, err := w.c.NewContainer(w.ctx, "k", spec(), "fake", nil)
	w.must(err)
	attempts := 0
	w.f.before("create", func() error {
		switch attempts++; attempts {
		case 1:
			return errAway
		case 2:
			w.do("k", "c")
		}
		return nil
	})
	for _, is := range []func(error) bool{errdefs.IsUnavailable, errdefs.IsAlreadyExists} {
		if _, err := ctr.NewTask(w.ctx, "", false, nil); !is(err) {
			t.Errorf("attempt %d: %v", attempts, err)
		}
	}
	task, err := ctr.Start(w.ctx, "", false, nil)
	w.must(err)
	w.must(task.ForceDelete(w.ctx))
	w.must(ctr.Delete(w.ctx))
	w.expect("k", "create", "create", "start", "exit 137")
	w.end()
}

// TestInterruptedExec: the server gives the start of an exec up when the connection
// breaks. The exec is made anew, for a second start would spoil it.
func TestInterruptedExec(t *testing.T) {
	w := newWorld(t, nil)
	ctr, err := w.c.NewContainer(w.ctx, "k", spec(), "fake", nil)
	w.must(err)
	task, err := ctr.Start(w.ctx, "", false, nil)
	w.must(err)
	w.f.spoil()
	p, err := task.Exec(w.ctx, "e", &specs.Process{Args: []string{"true"}}, false, nil)
	w.must(err)
	w.f.end("k", "e", 7)
	w.expect("k", "create", "start", "exec-added e", "exec-started e", "exit e 7")
	_, err = p.Delete(w.ctx)
	w.must(err)
	w.must(task.ForceDelete(w.ctx))
	w.must(ctr.Delete(w.ctx))
	w.end()
}

// TestDeletedWhileTheClientCloses: the server's last word on a container is its deletion,
// which comes while the client is closed. Nobody may load the container again, so what
// was kept of it goes now.
func TestDeletedWhileTheClientCloses(t *testing.T) {
	for call, remove := range map[string]func(*world, libcontainerd.Container) error{
		"forget": func(w *world, ctr libcontainerd.Container) error { return ctr.Delete(w.ctx) },
		"find": func(w *world, _ libcontainerd.Container) error {
			w.do("k", "K")
			if _, err := w.c.LoadContainer(w.ctx, "k"); !errdefs.IsNotFound(err) {
				return fmt.Errorf("load of a container that is gone: %w", err)
			}
			return nil
		},
	} {
		t.Run(call, func(t *testing.T) {
			bubble(t, nil, func(w *world) {
				w.has("k")
				w.do("k", "cs")
				ctr := w.load("k")
				w.do("k", "xd")
				w.expect("k", "create", "start", "exit 9")
				closed := make(chan error, 1)
				w.f.before(call, func() error {
					go func() { closed <- w.c.Close() }()
					synctest.Wait() // it waits for the call, which the server answers all the same
					return nil
				})
				w.must(remove(w, ctr))
				w.must(<-closed)
				if !w.empty() {
					t.Error("something is left in the state directory")
				}
			})
		})
	}
}
