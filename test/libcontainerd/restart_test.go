package libcontainerd

import (
	"context"
	"errors"
	"slices"
	"syscall"
	"testing"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"

	"caisson/libcontainerd"
)

// TestAttachAfterRestart: a program that ends and starts again connects to the
// stdio of its containers, which have gone on.
func TestAttachAfterRestart(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		for _, terminal := range []bool{false, true} {
			e := s.engine(nil)
			var opts []oci.SpecOpts
			if terminal {
				opts = append(opts, oci.WithTTY)
			}
			c, id := e.container(`while read -r line; do echo "got $line"; [ "$line" != end ] || exit 15; done`, opts...)
			var con console
			task, err := c.Start(e.ctx(), "", true, con.attach)
			must(t, "Start", err)
			e.await(id, "start")
			must(t, "write", con.write(e.ctx(), "one\n"))
			must(t, "output", con.await(e.ctx(), "got one"))
			e.close()
			con.Cancel()
			must(t, "close stdio", con.Close())

			again := e.reload(id)
			var con2 console
			same, err := again.AttachTask(e.ctx(), con2.attach)
			must(t, "AttachTask", err)
			if same.Pid() != task.Pid() {
				t.Errorf("pid %d, was %d", same.Pid(), task.Pid())
			}
			must(t, "write", con2.write(e.ctx(), "two\nend\n"))
			must(t, "output", con2.await(e.ctx(), "got two"))
			e.await(id, "exit 15")
			_, err = same.Delete(e.ctx())
			must(t, "Delete", err)
			e.expect(id, "create", "start", "exit 15")
			if err := con2.await(e.ctx(), "got end"); err != nil {
				t.Error(err)
			}
		}
	})
}

// TestMissedWhileAway: what happens while no program is there is told once when the
// container is loaded again, and only once.
func TestMissedWhileAway(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		e := s.engine(nil)
		c, created := e.container("exec sleep 1000")
		_, err := c.NewTask(e.ctx(), "", false, discard)
		must(t, "NewTask", err)
		running, ends := e.run("exec sleep 1000")
		task, execs := e.run("exec sleep 1000")
		_, err = task.Exec(e.ctx(), "x", command("sleep", "1000"), false, discard)
		must(t, "Exec", err)
		e.await(created, "create")
		e.await(ends, "start")
		e.await(execs, "exec-started x")
		e.close()

		other, ctx := s.other()
		load := func(id string) containerd.Task {
			c, err := other.LoadContainer(ctx, id)
			must(t, "load "+id, err)
			task, err := c.Task(ctx, nil)
			must(t, "task of "+id, err)
			return task
		}
		must(t, "start", load(created).Start(ctx))
		end := func(id, exec string) {
			var p containerd.Process = load(id)
			if exec != "" {
				if p, err = load(id).LoadProcess(ctx, exec, nil); err != nil {
					t.Fatal(err)
				}
			}
			exited, err := p.Wait(ctx)
			must(t, "wait", err)
			must(t, "kill", p.Kill(ctx, syscall.SIGKILL))
			<-exited
		}
		end(ends, "")
		end(execs, "x")

		for range 2 {
			e.open()
			for _, id := range []string{created, ends, execs} {
				e.load(id)
			}
			e.expect(created, "create", "start")
			e.expect(ends, "create", "start", "exit 137")
			e.expect(execs, "create", "start", "exec-added x", "exec-started x", "exit x 137")
			e.close()
		}
		e.open()
		if pid := e.log.Events(ends)[2].Info.Pid; pid != running.Pid() {
			t.Errorf("exit of pid %d, want %d", pid, running.Pid())
		}
	})
}

// TestDeletedWhileAway: a container that another program deleted meanwhile, with its
// exit, still has one: nobody can know the code any more.
func TestDeletedWhileAway(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		e := s.engine(nil)
		_, id := e.run("exec sleep 1000")
		e.await(id, "start")
		e.close()
		other, ctx := s.other()
		c, err := other.LoadContainer(ctx, id)
		must(t, "load", err)
		task, err := c.Task(ctx, nil)
		must(t, "task", err)
		_, err = task.Delete(ctx, containerd.WithProcessKill)
		must(t, "delete task", err)
		must(t, "delete", c.Delete(ctx))
		e.open()
		_, err = e.LoadContainer(e.ctx(), id)
		refused(t, "loading a container that is gone", err, errdefs.ErrNotFound)
		e.expect(id, "create", "start", "exit 255 lost")
		if lost := e.log.Events(id)[2]; !errdefs.IsDataLoss(lost.Info.Error) {
			t.Errorf("the error is %v", lost.Info.Error)
		}
	})
}

