package libcontainerd

import (
	"context"
	"maps"
	"slices"
	"syscall"
	"testing"
	"time"

	cgroup1 "github.com/containerd/cgroups/v3/cgroup1/stats"
	cgroup2 "github.com/containerd/cgroups/v3/cgroup2/stats"
	"github.com/containerd/errdefs"

	"caisson/libcontainerd"
	"caisson/test/daemon"
)

// eachSandboxer runs a spec on the servers that have the sandboxer.
func eachSandboxer(t *testing.T, spec func(t *testing.T, s *server)) {
	t.Helper()
	t.Parallel()
	for _, p := range places {
		if p.caisson() && !p.sandbox {
			t.Run(p.Name, func(t *testing.T) {
				t.Parallel()
				spec(t, p.use(t))
			})
		}
	}
}

// TestSandbox: its life, with a container in it.
func TestSandbox(t *testing.T) {
	eachSandboxer(t, func(t *testing.T, s *server) {
		e := s.engine(nil)
		before := time.Now().Add(-time.Second)
		sb := e.newSandbox()
		e.sandbox = sb
		id := sb.ID()
		e.expect(id, "create")
		_, err := e.NewSandbox(e.ctx(), record(id))
		refused(t, "an id that is taken", err, errdefs.ErrAlreadyExists)
		must(t, "Start", sb.Start(e.ctx()))
		e.expect(id, "create", "start")
		refused(t, "starting twice", sb.Start(e.ctx()), errdefs.ErrFailedPrecondition)

		st, err := sb.Status(e.ctx(), true)
		must(t, "Status", err)
		if st.SandboxID != id || st.Pid == 0 || st.CreatedAt.Before(before) || st.Info["info"] == "" {
			t.Errorf("status %+v", st)
		}
		if pid := e.log.Events(id)[1].Info.Pid; pid != st.Pid {
			t.Errorf("started as pid %d, status says %d", pid, st.Pid)
		}
		for _, event := range e.log.Events(id) {
			if event.Info.SandboxID != id || event.Info.ContainerID != "" || event.Info.ProcessID != id {
				t.Errorf("told of %+v", event.Info)
			}
		}

		c := unique("c")
		ctr, err := sb.NewContainer(e.ctx(), c, s.spec(c, "echo ready; exec sleep 1000"), s.runtime, nil, s.snapshot(c))
		must(t, "NewContainer", err)
		e.ids = append(e.ids, c)
		var con console
		_, err = ctr.Start(e.ctx(), "", false, con.attach)
		must(t, "Start", err)
		// As long as it is runc, Go's runtime would end it with code 2 at a SIGTERM.
		must(t, "output", con.await(e.ctx(), "ready"))
		m, err := sb.Metrics(e.ctx())
		must(t, "Metrics", err)
		switch m.Metrics.(type) {
		case *cgroup1.Metrics, *cgroup2.Metrics:
		default:
			t.Errorf("metrics are %T", m.Metrics)
		}
		labels := map[string]string{"tier": "test"}
		change := record(id)
		change.Labels = labels
		must(t, "Update", sb.Update(e.ctx(), change, "labels"))
		other, ctx := s.other()
		stored, err := other.SandboxStore().Get(ctx, id)
		must(t, "Get", err)
		if !maps.Equal(stored.Labels, labels) {
			t.Errorf("labels %v", stored.Labels)
		}

		ended := make(chan error, 1)
		go func() {
			_, err := sb.Wait(e.ctx())
			ended <- err
		}()
		must(t, "Stop", sb.Stop(e.ctx(), 2*time.Second))
		must(t, "Stop again", sb.Stop(e.ctx(), 2*time.Second))
		must(t, "Wait", <-ended)
		e.await(c, "exit 137")
		e.await(id, "exit 0")
		ours, err := ctr.Task(e.ctx())
		if err == nil {
			must(t, "ForceDelete", ours.ForceDelete(e.ctx()))
		}
		must(t, "Delete", ctr.Delete(e.ctx()))
		must(t, "Shutdown", sb.Shutdown(e.ctx()))
		must(t, "Shutdown again", sb.Shutdown(e.ctx()))
		_, err = e.LoadSandbox(e.ctx(), id)
		refused(t, "loading a sandbox that is gone", err, errdefs.ErrNotFound)
		e.expect(id, "create", "start", "exit 0")
		e.expect(c, "create", "start", "exit 137")
	})
}

