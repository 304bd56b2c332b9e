package sandbox

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	core "github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	api "caisson/api/caisson/sandbox/v1"
	"caisson/internal/task"
)

func TestContainersOutliveTheDaemon(t *testing.T) {
	r := newRig(t)
	r.run("sb", &api.Options{})
	gate := func(name string) string {
		return fmt.Sprintf("while [ ! -e /dev/shm/%s ]; do busybox sleep 0.01; done; ", name)
	}
	short := r.container("sb", "short", gate("short")+"echo short; exit 3")
	long := r.container("sb", "long", "echo before; "+gate("long")+"echo after; exit 4")

	gates := map[string]string{"short": r.shm("sb", "short", "short"), "long": r.shm("sb", "long", "long")}
	st, err := r.tasks("sb").State(r.ctx(), "short", "")
	if err != nil {
		t.Fatal(err)
	}
	ended, err := unix.PidfdOpen(st.Pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(ended)
	r.close()
	touch := func(name string) {
		if err := os.WriteFile(gates[name], nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	touch("short")
	if n, err := unix.Poll([]unix.PollFd{{Fd: int32(ended), Events: unix.POLLIN}}, 20000); n != 1 || err != nil {
		t.Fatalf("the container goes on: %v", err)
	}
	if got := r.output(short); got != "short" {
		t.Errorf("output %q", got)
	}
	gone := time.Now()
	r.open()
	exit := r.wait("sb", "short")
	if exit.Status != 3 || exit.At.After(gone.Add(time.Second)) || exit.At.Before(gone.Add(-20*time.Second)) {
		t.Errorf("exit of the container that ended without a daemon: %+v", exit)
	}
	if st, err := r.tasks("sb").State(r.ctx(), "long", ""); err != nil || st.State != task.Running {
		t.Errorf("state %+v, %v", st, err)
	}
	touch("long")
	if exit := r.wait("sb", "long"); exit.Status != 4 {
		t.Errorf("exit %+v", exit)
	}
	if got := r.output(long); got != "before\nafter" {
		t.Errorf("output %q", got)
	}
	want := []string{"create short", "start short", "create long", "start long", "exit short short 3", "exit long long 4"}
	if got := r.events.all(); !slices.Equal(got, want) {
		t.Errorf("events %q\nwant   %q", got, want)
	}
}

func TestDeathOfHolderOrMonitorEndsTheSandbox(t *testing.T) {
	for _, victim := range []string{"holder", "monitor"} {
		t.Run(victim, func(t *testing.T) {
			r := newRig(t)
			inst := r.run("sb", &api.Options{})
			r.container("sb", "c", "busybox sleep 1000")
			pid, reason := int(inst.Pid), "holder died"
			if victim == "monitor" {
				conn, err := r.tasks("sb").Connect(r.ctx(), "c")
				if err != nil {
					t.Fatal(err)
				}
				pid, reason = conn.MonitorPid, "monitor died"
			}
			if err := unix.Kill(pid, unix.SIGKILL); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(r.ctx(), 20*time.Second)
			defer cancel()
			if exit, err := r.ctl.Wait(ctx, "sb"); err != nil || exit.ExitStatus == 0 {
				t.Errorf("wait %+v, %v", exit, err)
			}
			if exit := r.wait("sb", "c"); exit.Status != 137 {
				t.Errorf("the container's exit %+v", exit)
			}
			status, err := r.ctl.Status(ctx, "sb", true)
			if err != nil || !strings.Contains(status.Info["info"], reason) {
				t.Errorf("status %+v, %v", status, err)
			}
		})
	}
}

func TestTerminalOutlivesTheDaemon(t *testing.T) {
	r := newRig(t)
	r.run("sb", &api.Options{})
	f := r.fifos("c", true)
	bundle := r.bundle("c", "read x; busybox stty size; echo got $x; exit 5")
	r.editSpec(bundle, func(s *specs.Spec) {
		s.Process.Terminal = true
		s.Mounts = append(s.Mounts, specs.Mount{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"newinstance", "ptmxmode=0666"}})
	})
	r.start("sb", task.CreateRequest{ID: "c", Bundle: bundle, Stdio: f.cfg})
	r.close()
	r.open()
	if err := r.tasks("sb").ResizePty(r.ctx(), "c", "", 91, 17); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(f.stdin, "word\n"); err != nil {
		t.Fatal(err)
	}
	if exit := r.wait("sb", "c"); exit.Status != 5 {
		t.Errorf("exit %+v", exit)
	}
	if got := f.readAll(t); got != "word\r\n17 91\r\ngot word\r\n" {
		t.Errorf("output %q", got)
	}
}

func TestUnfinishedWorkOfADeadDaemonIsSettled(t *testing.T) {
	r := newRig(t)
	r.run("sb", &api.Options{})
	r.container("sb", "keep", "busybox sleep 1000")
	// What a daemon leaves that dies while it creates a container, or a sandbox.
	if _, err := r.tasks("sb").Create(r.ctx(), task.CreateRequest{ID: "half", Bundle: r.bundle("half", "true")}); err != nil {
		t.Fatal(err)
	}
	if err := r.ctl.Create(r.ctx(), core.Sandbox{ID: "half"}); err != nil {
		t.Fatal(err)
	}
	r.close()
	rewrite := func(path string, change func(map[string]any)) {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		var rec map[string]any
		if err := json.Unmarshal(data, &rec); err != nil {
			t.Fatal(err)
		}
		change(rec)
		if data, err = json.Marshal(rec); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	rewrite(filepath.Join(r.ctl.dir(key{"test", "sb"}), "t/half/init.json"), func(rec map[string]any) {
		rec["State"], rec["Pid"], rec["Serial"] = "adding", 0, 0
	})
	rewrite(filepath.Join(r.ctl.dir(key{"test", "half"}), recordName), func(rec map[string]any) { rec["State"] = "creating" })
	r.open()
	if _, err := r.tasks("sb").State(r.ctx(), "half", ""); !errdefs.IsNotFound(err) {
		t.Errorf("the half-made container is there: %v", err)
	}
	if _, err := r.ctl.Status(r.ctx(), "half", false); !errdefs.IsNotFound(err) {
		t.Errorf("the half-made sandbox is there: %v", err)
	}
	if _, err := r.store.Get(r.ctx(), "half"); !errdefs.IsNotFound(err) {
		t.Errorf("its record is there: %v", err)
	}
	if st, err := r.tasks("sb").State(r.ctx(), "keep", ""); err != nil || st.State != task.Running {
		t.Errorf("the other container: %+v, %v", st, err)
	}
	r.container("sb", "half", "exit 9")
	if exit := r.wait("sb", "half"); exit.Status != 9 {
		t.Errorf("exit %+v", exit)
	}
}

func TestRebootStopsSandboxes(t *testing.T) {
	r := newRig(t)
	if _, err := r.store.Create(r.ctx(), core.Sandbox{ID: "old", Runtime: core.RuntimeOpts{Name: runtimeType}}); err != nil {
		t.Fatal(err)
	}
	r.close()
	r.open()
	ctx, cancel := context.WithTimeout(r.ctx(), 10*time.Second)
	defer cancel()
	if exit, err := r.ctl.Wait(ctx, "old"); err != nil || exit.ExitStatus != 255 {
		t.Errorf("wait %+v, %v", exit, err)
	}
	status, err := r.ctl.Status(ctx, "old", true)
	if err != nil || status.State != stateNotReady || !strings.Contains(status.Info["info"], "restarted") {
		t.Errorf("status %+v, %v", status, err)
	}
	if m, err := r.ctl.Metrics(ctx, "old"); !errdefs.IsNotFound(err) {
		t.Errorf("metrics %v, %v", m, err)
	}
	if err := r.ctl.Shutdown(ctx, "old"); err != nil {
		t.Error(err)
	}
	if _, err := r.store.Get(ctx, "old"); !errdefs.IsNotFound(err) {
		t.Errorf("the record is there: %v", err)
	}
}

// containerd asks as soon as it is there, and takes a task without processes for one
// that nobody wants.
func TestAZombieIsListedBeforeItsEndIsKnown(t *testing.T) {
	r := newRig(t)
	r.run("sb", &api.Options{})
	r.container("sb", "c", "busybox sleep 1000")
	st, err := r.tasks("sb").State(r.ctx(), "c", "")
	if err != nil {
		t.Fatal(err)
	}
	conn, err := r.tasks("sb").Connect(r.ctx(), "c")
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(conn.MonitorPid, unix.SIGSTOP); err != nil { // it says nothing
		t.Fatal(err)
	}
	defer unix.Kill(conn.MonitorPid, unix.SIGCONT)
	if err := unix.Kill(st.Pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	r.eventually("a zombie", func() bool {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", st.Pid))
		return err == nil && strings.Contains(string(status), "Z (zombie)")
	})
	if pids, err := r.tasks("sb").Pids(r.ctx(), "c"); err != nil || len(pids) != 1 || pids[0].Pid != st.Pid {
		t.Errorf("processes %+v, %v, want its init", pids, err)
	}
	if st, err := r.tasks("sb").State(r.ctx(), "c", ""); err != nil || st.State != task.Running {
		t.Errorf("its end is known: %+v, %v", st, err)
	}
	if err := unix.Kill(conn.MonitorPid, unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if exit := r.wait("sb", "c"); exit.Status != 137 {
		t.Errorf("exit %+v", exit)
	}
}