// TestServerRestarts: the server ends, gently and not, while containers and execs
// run, and some end while it is away.
func TestServerRestarts(t *testing.T) {
	eachAlone(t, func(t *testing.T, s *server) {
		for _, restart := range restarts {
			t.Run(restart.name, func(t *testing.T) {
				s := &server{Host: s.Host, place: s.place, t: t}
				e := s.engine(nil)
				stays, staysID := e.loop(20)
				ends, endsID := e.run("exec sleep 1000")
				code, codeID := e.loop(28)
				host, hostID := e.loop(21)
				going, err := host.Exec(e.ctx(), "going", command("sleep", "1000"), false, discard)
				must(t, "Exec", err)
				var con console
				short, err := host.Exec(e.ctx(), "short", shell(loop(22)), false, con.attach)
				must(t, "Exec", err)
				must(t, "output", con.await(e.ctx(), "ready"))
				e.await(hostID, "exec-started short")

				must(t, "end the server", restart.end(s))
				t.Cleanup(func() { s.ensure() })
				_, err = e.Version(e.ctxShort())
				refused(t, "Version of a server that is away", err, errdefs.ErrUnavailable, context.DeadlineExceeded)
				for pid, signal := range map[uint32]syscall.Signal{ends.Pid(): syscall.SIGKILL, short.Pid(): syscall.SIGTERM, code.Pid(): syscall.SIGTERM} {
					must(t, "kill", syscall.Kill(int(pid), signal))
				}
				must(t, "start the server again", s.again())

				e.awaitMissed(endsID, "exit 137")
				e.awaitMissed(codeID, "exit 28")
				e.await(hostID, "exit short 22")
				must(t, "Kill", going.Kill(e.ctx(), syscall.SIGKILL))
				e.await(hostID, "exit going 137")
				_, err = host.Exec(e.ctx(), "new", shell("exit 23"), false, discard)
				must(t, "Exec", err)
				e.await(hostID, "exit new 23")
				for _, task := range []interface{ Pid() uint32 }{stays, host} {
					must(t, "kill", syscall.Kill(int(task.Pid()), syscall.SIGTERM))
				}
				e.expect(staysID, "create", "start", "exit 20")
				e.expect(hostID, "create", "start", "exec-added going", "exec-started going", "exec-added short", "exec-started short",
					"exit short 22", "exit going 137", "exec-added new", "exec-started new", "exit new 23", "exit 21")
			})
		}
	})
}

// awaitMissed waits for the exit of a container that ended while the server was
// away. Of a runc whose processes have all ended, containerd throws the task away
// when it starts again, and nobody can ask for the exit.
func (e *engine) awaitMissed(id, want string) {
	e.t.Helper()
	exit, err := e.log.Wait(e.ctx(), func(event eventOf) bool { return event.ID == id && event.Type == libcontainerd.EventExit })
	must(e.t, "exit of "+id, err)
	got := line(exit)
	if e.s.runtime == runcRuntime && (got == "exit 137" || got == "exit 255 lost") {
		got = want
	}
	if told := e.told(id); got != want || len(told) != 3 {
		e.t.Errorf("told %q, want create, start, %s", told, want)
	}
}

// ensure starts the server if a spec has failed to.
func (s *server) ensure() {
	if !s.t.Failed() {
		return
	}
	if err := errors.Join(s.kill(), s.again()); err != nil {
		s.t.Logf("start the server again: %v", err)
	}
}

