package libcontainerd

import (
	"context"
	"slices"
	"syscall"
	"testing"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/errdefs"

	"caisson/libcontainerd"
)

func TestVersion(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		e := s.engine(nil)
		v, err := e.Version(e.ctx())
		must(t, "Version", err)
		want, err := s.Client("").Version(e.ctx())
		must(t, "Version", err)
		if v != want || v.Version == "" {
			t.Errorf("version %v, want %v", v, want)
		}
	})
}

func TestNewContainerRefuses(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		e := s.engine(nil)
		_, id := e.container("exit 0")
		spec := s.spec(id, "exit 0")
		for _, bad := range []string{"", "a b", "../x", "a/b", ".", "-a", "ä", string(make([]byte, 200))} {
			_, err := e.NewContainer(e.ctx(), bad, spec, s.runtime, nil)
			refused(t, "the id "+bad, err, errdefs.ErrInvalidArgument)
			_, err = e.LoadContainer(e.ctx(), bad)
			refused(t, "loading the id "+bad, err, errdefs.ErrInvalidArgument)
		}
		_, err := e.NewContainer(e.ctx(), unique("c"), nil, s.runtime, nil)
		refused(t, "no spec", err, errdefs.ErrInvalidArgument)
		_, err = e.NewContainer(e.ctx(), id, spec, s.runtime, nil)
		refused(t, "an id that is taken", err, errdefs.ErrAlreadyExists)
		_, err = e.LoadContainer(e.ctx(), unique("none"))
		refused(t, "loading what is not there", err, errdefs.ErrNotFound)
		ended, cancel := context.WithCancel(e.ctx())
		cancel()
		_, err = e.NewContainer(ended, unique("c"), spec, s.runtime, nil)
		refused(t, "a context that has ended", err, context.Canceled)
	})
}

// TestLife: a container from its creation to its deletion, and once more with the
// same container: it may run any number of times.
func TestLife(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		e := s.engine(nil)
		c, id := e.container("exec sleep 1000")
		_, err := c.Task(e.ctx())
		refused(t, "Task before NewTask", err, errdefs.ErrNotFound)
		for range 2 {
			task, err := c.NewTask(e.ctx(), "", false, discard)
			must(t, "NewTask", err)
			expectStatus(t, e, task, containerd.Created)
			_, err = c.NewTask(e.ctx(), "", false, discard)
			refused(t, "a second task", err, errdefs.ErrAlreadyExists)
			refused(t, "deleting a container with a task", c.Delete(e.ctx()), errdefs.ErrFailedPrecondition)
			_, err = task.Delete(e.ctx())
			refused(t, "deleting a task that was not started", err, errdefs.ErrFailedPrecondition)
			must(t, "Start", task.Start(e.ctx()))
			must(t, "Start again", task.Start(e.ctx()))
			expectStatus(t, e, task, containerd.Running)
			_, err = task.Delete(e.ctx())
			refused(t, "deleting a task that runs", err, errdefs.ErrFailedPrecondition)
			same, err := c.Task(e.ctx())
			must(t, "Task", err)
			if same.Pid() != task.Pid() || task.Pid() == 0 {
				t.Errorf("Task has pid %d, NewTask had %d", same.Pid(), task.Pid())
			}
			before := time.Now()
			must(t, "Kill", same.Kill(e.ctx(), syscall.SIGKILL))
			st := deleteEnded(t, e, task)
			if st.ExitCode() != 137 || st.ExitTime().Before(before.Add(-time.Second)) || st.ExitTime().After(time.Now()) {
				t.Errorf("exit %d at %s, killed at %s", st.ExitCode(), st.ExitTime(), before)
			}
			_, err = task.Delete(e.ctx())
			refused(t, "deleting a task twice", err, errdefs.ErrNotFound)
			refused(t, "killing a deleted task", task.Kill(e.ctx(), syscall.SIGKILL), errdefs.ErrNotFound)
		}
		e.expectAll(id, "create", "start", "exit 137", "create", "start", "exit 137")
		must(t, "Delete", c.Delete(e.ctx()))
		_, err = e.LoadContainer(e.ctx(), id)
		refused(t, "loading a deleted container", err, errdefs.ErrNotFound)
	})
}

func expectStatus(t *testing.T, e *engine, task libcontainerd.Task, want containerd.ProcessStatus) {
	t.Helper()
	st, err := task.Status(e.ctx())
	must(t, "Status", err)
	if st.Status != want {
		t.Errorf("status %s, want %s", st.Status, want)
	}
}

// deleteEnded waits for the process's exit, of which the event tells, and deletes
// it.
func deleteEnded(t *testing.T, e *engine, task libcontainerd.Task) *containerd.ExitStatus {
	t.Helper()
	_, err := e.log.Wait(e.ctx(), func(event eventOf) bool {
		return event.Type == libcontainerd.EventExit && event.Info.Pid == task.Pid()
	})
	must(t, "exit", err)
	st, err := task.Delete(e.ctx())
	must(t, "Delete", err)
	return st
}

