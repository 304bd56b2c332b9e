package libcontainerd_test

import (
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"caisson/libcontainerd"
)

// mood is a backend that refuses, panics or waits, as a test wants it to.
type mood struct {
	mu  sync.Mutex
	act func(id string, event libcontainerd.EventType) error
}

func (m *mood) ProcessEvent(id string, event libcontainerd.EventType, _ libcontainerd.EventInfo) error {
	m.mu.Lock()
	act := m.act
	m.mu.Unlock()
	return act(id, event)
}

func (m *mood) set(act func(id string, event libcontainerd.EventType) error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.act = act
}

func content(string, libcontainerd.EventType) error { return nil }

func TestFailingBackendIsToldAgain(t *testing.T) {
	for name, fail := range map[string]func() error{
		"error": func() error { return errors.New("not now") },
		"panic": func() error { panic("not now") },
	} {
		t.Run(name, func(t *testing.T) {
			m := &mood{}
			bubble(t, func() *mood { return m }, func(w *world) {
				var times []time.Time
				m.set(func(id string, event libcontainerd.EventType) error {
					if id != "bad" || event != libcontainerd.EventStart || len(times) == 12 {
						return nil
					}
					times = append(times, time.Now())
					return fail()
				})
				w.has("bad", "good")
				w.load("bad")
				w.load("good")
				w.do("bad", "csx")
				w.do("good", "csx")
				w.expect("good", "create", "start", "exit 9")
				w.expect("bad", "create", "start", "exit 9")
				for i, wait := range []time.Duration{100 * time.Millisecond, 200 * time.Millisecond} {
					if got := times[i+1].Sub(times[i]); got != wait {
						t.Errorf("attempt %d came after %v, want %v", i+1, got, wait)
					}
				}
				if got := times[11].Sub(times[10]); got != 30*time.Second {
					t.Errorf("the last attempt came after %v", got)
				}
				w.end()
			})
		})
	}
}

func TestEventOfADeletedContainerIsGivenUp(t *testing.T) {
	m := &mood{}
	bubble(t, func() *mood { return m }, func(w *world) {
		m.set(func(string, libcontainerd.EventType) error { return errors.New("never") })
		w.has("k")
		ctr := w.load("k")
		w.do("k", "csxd")
		time.Sleep(time.Hour)
		w.must(ctr.Delete(w.ctx))
		time.Sleep(time.Minute / 2)
		if libcontainerd.LedgerSize(w.c, "k") == 0 {
			t.Error("given up at once")
		}
		time.Sleep(10 * time.Minute)
		if libcontainerd.LedgerSize(w.c, "k") > 0 || !w.empty() {
			t.Error("not given up")
		}
		w.end()
	})
}

func TestStatesCancelAndMerge(t *testing.T) {
	m := &mood{act: content}
	bubble(t, func() *mood { return m }, func(w *world) {
		release := make(chan struct{})
		m.set(func(_ string, event libcontainerd.EventType) error {
			if event == libcontainerd.EventStart {
				<-release
			}
			return nil
		})
		w.has("k")
		w.load("k")
		w.do("k", "csprpoooorp")
		synctest.Wait()
		close(release)
		w.expect("k", "create", "start", "oom", "paused")
		w.do("k", "rx")
		w.expect("k", "create", "start", "oom", "paused", "resumed", "exit 9")
		w.end()
	})
}

// TestLedgerStaysSmall: what is over is forgotten, whoever did it.
func TestLedgerStaysSmall(t *testing.T) {
	bubble(t, nil, func(w *world) {
		w.has("k")
		w.load("k")
		w.do("k", "cs")
		for range 2000 {
			w.do("k", "ASXD")
			synctest.Wait()
		}
		for range 200 {
			w.do("k", "xdcs")
			synctest.Wait()
		}
		if got, want := len(w.told("k")), 2+2000*3+200*3; got != want {
			t.Errorf("%d events, want %d", got, want)
		}
		if n := libcontainerd.LedgerSize(w.c, "k"); n > 520 {
			t.Errorf("the ledger has %d entries", n)
		}
		w.end()
		w.must(w.log.Check(false))
	})
}

func TestCloseWhileTheBackendFails(t *testing.T) {
	m := &mood{act: func(string, libcontainerd.EventType) error { return errors.New("never") }}
	bubble(t, func() *mood { return m }, func(w *world) {
		w.has("k")
		w.load("k")
		w.do("k", "cs")
		synctest.Wait()
		w.end()
		m.set(content)
		w.begin(w.log)
		w.load("k")
		w.expect("k", "create", "start")
		w.end()
	})
}
