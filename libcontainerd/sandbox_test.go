package libcontainerd_test

import (
	"testing"
	"testing/synctest"
	"time"

	sandboxapi "github.com/containerd/containerd/api/services/sandbox/v1"
	"github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/errdefs"

	"caisson/libcontainerd"
)

// sandboxLife goes through everything a sandbox has, with a restart of the program
// at each step.
func sandboxLife(w *world) {
	t := w.t
	sb, err := w.c.NewSandbox(w.ctx, sandbox.Sandbox{ID: "s", Sandboxer: sandboxer})
	w.must(err)
	again := func() {
		t.Helper()
		w.end()
		w.begin(w.log)
		sb, err = w.c.LoadSandbox(w.ctx, "s")
		w.must(err)
	}
	again()
	w.expect("s", "create")
	w.must(sb.Start(w.ctx))
	again()
	w.expect("s", "create", "start")
	if err := sb.Start(w.ctx); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("second start: %v", err)
	}
	if st, err := sb.Status(w.ctx, true); err != nil || st.State != "SANDBOX_READY" {
		t.Errorf("status: %+v, %v", st, err)
	}
	if m, err := sb.Metrics(w.ctx); err != nil || m.Metrics == nil {
		t.Errorf("metrics: %+v, %v", m, err)
	}
	w.must(sb.Update(w.ctx, sandbox.Sandbox{Labels: map[string]string{"a": "b"}}, "labels"))
	w.end()
	w.f.endSandbox("s", 4)
	w.begin(w.log)
	sb, err = w.c.LoadSandbox(w.ctx, "s")
	w.must(err)
	w.expect("s", "create", "start", "exit 4")
	if st, err := sb.Wait(w.ctx); err != nil || st.ExitCode() != 4 {
		t.Errorf("wait: %+v, %v", st, err)
	}
	for range 2 {
		w.must(sb.Stop(w.ctx, time.Second))
	}
	for range 2 {
		w.must(sb.Shutdown(w.ctx))
	}
	sb, err = w.c.NewSandbox(w.ctx, sandbox.Sandbox{ID: "s", Sandboxer: sandboxer})
	w.must(err)
	w.must(sb.Start(w.ctx))
	w.must(sb.Shutdown(w.ctx))
	w.expect("s", "create", "start", "exit 4", "create", "start", "exit 137")
	if _, err := w.c.LoadSandbox(w.ctx, "s"); !errdefs.IsNotFound(err) {
		t.Errorf("load: %v", err)
	}
	w.end()
	w.must(w.log.Check(true))
	if !w.empty() {
		t.Error("something is left in the state directory")
	}
}

// TestSandboxLifeUnseen: what happens to a sandbox while the client hears nothing.
func TestSandboxLifeUnseen(t *testing.T) {
	bubble(t, nil, func(w *world) {
		sb, err := w.c.NewSandbox(w.ctx, sandbox.Sandbox{ID: "s", Sandboxer: sandboxer})
		w.must(err)
		w.f.cut(true)
		other := controllers{f: w.f.other()}
		_, err = other.Start(w.ctx, &sandboxapi.ControllerStartRequest{SandboxID: "s"})
		w.must(err)
		w.f.cut(false)
		w.hears()
		w.expect("s", "create", "start")
		w.f.breakStreams()
		w.f.endSandbox("s", 5)
		w.expect("s", "create", "start", "exit 5")
		w.must(sb.Shutdown(w.ctx))
		w.end()
		if libcontainerd.LedgerSize(w.c, "s") != 0 || !w.empty() {
			t.Error("something is left")
		}
	})
}

// TestSandboxIsAskedAgain: the question that an event leads to gets no answer, and the
// stream goes on.
func TestSandboxIsAskedAgain(t *testing.T) {
	bubble(t, nil, func(w *world) {
		_, err := w.c.NewSandbox(w.ctx, sandbox.Sandbox{ID: "s", Sandboxer: sandboxer})
		w.must(err)
		w.expect("s", "create")
		synctest.Wait() // what the subscription had asked for is known
		asked := 0
		w.f.before("sandbox", func() error {
			if asked++; asked < 5 {
				return errAway
			}
			return nil
		})
		_, err = controllers{f: w.f.other()}.Start(w.ctx, &sandboxapi.ControllerStartRequest{SandboxID: "s"})
		w.must(err)
		w.expect("s", "create", "start")
		w.f.before("sandbox", func() error { return errAway })
		w.end() // which does not wait for an answer
	})
}
