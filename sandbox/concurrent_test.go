package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	core "github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	api "caisson/api/caisson/sandbox/v1"
	"caisson/internal/task"
)

// atOnce runs a call several times at the same time and returns the errors.
func atOnce(n int, call func(i int) error) []error {
	errs := make([]error, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { errs[i] = call(i) })
	}
	wg.Wait()
	return errs
}

// onlyOne fails unless one call succeeded and all others were NotFound.
func onlyOne(t *testing.T, what string, errs []error) {
	t.Helper()
	done := 0
	for _, err := range errs {
		if err == nil {
			done++
		} else if !errdefs.IsNotFound(err) {
			t.Errorf("%s: %v, want not found", what, err)
		}
	}
	if done != 1 {
		t.Errorf("%s: %d successes in %v, want 1", what, done, errs)
	}
}

func (r *rig) count(event string) (n int) {
	for _, e := range r.events.all() {
		if e == event {
			n++
		}
	}
	return n
}

func TestWhatIsRemovedIsRemovedOnce(t *testing.T) {
	r := newRig(t)
	r.run("sb", &api.Options{})
	tasks := r.tasks("sb")
	r.container("sb", "c", "true")
	r.wait("sb", "c")
	onlyOne(t, "delete", atOnce(5, func(int) error { _, err := tasks.Delete(r.ctx(), "c", ""); return err }))
	if n := r.count("delete c"); n != 1 {
		t.Errorf("%d events of the deletion", n)
	}
	// One that was not started is killed on the way.
	if _, err := tasks.Create(r.ctx(), task.CreateRequest{ID: "w", Bundle: r.bundle("w", "true")}); err != nil {
		t.Fatal(err)
	}
	onlyOne(t, "delete unstarted", atOnce(5, func(int) error { _, err := tasks.Delete(r.ctx(), "w", ""); return err }))
	onlyOne(t, "shutdown", atOnce(5, func(int) error { return r.ctl.Shutdown(r.ctx(), "sb") }))
}

func TestCreateAndShutdownOfOneIDAtOnce(t *testing.T) {
	r := newRig(t)
	for range 10 {
		errs := atOnce(6, func(i int) error {
			if i%2 == 0 {
				return r.ctl.Create(r.ctx(), core.Sandbox{ID: "sb"})
			}
			return r.ctl.Shutdown(r.ctx(), "sb")
		})
		for i, err := range errs {
			if err != nil && !(i%2 == 0 && errdefs.IsAlreadyExists(err)) && !(i%2 == 1 && errdefs.IsNotFound(err)) {
				t.Errorf("call %d: %v", i, err)
			}
		}
		_, inStore := r.store.Get(r.ctx(), "sb")
		_, inMemory := r.ctl.Status(r.ctx(), "sb", false)
		if (inStore == nil) != (inMemory == nil) {
			t.Fatalf("record: %v, sandbox: %v", inStore, inMemory)
		}
	}
}

func TestStopWhileContainersAreCreated(t *testing.T) {
	r := newRig(t)
	r.run("sb", &api.Options{})
	tasks := r.tasks("sb")
	bundles := make([]string, 8)
	for i := range bundles {
		bundles[i] = r.bundle(fmt.Sprintf("c%d", i), "busybox sleep 1000")
	}
	begun := make(chan struct{}, len(bundles))
	errs := atOnce(len(bundles)+1, func(i int) error {
		if i == len(bundles) {
			<-begun
			return r.ctl.Stop(r.ctx(), "sb", core.WithTimeout(0))
		}
		id := fmt.Sprintf("c%d", i)
		begun <- struct{}{}
		_, err := tasks.Create(r.ctx(), task.CreateRequest{ID: id, Bundle: bundles[i]})
		if err == nil {
			_, _ = tasks.Start(r.ctx(), id, "") // it may be too late
		}
		return nil
	})
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	for _, id := range tasks.IDs() {
		if st, err := tasks.State(r.ctx(), id, ""); err != nil || st.State != task.Stopped {
			t.Errorf("%s: %+v, %v, in a stopped sandbox", id, st, err)
		}
	}
	if _, err := tasks.Create(r.ctx(), task.CreateRequest{ID: "late", Bundle: bundles[0]}); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("create in a stopped sandbox: %v", err)
	}
}