// TestSandboxShutdown removes a sandbox whatever its state.
func TestSandboxShutdown(t *testing.T) {
	eachSandboxer(t, func(t *testing.T, s *server) {
		e := s.engine(nil)
		created := e.newSandbox()
		must(t, "Shutdown", created.Shutdown(e.ctx()))
		e.expect(created.ID(), "create")
		started := e.newSandbox()
		must(t, "Start", started.Start(e.ctx()))
		must(t, "Shutdown", started.Shutdown(e.ctx()))
		e.expect(started.ID(), "create", "start", "exit 0")
	})
}

// TestSandboxMissed: a sandbox that ends while no program is there.
func TestSandboxMissed(t *testing.T) {
	eachSandboxer(t, func(t *testing.T, s *server) {
		e := s.engine(nil)
		e.sandbox = e.newSandbox()
		id := e.sandbox.ID()
		must(t, "Start", e.sandbox.Start(e.ctx()))
		st, err := e.sandbox.Status(e.ctx(), false)
		must(t, "Status", err)
		e.expect(id, "create", "start")
		e.close()
		must(t, "kill", syscall.Kill(int(st.Pid), syscall.SIGKILL))
		e.open()
		event, err := e.log.Wait(e.ctx(), func(event eventOf) bool { return event.ID == id && event.Type == libcontainerd.EventExit })
		must(t, "exit", err)
		if event.Info.Error != nil || event.Info.Pid != st.Pid {
			t.Errorf("told %s", event)
		}
		if got := e.told(id); len(got) != 3 {
			t.Errorf("told %q", got)
		}
	})
}

// TestSandboxServerRestarts: sandboxes outlive their server.
func TestSandboxServerRestarts(t *testing.T) {
	for _, p := range places {
		if !p.caisson() || p.sandbox {
			continue
		}
		t.Run(p.Name, func(t *testing.T) {
			s := p.use(t)
			e := s.engine(nil)
			e.sandbox = e.newSandbox()
			id := e.sandbox.ID()
			must(t, "Start", e.sandbox.Start(e.ctx()))
			e.expect(id, "create", "start")
			must(t, "kill the server", s.kill())
			must(t, "start the server again", s.again())
			must(t, "Stop", poll(e.ctx(), func() error { return e.sandbox.Stop(e.ctx(), 0) }))
			e.expect(id, "create", "start", "exit 0")
		})
	}
}

// TestNoSandboxer: a server without it says so, and nothing is left.
func TestNoSandboxer(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		e := s.engine(nil)
		id := unique("sandbox")
		sb := record(id)
		sb.Sandboxer = "none"
		_, err := e.NewSandbox(e.ctx(), sb)
		refused(t, "a sandboxer that is not there", err, errdefs.ErrNotFound)
		_, err = e.LoadSandbox(e.ctx(), id)
		refused(t, "loading what was not made", err, errdefs.ErrNotFound)
		for _, bad := range []string{"", "a b"} {
			_, err := e.NewSandbox(e.ctx(), record(bad))
			refused(t, "the id "+bad, err, errdefs.ErrInvalidArgument)
		}
		sb = record(id)
		sb.Sandboxer = ""
		_, err = e.NewSandbox(e.ctx(), sb)
		refused(t, "no sandboxer", err, errdefs.ErrInvalidArgument)
		if s.runtime != runcRuntime {
			return
		}
		// containerd's own sandboxer needs a runtime that has sandboxes, which
		// runc's has not.
		sb = record(id)
		sb.Sandboxer, sb.Runtime.Name = "shim", runcRuntime
		made, err := e.NewSandbox(e.ctx(), sb)
		if err == nil {
			err = made.Start(e.ctx())
			must(t, "Shutdown", made.Shutdown(e.ctx()))
		}
		if err != nil {
			refused(t, "a sandbox of runc's shim", err, classes...)
		}
		if got := e.told(id); slices.Contains(got, "start") && !slices.ContainsFunc(got, func(l string) bool { return l != "create" && l != "start" }) {
			t.Errorf("told %q", got)
		}
	})
}

// poll is for what gives no notice.
func poll(ctx context.Context, f func() error) error { return daemon.Poll(ctx, limit, f) }
