package libcontainerd_test

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"

	"caisson/libcontainerd"
	"caisson/libcontainerd/eventtest"
)

// bubble runs the test in no time; when it ends no goroutine may be left.
func bubble(t *testing.T, next func() *mood, test func(w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		if next != nil {
			test(newWorld(t, next()))
			return
		}
		test(newWorld(t, nil))
	})
}

func TestOtherProgramIsHeard(t *testing.T) {
	bubble(t, nil, func(w *world) {
		w.has("k")
		w.load("k")
		w.do("k", "csASXD")
		w.expect("k", "create", "start", "exec-added e", "exec-started e", "exit e 7")
		w.do("k", "p")
		w.expect("k", "create", "start", "exec-added e", "exec-started e", "exit e 7", "paused")
		w.do("k", "ro")
		w.do("k", "xdcsxd")
		w.expect("k", "create", "start", "exec-added e", "exec-started e", "exit e 7", "paused", "resumed", "oom", "exit 9",
			"create", "start", "exit 9")
		w.end()
		w.must(w.log.Check(true))
	})
}

// TestOtherProgramIsFoundOut: what happens while the client hears nothing.
func TestOtherProgramIsFoundOut(t *testing.T) {
	tests := map[string]struct {
		before, away string
		want         []string
	}{
		"start":           {"", "cs", []string{"create", "start"}},
		"start and exit":  {"", "csx", []string{"create", "start", "exit 9"}},
		"gone unseen":     {"", "csxd", nil},
		"exec":            {"cs", "AS", []string{"create", "start", "exec-added e", "exec-started e"}},
		"exec's exit":     {"csAS", "X", []string{"create", "start", "exec-added e", "exec-started e", "exit e 7"}},
		"exec unseen":     {"cs", "ASX", []string{"create", "start"}},
		"paused":          {"cs", "p", []string{"create", "start", "paused"}},
		"started, paused": {"", "csp", []string{"create", "start", "paused"}},
		"resumed":         {"csp", "r", []string{"create", "start", "paused", "resumed"}},
		"paused unseen":   {"cs", "pr", []string{"create", "start"}},
		"oom":             {"cs", "ooo", []string{"create", "start", "oom"}},
		"another oom":     {"cso", "oo", []string{"create", "start", "oom"}},
		"exit":            {"cs", "x", []string{"create", "start", "exit 9"}},
		"lost exit":       {"cs", "xd", []string{"create", "start", "exit 255 lost"}},
		"lost, with exec": {"csAS", "xd", []string{"create", "start", "exec-added e", "exec-started e", "exit e 255 lost", "exit 255 lost"}},
		"replaced":        {"csAS", "xdcs", []string{"create", "start", "exec-added e", "exec-started e", "exit e 255 lost", "exit 255 lost", "create", "start"}},
		"exec replaced":   {"csAS", "XDAS", []string{"create", "start", "exec-added e", "exec-started e", "exit e 255 lost", "exec-added e", "exec-started e"}},
		"replaced unseen": {"c", "sxdcs", []string{"create", "create", "start"}},
	}
	for name, test := range tests {
		for _, restarted := range []bool{false, true} {
			if restarted {
				name += ", restarted"
			}
			t.Run(name, func(t *testing.T) {
				bubble(t, nil, func(w *world) {
					w.has("k")
					w.load("k")
					w.do("k", test.before)
					synctest.Wait()
					if restarted {
						w.end()
						w.do("k", test.away)
						w.begin(w.log)
						w.load("k")
					} else {
						w.f.cut(true)
						w.do("k", test.away)
						w.f.cut(false)
						w.hears()
					}
					time.Sleep(time.Minute) // of the bubble's: whatever may come has come
					w.expect("k", test.want...)
					w.end()
					w.must(w.log.Check(false))
				})
			})
		}
	}
}