func TestStopWhenTheCallerGivesUp(t *testing.T) {
	r := newRig(t)
	r.run("sb", &api.Options{})
	r.container("sb", "c", `trap "" TERM; while :; do busybox sleep 1; done`)
	over, cancel := context.WithCancel(r.ctx())
	cancel()
	for range 20 {
		if err := r.ctl.Stop(over, "sb"); !errors.Is(err, context.Canceled) {
			t.Fatalf("stop with a context that is over: %v", err)
		}
	}
	if status, err := r.ctl.Status(r.ctx(), "sb", false); err != nil || status.State != stateReady {
		t.Fatalf("status %+v, %v", status, err)
	}
	// The end of the context is the end of the grace.
	short, cancel := context.WithTimeout(r.ctx(), 200*time.Millisecond)
	defer cancel()
	if err := r.ctl.Stop(short, "sb", core.WithTimeout(time.Hour)); err != nil {
		t.Errorf("stop: %v", err)
	}
	if exit := r.wait("sb", "c"); exit.Status != 137 {
		t.Errorf("exit %+v", exit)
	}
	if err := r.ctl.Stop(r.ctx(), "sb"); err != nil {
		t.Errorf("again: %v", err)
	}
}

func TestStopAndShutdownWhenTheMonitorDies(t *testing.T) {
	for name, verb := range map[string]func(*rig) error{
		"stop":     func(r *rig) error { return r.ctl.Stop(r.ctx(), "sb", core.WithTimeout(time.Hour)) },
		"shutdown": func(r *rig) error { return r.ctl.Shutdown(r.ctx(), "sb") },
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			r.run("sb", &api.Options{})
			r.container("sb", "c", `trap "" TERM; while :; do busybox sleep 1; done`)
			tasks := r.tasks("sb")
			conn, err := tasks.Connect(r.ctx(), "c")
			if err != nil {
				t.Fatal(err)
			}
			errs := atOnce(2, func(i int) error {
				if i == 0 {
					return verb(r)
				}
				return unix.Kill(conn.MonitorPid, unix.SIGKILL)
			})
			if err := errors.Join(errs...); err != nil {
				t.Fatal(err)
			}
			// A zombie has no command line; who reaps it now is not our business.
			if line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", conn.TaskPid)); err == nil && len(line) > 0 {
				t.Errorf("the container still runs %q", line)
			}
			if n := r.count("exit c c 137"); n != 1 {
				t.Errorf("%d exits in %q", n, r.events.all())
			}
		})
	}
}

func (r *rig) exec(sandboxID, id, execID string, args ...string) {
	r.t.Helper()
	spec, err := json.Marshal(specs.Process{Args: args, Cwd: "/"})
	if err != nil {
		r.t.Fatal(err)
	}
	if err := r.tasks(sandboxID).Exec(r.ctx(), task.ExecRequest{ID: id, ExecID: execID, Spec: rawAny(spec)}); err != nil {
		r.t.Fatal(err)
	}
}

func TestExecInAPausedContainer(t *testing.T) {
	r := newRig(t)
	r.run("sb", &api.Options{})
	r.container("sb", "c", "busybox sleep 1000")
	tasks := r.tasks("sb")
	r.exec("sb", "c", "running", "/bin/busybox", "sleep", "1000")
	if _, err := tasks.Start(r.ctx(), "c", "running"); err != nil {
		t.Fatal(err)
	}
	r.exec("sb", "c", "late", "/bin/busybox", "true")
	if err := tasks.Pause(r.ctx(), "c"); err != nil {
		t.Fatal(err)
	}
	if _, err := tasks.Start(r.ctx(), "c", "late"); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("start of an exec: %v", err)
	}
	if err := tasks.Kill(r.ctx(), "c", "running", 9, false); err != nil {
		t.Error(err)
	}
	// Once it goes on, the exec's end may be told before the resumption.
	paused := r.events.all()
	if st, err := tasks.State(r.ctx(), "c", ""); err != nil || !st.Paused {
		t.Errorf("after the kill of an exec: %+v, %v", st, err)
	}
	if slices.ContainsFunc(paused, func(e string) bool { return strings.HasPrefix(e, "exit") }) && r.onV1() {
		t.Errorf("the kill of an exec ended the pause: %q", paused)
	}
	if err := tasks.Resume(r.ctx(), "c"); err != nil {
		t.Error(err)
	}
	if events := r.events.all(); !slices.Contains(events, "resumed c") {
		t.Errorf("no resumption: %q", events)
	}
}

