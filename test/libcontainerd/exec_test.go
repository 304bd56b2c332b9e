package libcontainerd

import (
	"fmt"
	"syscall"
	"testing"

	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"

	"caisson/libcontainerd"
	"caisson/libcontainerd/eventtest"
)

type (
	eventOf = eventtest.Event
	specOpt = oci.SpecOpts
)

func withEnv(env ...string) oci.SpecOpts { return oci.WithEnv(env) }

func TestExec(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		e := s.engine(nil)
		task, id := e.loop(11)
		want := []string{"create", "start"}
		for _, code := range []int{0, 1, 42, 255} {
			name := fmt.Sprintf("x%d", code)
			var con console
			p, err := task.Exec(e.ctx(), name, shell(fmt.Sprintf("echo $$ $PPID; exit %d", code)), false, con.attach)
			must(t, "Exec", err)
			exit := e.await(id, fmt.Sprintf("exit %s %d", name, code))
			if exit.Info.Pid != p.Pid() || p.Pid() == 0 {
				t.Errorf("pid %d, the exit has %d", p.Pid(), exit.Info.Pid)
			}
			st, err := p.Delete(e.ctx())
			must(t, "Delete", err)
			if int(st.ExitCode()) != code || !st.ExitTime().Equal(exit.Info.ExitedAt) {
				t.Errorf("Delete says %d at %s, the event %s", st.ExitCode(), st.ExitTime(), exit)
			}
			if con.stdout() == "" {
				t.Error("no output")
			}
			want = append(want, "exec-added "+name, "exec-started "+name, fmt.Sprintf("exit %s %d", name, code))
		}
		var con console
		p, err := task.Exec(e.ctx(), "killed", shell("echo ready; exec sleep 1000"), false, con.attach)
		must(t, "Exec", err)
		must(t, "output", con.await(e.ctx(), "ready")) // until then it is runc, which ignores the signal
		_, err = p.Delete(e.ctx())
		refused(t, "deleting an exec that runs", err, errdefs.ErrFailedPrecondition)
		must(t, "Kill", p.Kill(e.ctx(), syscall.SIGUSR1))
		e.await(id, "exit killed 138")
		refused(t, "killing an exec that has exited", p.Kill(e.ctx(), syscall.SIGKILL), errdefs.ErrNotFound)
		_, err = p.Delete(e.ctx())
		must(t, "Delete", err)
		_, err = p.Delete(e.ctx())
		refused(t, "deleting an exec twice", err, errdefs.ErrNotFound)
		must(t, "Kill", task.Kill(e.ctx(), syscall.SIGTERM))
		e.expect(id, append(want, "exec-added killed", "exec-started killed", "exit killed 138", "exit 11")...)
	})
}

// TestExecRefused: ids that are bad or taken, programs that are not there, and
// containers that do not run. What was never started has no start and no exit.
func TestExecRefused(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		e := s.engine(nil)
		c, id := e.container("exec sleep 1000")
		task, err := c.NewTask(e.ctx(), "", false, discard)
		must(t, "NewTask", err)
		_, err = task.Exec(e.ctx(), "early", shell("exit"), false, discard)
		refused(t, "an exec in a created container", err, errdefs.ErrFailedPrecondition)
		must(t, "Start", task.Start(e.ctx()))
		for _, bad := range []string{"", "a b", id} {
			_, err := task.Exec(e.ctx(), bad, shell("exit"), false, discard)
			refused(t, "the exec id "+bad, err, errdefs.ErrInvalidArgument)
		}
		_, err = task.Exec(e.ctx(), "nil", nil, false, discard)
		refused(t, "no process", err, errdefs.ErrInvalidArgument)
		_, err = task.Exec(e.ctx(), "bad", command("/no/such/program"), false, discard)
		refused(t, "a program that is not there", err, errdefs.ErrUnknown, errdefs.ErrNotFound, errdefs.ErrInvalidArgument)
		t.Logf("a program that is not there: %v", err)

		_, err = task.Exec(e.ctx(), "x", command("sleep", "1000"), false, discard)
		must(t, "Exec", err)
		_, err = task.Exec(e.ctx(), "x", command("sleep", "1000"), false, discard)
		refused(t, "an exec id that is taken", err, errdefs.ErrAlreadyExists)
		p, err := task.Exec(e.ctx(), "bad", shell("exit 12"), false, discard)
		must(t, "the id of what failed", err)
		e.await(id, "exit bad 12")
		_, err = p.Delete(e.ctx())
		must(t, "Delete", err)
		must(t, "Kill", task.Kill(e.ctx(), syscall.SIGKILL))
		e.await(id, "exit 137")
		_, err = task.Exec(e.ctx(), "late", shell("exit"), false, discard)
		refused(t, "an exec in a container that has ended", err, errdefs.ErrFailedPrecondition, errdefs.ErrNotFound)
		for _, event := range e.log.Events(id) {
			if event.Type == libcontainerd.EventExit && (event.Info.ProcessID == "early" || event.Info.ProcessID == "late") {
				t.Errorf("told: %s", event)
			}
		}
	})
}

// TestExecsEndFirst: the exits of execs come before that of their container, which
// ends them.
func TestExecsEndFirst(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		e := s.engine(nil)
		task, id := e.run("exec sleep 1000")
		const execs = 5
		for i := range execs {
			_, err := task.Exec(e.ctx(), fmt.Sprintf("x%d", i), command("sleep", "1000"), false, discard)
			must(t, "Exec", err)
		}
		must(t, "Kill", task.Kill(e.ctx(), syscall.SIGKILL))
		e.await(id, "exit 137")
		told := e.told(id)
		if len(told) != 3+3*execs || told[len(told)-1] != "exit 137" {
			t.Errorf("told %q", told)
		}
	})
}

// TestQuickExits: a process that ends at once has its start before its exit.
func TestQuickExits(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		e := s.engine(nil)
		for code := range 5 {
			_, id := e.run(fmt.Sprintf("exit %d", code))
			e.expect(id, "create", "start", fmt.Sprintf("exit %d", code))
		}
		task, id := e.run("exec sleep 1000")
		for code := range 10 {
			_, err := task.Exec(e.ctx(), fmt.Sprintf("x%d", code), shell(fmt.Sprintf("exit %d", code)), false, discard)
			must(t, "Exec", err)
		}
		for code := range 10 {
			e.await(id, fmt.Sprintf("exit x%d %d", code, code))
		}
	})
}