// TestFailedExecsAreForgotten: no event says that the start of an exec failed. Those
// that the server has forgotten do not count any more.
func TestFailedExecsAreForgotten(t *testing.T) {
	bubble(t, nil, func(w *world) {
		w.has("k")
		w.load("k")
		w.do("k", "csA")
		want := []string{"create", "start", "exec-added e"}
		o := w.f.other()
		for i := range 3000 {
			id := fmt.Sprint("probe", i)
			_, err := o.Exec(w.ctx, &tasks.ExecProcessRequest{ContainerID: "k", ExecID: id})
			w.must(err)
			_, err = o.DeleteProcess(w.ctx, &tasks.DeleteProcessRequest{ContainerID: "k", ExecID: id})
			w.must(err)
			want = append(want, "exec-added "+id)
			if i%500 == 0 {
				time.Sleep(2 * time.Minute)
			}
		}
		time.Sleep(2 * time.Minute)
		if n := libcontainerd.LedgerSize(w.c, "k"); n > 520 {
			t.Errorf("the ledger has %d entries", n)
		}
		w.do("k", "SX") // that one was not forgotten
		w.expect("k", append(want, "exec-started e", "exit e 7")...)
		w.end()
		w.must(w.log.Check(false))
	})
}

// TestForgottenExecHadStarted: the events of an exec are later than the answer that the
// server does not know it.
func TestForgottenExecHadStarted(t *testing.T) {
	bubble(t, nil, func(w *world) {
		w.has("k")
		w.load("k")
		w.do("k", "csA")
		synctest.Wait()
		w.f.hold()
		w.do("k", "SXD")
		time.Sleep(time.Minute)
		if n := libcontainerd.LedgerSize(w.c, "k"); n > 3 { // itself, the task and a tombstone
			t.Errorf("the ledger has %d entries", n)
		}
		w.f.release()
		want := []string{"create", "start", "exec-added e", "exec-started e", "exit e 7"}
		w.expect("k", want...)
		w.do("k", "ASX")
		w.expect("k", append(want, "exec-added e", "exec-started e", "exit e 7")...)
		w.end()
		w.must(w.log.Check(false))
	})
}

// TestStartOfAnExecIsNeverKnown: the program is killed while it starts an exec, or its
// call ends without an answer, and another program replaces the task before anyone
// can ask.
func TestStartOfAnExecIsNeverKnown(t *testing.T) {
	for name, killed := range map[string]bool{"killed": true, "no answer": false} {
		t.Run(name, func(t *testing.T) {
			bubble(t, nil, func(w *world) {
				w.end()
				prog := &program{next: w.log, last: map[string][]eventtest.Event{}}
				w.begin(prog)
				w.has("k")
				w.load("k")
				w.do("k", "cs")
				task, err := w.load("k").Task(w.ctx)
				w.must(err)
				ctx, cancel := context.WithCancel(w.ctx)
				w.f.before("start", func() error {
					w.f.cut(true)
					if killed {
						prog = prog.kill(w.log)
						w.move()
					}
					cancel()
					return errAway
				})
				if _, err := task.Exec(ctx, "e", &specs.Process{Args: []string{"true"}}, false, nil); err == nil {
					t.Error("an exec without an answer")
				}
				w.do("k", "xdcs")
				if killed {
					w.end()
					w.begin(prog)
					w.load("k")
				} else {
					w.f.cut(false)
					w.hears()
				}
				w.expect("k", "create", "start", "exec-added e", "exit 255 lost", "create", "start")
				w.do("k", "xd")
				w.expect("k", "create", "start", "exec-added e", "exit 255 lost", "create", "start", "exit 9")
				synctest.Wait()
				if n := libcontainerd.LedgerSize(w.c, "k"); n > 4 { // itself and tombstones
					t.Errorf("the ledger has %d entries", n)
				}
				w.end()
				w.must(w.log.Check(true))
			})
		})
	}
}

func TestExitOfADeletedContainer(t *testing.T) {
	bubble(t, nil, func(w *world) {
		w.has("k", "l")
		w.load("k")
		w.load("l")
		w.do("k", "cs")
		w.expect("k", "create", "start")
		w.end()
		w.do("k", "xdK")
		w.begin(w.log)
		for range 2 {
			if _, err := w.c.LoadContainer(w.ctx, "k"); !errdefs.IsNotFound(err) {
				t.Errorf("load: %v", err)
			}
		}
		w.expect("k", "create", "start", "exit 255 lost")
		w.end()
		if !w.empty() {
			t.Error("something is left in the state directory")
		}
	})
}