// onV1 tells whether frozen processes do not even die.
func (r *rig) onV1() bool {
	var st unix.Statfs_t
	return unix.Statfs("/sys/fs/cgroup", &st) == nil && st.Type != unix.CGROUP2_SUPER_MAGIC
}

func TestCancelledStartOfAnExecLeavesNoProcess(t *testing.T) {
	r := newRig(t)
	r.run("sb", &api.Options{})
	r.container("sb", "c", "busybox sleep 1000")
	tasks := r.tasks("sb")
	for i := range 20 {
		id := fmt.Sprintf("e%d", i)
		r.exec("sb", "c", id, "/bin/busybox", "sleep", "1000")
		ctx, cancel := context.WithTimeout(r.ctx(), time.Duration(i)*4*time.Millisecond)
		_, err := tasks.Start(ctx, "c", id)
		cancel()
		if err == nil {
			err = tasks.Kill(r.ctx(), "c", id, 9, false)
		} else if !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, context.Canceled) {
			t.Errorf("start: %v", err)
			continue
		} else {
			err = nil
		}
		if err != nil {
			t.Error(err)
		}
	}
	r.eventually("one process in the container", func() bool {
		pids, err := tasks.Pids(r.ctx(), "c")
		return err == nil && len(pids) == 1
	})
}

// eventually waits for what has no event.
func (r *rig) eventually(what string, is func() bool) {
	r.t.Helper()
	for limit := time.Now().Add(10 * time.Second); !is(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(limit) {
			r.t.Fatalf("never: %s", what)
		}
	}
}

func TestCgroupsOfSandboxesDiffer(t *testing.T) {
	for _, cfg := range []Config{{Cgroup: "/caisson"}, {Cgroup: "/caisson.slice", Runtime: RuntimeConfig{SystemdCgroup: true}}} {
		c := NewController(cfg)
		one, own, err := c.cgroupOf(key{"a.b", "c"}, settings{})
		other, _, err2 := c.cgroupOf(key{"a", "b.c"}, settings{})
		if one == other || !own || err != nil || err2 != nil {
			t.Errorf("two sandboxes have the cgroups %q and %q, ours: %v (%v, %v)", one, other, own, err, err2)
		}
	}
}

// TestCgroupOfSystemd: a sandbox of ours is a slice below the one that is asked
// for, and nothing else; a kubelet's stays what it is.
func TestCgroupOfSystemd(t *testing.T) {
	c := NewController(Config{Cgroup: "/caisson.slice", Runtime: RuntimeConfig{SystemdCgroup: true}})
	k := key{"ns", "sb"}
	for parent, want := range map[string]string{
		"":           "/caisson.slice/caisson-" + k.hash() + ".slice",
		"ci.slice":   "/ci.slice/ci-" + k.hash() + ".slice",
		"ci-a.slice": "/ci.slice/ci-a.slice/ci-a-" + k.hash() + ".slice",
	} {
		if got, own, err := c.cgroupOf(k, settings{CgroupParent: parent}); err != nil || !own || got != want {
			t.Errorf("below %q: %q, %v, %v; want %q", parent, got, own, err, want)
		}
	}
	if got, _, err := c.cgroupOf(k, settings{CgroupParent: "/ci"}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("below what is no slice: %q, %v", got, err)
	}
	pod := "/kubepods.slice/kubepods-pod1.slice"
	if got, own, err := c.cgroupOf(k, settings{CRI: true, CgroupParent: pod}); err != nil || own || got != pod {
		t.Errorf("a pod's: %q, %v, %v", got, own, err)
	}
}