// expectAll waits until as many events were told, and compares them.
func (e *engine) expectAll(id string, want ...string) {
	e.t.Helper()
	_, err := e.log.Wait(e.ctx(), func(eventOf) bool { return len(e.log.Events(id)) >= len(want) })
	if got := e.told(id); err != nil || !slices.Equal(got, want) {
		e.t.Errorf("told %q, want %q (%v)", got, want, err)
	}
}

// TestStart is the older form: NewTask and start in one.
func TestStart(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		e := s.engine(nil)
		c, id := e.container("echo hello; exit 3")
		var con console
		task, err := c.Start(e.ctx(), "", false, con.attach)
		must(t, "Start", err)
		e.expect(id, "create", "start", "exit 3")
		_, err = task.Delete(e.ctx())
		must(t, "Delete", err)
		if con.stdout() != "hello\n" {
			t.Errorf("output %q", con.stdout())
		}
	})
}

// TestStartFails: what cannot be started has no start and no exit, and leaves
// nothing but its container.
func TestStartFails(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		e := s.engine(nil)
		id := unique("c")
		spec := s.spec(id, "exit 0")
		spec.Process.Args = []string{"/no/such/program"}
		c, err := e.newContainer(e.ctx(), id, spec, s.snapshot(id))
		must(t, "NewContainer", err)
		e.ids = append(e.ids, id)
		_, err = c.Start(e.ctx(), "", false, discard)
		refused(t, "a program that is not there", err, errdefs.ErrUnknown, errdefs.ErrNotFound, errdefs.ErrInvalidArgument)
		_, err = c.Task(e.ctx())
		refused(t, "Task", err, errdefs.ErrNotFound)
		for _, event := range e.told(id) {
			if event != "create" {
				t.Errorf("told %q", event)
			}
		}
		must(t, "Delete", c.Delete(e.ctx()))
	})
}

// TestForceDelete removes a task whatever its state.
func TestForceDelete(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		e := s.engine(nil)
		for _, state := range []string{"created", "running", "paused", "stopped", "gone"} {
			c, id := e.container(`[ -z "$ENDS" ] || exit 2; exec sleep 1000`, func() specOpt {
				if state == "stopped" {
					return withEnv("ENDS=1")
				}
				return withEnv("A=B")
			}())
			task, err := c.NewTask(e.ctx(), "", false, discard)
			must(t, "NewTask", err)
			want := []string{"create"}
			if state != "created" {
				must(t, "Start", task.Start(e.ctx()))
				want = append(want, "start")
			}
			switch state {
			case "running":
				_, err := task.Exec(e.ctx(), "x", command("sleep", "1000"), false, discard)
				must(t, "Exec", err)
				want = append(want, "exec-added x", "exec-started x", "exit x 137", "exit 137")
			case "paused":
				must(t, "Pause", task.Pause(e.ctx()))
				e.await(id, "paused")
				want = append(want, "paused", "exit 137")
			case "stopped":
				e.await(id, "exit 2")
				want = append(want, "exit 2")
			case "gone":
				must(t, "ForceDelete", task.ForceDelete(e.ctx()))
				want = append(want, "exit 137")
			}
			must(t, "ForceDelete of one "+state, task.ForceDelete(e.ctx()))
			must(t, "ForceDelete repeated", task.ForceDelete(e.ctx()))
			_, err = c.Task(e.ctx())
			refused(t, "Task", err, errdefs.ErrNotFound)
			must(t, "Delete", c.Delete(e.ctx()))
			e.await(id, want[len(want)-1])
			got := slices.DeleteFunc(e.told(id), func(l string) bool { return l == "resumed" }) // the kill may resume it first
			if !slices.Equal(got, want) {
				t.Errorf("%s: told %q, want %q", state, got, want)
			}
		}
	})
}

func TestPauseAndResume(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		e := s.engine(nil)
		task, id := e.loop(9)
		told := []string{"create", "start"}
		// A pause that is not told yet would be taken back by the resume.
		expect := func(event string) {
			t.Helper()
			told = append(told, event)
			e.expectAll(id, told...)
		}
		for range 2 {
			must(t, "Pause", task.Pause(e.ctx()))
			refused(t, "pausing twice", task.Pause(e.ctx()), errdefs.ErrFailedPrecondition)
			expectStatus(t, e, task, containerd.Paused)
			expect("paused")
			must(t, "Resume", task.Resume(e.ctx()))
			expect("resumed")
			expectStatus(t, e, task, containerd.Running)
		}
		must(t, "Kill", task.Kill(e.ctx(), syscall.SIGTERM))
		expect("exit 9")
	})
}

// TestClosed: a closed client refuses everything, and can be closed again.
func TestClosed(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		e := s.engine(nil)
		task, id := e.run("exec sleep 1000")
		must(t, "Close", e.Close())
		must(t, "Close again", e.Close())
		_, err := e.Version(e.ctx())
		refused(t, "Version", err, libcontainerd.ErrClosed)
		refused(t, "Kill", task.Kill(e.ctx(), syscall.SIGKILL), libcontainerd.ErrClosed)
		_, err = task.Exec(e.ctx(), "x", shell("exit"), false, discard)
		refused(t, "Exec", err, libcontainerd.ErrClosed)
		must(t, "close the connection", e.conn.Close())
		e.reload(id)
	})
}
