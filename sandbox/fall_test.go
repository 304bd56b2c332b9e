package sandbox

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	"golang.org/x/sys/unix"

	api "caisson/api/caisson/sandbox/v1"
	"caisson/internal/task"
)

// processes lists those that have the rig's directory on their command line or are
// in a cgroup of its; zombies have and are neither.
func (r *rig) processes() (list []string) {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		r.t.Fatal(err)
	}
	for _, dir := range dirs {
		line, _ := os.ReadFile(dir + "/cmdline") // it may have ended
		group, _ := os.ReadFile(dir + "/cgroup")
		if dir != fmt.Sprintf("/proc/%d", os.Getpid()) && len(line) > 0 && bytes.Contains(append(line, group...), []byte(filepath.Base(r.dir))) {
			list = append(list, dir+" "+string(bytes.ReplaceAll(line, []byte{0}, []byte{' '})))
		}
	}
	return list
}

// slowRuntime is runc that takes its time to create and to execute, and what tells
// that it has begun.
func (r *rig) slowRuntime() (path string, begun func()) {
	path, mark := filepath.Join(r.dir, "slow-runc"), filepath.Join(r.dir, "begun")
	script := "#!/bin/sh\ncase \"$*\" in *create*|*exec*) : >" + mark + "; sleep 0.3;; esac\nexec runc \"$@\"\n"
	if err := os.WriteFile(path, []byte(script), 0o700); err != nil {
		r.t.Fatal(err)
	}
	return path, func() {
		r.t.Helper()
		r.eventually("the runtime begins", func() bool { return os.Remove(mark) == nil })
	}
}

// pids are those of the sandbox's monitor and holder.
func (r *rig) pids(sandboxID string) map[string]int {
	r.t.Helper()
	b, err := r.ctl.find(r.ctx(), sandboxID)
	if err != nil {
		r.t.Fatal(err)
	}
	return map[string]int{"monitor": b.instance().Host().Pid(), "holder": b.instance().Pid()}
}

// TestFallenWalls kills monitors and holders while all kinds of things go on in
// their sandboxes. Each time the sandbox is told as stopped at once, all that was in
// it has ended, each exit is told once, and the other sandbox has not noticed.
func TestFallenWalls(t *testing.T) {
	over := func() {}
	quiet := func(*rig) func() { return over }
	busy := func(r *rig) func() {
		r.container("sb", "c", "busybox sleep 1000 & exec busybox sleep 1000")
		r.exec("sb", "c", "e", "/bin/busybox", "sleep", "1000")
		if _, err := r.tasks("sb").Start(r.ctx(), "c", "e"); err != nil {
			r.t.Fatal(err)
		}
		if _, err := r.ctl.CreateTask(r.ctx(), "sb", task.CreateRequest{ID: "waits", Bundle: r.bundle("waits", "true")}); err != nil {
			r.t.Fatal(err)
		}
		return over
	}
	exits := []string{"exit c c 137", "exit c e 137", "exit waits waits 137"}
	for name, tc := range map[string]struct {
		options *api.Options
		before  func(*rig) (over func()) // returns when its calls are over
		exits   []string
	}{
		"idle":       {&api.Options{}, quiet, nil},
		"busy":       {&api.Options{}, busy, exits},
		"shared PID": {&api.Options{Namespaces: &api.Namespaces{SharePid: true}}, busy, exits},
		"creating": {&api.Options{}, func(r *rig) func() {
			runtime, begun := r.slowRuntime()
			opts, err := typeurl.MarshalAny(&options.Options{BinaryName: runtime})
			if err != nil {
				r.t.Fatal(err)
			}
			bundle := r.bundle("c", "busybox sleep 1000")
			var calls sync.WaitGroup
			calls.Go(func() {
				// Whether it fails depends on who is killed.
				_, _ = r.ctl.CreateTask(r.ctx(), "sb", task.CreateRequest{ID: "c", Bundle: bundle, Options: opts})
			})
			begun()
			return calls.Wait
		}, nil},
		"executing": {&api.Options{}, func(r *rig) func() {
			runtime, begun := r.slowRuntime()
			opts, err := typeurl.MarshalAny(&options.Options{BinaryName: runtime})
			if err != nil {
				r.t.Fatal(err)
			}
			r.start("sb", task.CreateRequest{ID: "c", Bundle: r.bundle("c", "busybox sleep 1000"), Options: opts})
			begun()
			r.exec("sb", "c", "e", "/bin/busybox", "sleep", "1000")
			tasks := r.tasks("sb")
			var calls sync.WaitGroup
			calls.Go(func() { _, _ = tasks.Start(r.ctx(), "c", "e") })
			begun()
			return calls.Wait
		}, []string{"exit c c 137"}},
	} {
		for _, victim := range []string{"monitor", "holder"} {
			for _, away := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s/%s/away=%t", name, victim, away), func(t *testing.T) {
					t.Parallel()
					r := newRig(t)
					r.run("other", &api.Options{})
					r.container("other", "spared", "busybox sleep 1000")
					r.run("sb", tc.options)
					over := tc.before(r)
					r.fell(victim, away)
					over()
					exits := slices.Clone(tc.exits)
					if victim == "monitor" && away { // Nobody knows how they ended.
						for i := range exits {
							exits[i] = strings.TrimSuffix(exits[i], "137") + "255"
						}
					}
					r.checkFallen(victim, exits)
				})
			}
		}
	}
}

// fell kills, with or without a daemon that sees it.
func (r *rig) fell(victim string, away bool) {
	r.t.Helper()
	pid := r.pids("sb")[victim]
	if away {
		r.close()
	}
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		r.t.Fatal(err)
	}
	if away {
		r.open()
	}
}