// TestServerAndProgramRestart: both are away while containers end.
func TestServerAndProgramRestart(t *testing.T) {
	eachAlone(t, func(t *testing.T, s *server) {
		e := s.engine(nil)
		task, id := e.loop(24)
		x, err := task.Exec(e.ctx(), "x", command("sleep", "1000"), false, discard)
		must(t, "Exec", err)
		e.await(id, "exec-started x")
		e.close()
		must(t, "kill the server", s.kill())
		must(t, "kill", syscall.Kill(int(x.Pid()), syscall.SIGKILL))
		must(t, "kill", syscall.Kill(int(task.Pid()), syscall.SIGTERM))
		must(t, "start the server again", s.again())
		e.reload(id)
		want := []string{"create", "start", "exec-added x", "exec-started x", "exit x 137", "exit 24"}
		_, err = e.log.Wait(e.ctx(), func(eventOf) bool { return len(e.told(id)) == len(want) })
		must(t, "exits", err)
		got := e.told(id)
		if s.runtime == runcRuntime { // see awaitMissed
			got, want = got[:4], want[:4]
		}
		if !slices.Equal(got, want) {
			t.Errorf("told %q, want %q", got, want)
		}
	})
}

// TestConnectionBreaks: the connections to the server are cut again and again while
// containers and execs come and go.
func TestConnectionBreaks(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		p := newProxy(t, s.Address)
		e := s.engineBy(nil, p.client(s.Token))
		task, id := e.run("exec sleep 1000")
		other, ctx := s.other()
		for range 5 {
			p.pause()
			started := otherExec(ctx, t, other, id, unique("x"), "exit 25")
			must(t, "end", started.wait())
			ended := unique("y")
			running := otherExec(ctx, t, other, id, ended, "exec sleep 1000")
			p.resume()
			e.await(id, "exec-started "+ended)
			p.pause()
			must(t, "kill", running.Kill(ctx, syscall.SIGKILL))
			must(t, "end", running.wait())
			p.resume()
			e.await(id, "exit "+ended+" 137")
			must(t, "delete", started.remove())
			must(t, "delete", running.remove())
			name := unique("z")
			_, err := task.Exec(e.ctx(), name, shell("exit 26"), false, discard)
			must(t, "Exec", err)
			e.await(id, "exit "+name+" 26")
		}
	})
}

// TestOtherProgram: a second client does as it likes with a container that we
// loaded.
func TestOtherProgram(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		e := s.engine(nil)
		c, id := e.container("exec sleep 1000")
		other, ctx := s.other()
		theirs, err := other.LoadContainer(ctx, id)
		must(t, "load", err)
		first, err := c.NewTask(e.ctx(), "", false, discard)
		must(t, "NewTask", err)
		task, err := theirs.Task(ctx, nil)
		must(t, "task", err)
		must(t, "start", task.Start(ctx))
		e.await(id, "start")
		expectStatus(t, e, first, containerd.Running)
		x := otherExec(ctx, t, other, id, "x", "exit 27")
		must(t, "end", x.wait())
		e.await(id, "exit x 27")
		must(t, "delete", x.remove())
		must(t, "pause", task.Pause(ctx))
		e.await(id, "paused")
		must(t, "resume", task.Resume(ctx))
		e.await(id, "resumed")
		_, err = task.Delete(ctx, containerd.WithProcessKill)
		must(t, "delete", err)
		e.expect(id, "create", "start", "exec-added x", "exec-started x", "exit x 27", "paused", "resumed", "exit 137")

		// A task that is theirs alone.
		task, err = theirs.NewTask(ctx, cio.NullIO, s.endpoint(e)...)
		must(t, "new task", err)
		must(t, "start", task.Start(ctx))
		e.await(id, "start")
		ours, err := c.Task(e.ctx())
		must(t, "Task", err)
		if ours.Pid() != task.Pid() {
			t.Errorf("pid %d, want %d", ours.Pid(), task.Pid())
		}
		_, err = task.Delete(ctx, containerd.WithProcessKill)
		must(t, "delete", err)
		_, err = ours.Status(e.ctx())
		refused(t, "Status of a task that they deleted", err, errdefs.ErrNotFound)
		must(t, "delete", theirs.Delete(ctx))
		e.expectAll(id, "create", "start", "exec-added x", "exec-started x", "exit x 27", "paused", "resumed", "exit 137",
			"create", "start", "exit 137")
		refused(t, "Delete", c.Delete(e.ctx()), errdefs.ErrNotFound)
		if got := e.told(id); !slices.Contains(got, "exit 137") {
			t.Errorf("told %q", got)
		}
	})
}