func (r *rig) checkFallen(victim string, exits []string) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.ctx(), 8*time.Second)
	defer cancel()
	if exit, err := r.ctl.Wait(ctx, "sb"); err != nil || exit.ExitStatus == 0 || exit.ExitedAt.IsZero() {
		r.t.Fatalf("wait %+v, %v", exit, err)
	}
	status, err := r.ctl.Status(ctx, "sb", true)
	if err != nil || status.State != stateNotReady || !strings.Contains(status.Info["info"], victim+" died") {
		r.t.Errorf("status %+v, %v", status, err)
	}
	monitors, holders := r.ctl.Deaths()
	if want := map[string][2]uint64{"monitor": {1, 0}, "holder": {0, 1}}[victim]; want != [2]uint64{monitors, holders} {
		r.t.Errorf("%d monitors and %d holders died", monitors, holders)
	}
	states, reports := r.ctl.States(), r.ctl.Reports()
	if states[Ready] != 1 || states[Stopped] != 1 || len(states) != len(allowed) {
		r.t.Errorf("states: %v", states)
	}
	if len(reports) != 2 || reports[0].ID != "other" || reports[0].MonitorPid == 0 || !slices.Equal(reports[0].Containers, []string{"spared"}) ||
		reports[1].State != Stopped || reports[1].MonitorPid != 0 || !strings.Contains(reports[1].Reason, victim+" died") {
		r.t.Errorf("reports: %+v", reports)
	}
	inSandbox := func(list []string) (found []string) {
		for _, p := range list {
			group, _ := os.ReadFile(strings.Fields(p)[0] + "/cgroup")
			if !strings.Contains(p, "test/other") && !strings.Contains(string(group), "test--other") {
				found = append(found, p)
			}
		}
		return found
	}
	if left := inSandbox(r.processes()); len(left) > 0 {
		r.t.Errorf("still running: %q", left)
	}
	for _, exit := range exits {
		if n := r.count(exit); n != 1 {
			r.t.Errorf("%q told %d times in %q", exit, n, r.events.all())
		}
	}
	if st, err := r.tasks("other").State(ctx, "spared", ""); err != nil || st.State != task.Running {
		r.t.Errorf("the other sandbox: %+v, %v", st, err)
	}
	for _, verb := range []func(context.Context, string) error{
		func(ctx context.Context, id string) error { return r.ctl.Stop(ctx, id) }, r.ctl.Shutdown,
	} {
		if err := verb(ctx, "sb"); err != nil {
			r.t.Error(err)
		}
	}
	if _, err := r.ctl.Status(ctx, "sb", false); !errdefs.IsNotFound(err) {
		r.t.Errorf("after Shutdown: %v", err)
	}
	if err := os.Remove(filepath.Join(r.dir, "runc/test", "c")); !os.IsNotExist(err) {
		r.t.Errorf("the runtime still has the container: %v", err)
	}
}

// TestMonitorDiesWhileItsConnectionIsHeld: a process that the monitor was about to
// start has a copy of the connection. Its end is not waited for.
func TestMonitorDiesWhileItsConnectionIsHeld(t *testing.T) {
	r := newRig(t)
	r.run("sb", &api.Options{})
	r.container("sb", "c", "busybox sleep 1000")
	pid := r.pids("sb")["monitor"]
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pidfd)
	held := 0
	for fd := range 20 {
		if target, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", pid, fd)); err != nil || !strings.HasPrefix(target, "socket:") {
			continue
		}
		copied, err := unix.PidfdGetfd(pidfd, fd, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(copied)
		held++
	}
	if held < 2 {
		t.Fatalf("%d sockets of the monitor held", held)
	}
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(r.ctx(), 8*time.Second)
	defer cancel()
	if exit, err := r.ctl.Wait(ctx, "sb"); err != nil || exit.ExitStatus == 0 {
		t.Errorf("wait %+v, %v", exit, err)
	}
	if exit := r.wait("sb", "c"); exit.Status != 137 {
		t.Errorf("the container's exit %+v", exit)
	}
}

// TestMonitorOfASingleContainerDies: it has no sandbox that its client could stop,
// and goes when it is deleted.
func TestMonitorOfASingleContainerDies(t *testing.T) {
	for _, away := range []bool{false, true} {
		t.Run(fmt.Sprintf("away=%t", away), func(t *testing.T) {
			r := newRig(t)
			if _, err := r.ctl.Endpoint(r.ctx(), "solo", r.dir); err != nil {
				t.Fatal(err)
			}
			r.container("solo", "solo", "busybox sleep 1000 & exec busybox sleep 1000")
			conn, err := r.tasks("solo").Connect(r.ctx(), "solo")
			if err != nil {
				t.Fatal(err)
			}
			want := uint32(137)
			if away {
				r.close()
				want = 255
			}
			if err := unix.Kill(conn.MonitorPid, unix.SIGKILL); err != nil {
				t.Fatal(err)
			}
			if away {
				r.open()
			}
			if exit := r.wait("solo", "solo"); exit.Status != want {
				t.Errorf("exit %+v", exit)
			}
			if _, err := r.tasks("solo").Delete(r.ctx(), "solo", ""); err != nil {
				t.Error(err)
			}
			if err := r.ctl.Release(r.ctx(), "solo"); err != nil {
				t.Error(err)
			}
			if _, err := r.ctl.Tasks(r.ctx(), "solo"); !errdefs.IsNotFound(err) {
				t.Errorf("after its deletion: %v", err)
			}
			if left := r.processes(); len(left) > 0 {
				t.Errorf("still running: %q", left)
			}
		})
	}
}
