package sandbox

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	core "github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	"github.com/google/go-cmp/cmp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	api "caisson/api/caisson/sandbox/v1"
	"caisson/internal/request"
	"caisson/internal/task"
)

// asked is a request as an earlier daemon got it, or once more, with what was noted.
func (r *rig) asked(id string, again bool, notes *[]byte) context.Context {
	var noted []byte
	if again && notes != nil {
		noted = *notes
	}
	return request.With(r.ctx(), request.New(id, again, noted, func(text []byte) error {
		if notes != nil {
			*notes = text
		}
		return nil
	}))
}

func (r *rig) restart() {
	r.t.Helper()
	r.close()
	r.open()
}

// TestRequestsComeAgain: what an earlier daemon has done and did not answer is not
// done twice, and is answered as it would have been. The same from somebody else is
// a mistake.
func TestRequestsComeAgain(t *testing.T) {
	r := newRig(t)
	r.run("sb", &api.Options{})
	spec, err := json.Marshal(specs.Process{Args: []string{"/bin/sh", "-c", "trap 'exit 9' TERM; echo >/tmp/ready; while :; do busybox sleep 0.01; done"}, Cwd: "/"})
	if err != nil {
		t.Fatal(err)
	}
	create := task.CreateRequest{ID: "c", Bundle: r.bundle("c", "busybox sleep 1000")}
	exec := task.ExecRequest{ID: "c", ExecID: "e", Spec: rawAny(spec)}
	steps := []struct {
		name  string
		do    func(ctx context.Context) (int, error)
		wrong func(error) bool
		event string
	}{
		{"create", func(ctx context.Context) (int, error) { return r.ctl.CreateTask(ctx, "sb", create) }, errdefs.IsAlreadyExists, "create c"},
		{"start", func(ctx context.Context) (int, error) { return r.tasks("sb").Start(ctx, "c", "") }, errdefs.IsFailedPrecondition, "start c"},
		{"exec", func(ctx context.Context) (int, error) { return 0, r.tasks("sb").Exec(ctx, exec) }, errdefs.IsAlreadyExists, "exec-added e"},
		{"start exec", func(ctx context.Context) (int, error) { return r.tasks("sb").Start(ctx, "c", "e") }, errdefs.IsFailedPrecondition, "exec-started e"},
	}
	for _, s := range steps {
		first, err := s.do(r.asked(s.name, false, nil))
		if err != nil {
			t.Fatalf("%s: %v", s.name, err)
		}
		r.restart()
		if pid, err := s.do(r.asked(s.name, true, nil)); err != nil || pid != first {
			t.Errorf("%s again: pid %d, before %d: %v", s.name, pid, first, err)
		}
		for id, again := range map[string]bool{"another": true, s.name: false, "": false} {
			if _, err := s.do(r.asked(id, again, nil)); !s.wrong(err) {
				t.Errorf("%s by request %q, again %v: %v", s.name, id, again, err)
			}
		}
		if n := r.count(s.event); n != 1 {
			t.Errorf("%d times %q in %q", n, s.event, r.events.all())
		}
	}

	r.eventually("the exec has its trap", func() bool {
		_, err := os.Stat(filepath.Join(create.Bundle, "rootfs/tmp/ready"))
		return err == nil
	})
	var notes []byte
	if err := r.tasks("sb").Kill(r.asked("kill", false, &notes), "c", "e", uint32(unix.SIGTERM), false); err != nil {
		t.Fatal(err)
	}
	exit, err := r.tasks("sb").Wait(r.ctx(), "c", "e")
	if err != nil || exit.Status != 9 {
		t.Fatalf("%+v, %v", exit, err)
	}
	r.restart()
	if err := r.tasks("sb").Kill(r.asked("kill", true, &notes), "c", "e", uint32(unix.SIGTERM), false); err != nil {
		t.Errorf("kill again: %v", err)
	}
	if err := r.tasks("sb").Kill(r.asked("other", true, nil), "c", "e", uint32(unix.SIGTERM), false); !errdefs.IsNotFound(err) {
		t.Errorf("kill what has ended: %v", err)
	}
	if err := r.tasks("sb").Kill(r.ctx(), "c", "", uint32(unix.SIGKILL), false); err != nil {
		t.Fatal(err)
	}
	r.wait("sb", "c")
	for _, execID := range []string{"e", ""} {
		var notes []byte
		before, err := r.tasks("sb").Delete(r.asked("delete", false, &notes), "c", execID)
		if err != nil {
			t.Fatal(err)
		}
		r.restart()
		after, err := r.tasks("sb").Delete(r.asked("delete", true, &notes), "c", execID)
		if err != nil || !after.At.Equal(before.At) || after.Status != before.Status || after.Pid != before.Pid {
			t.Errorf("delete %q again: %+v, before %+v: %v", execID, after, before, err)
		}
		if _, err := r.tasks("sb").Delete(r.asked("another", true, nil), "c", execID); !errdefs.IsNotFound(err) {
			t.Errorf("delete what was deleted: %v", err)
		}
	}
}

// TestSignalComesOnce: a daemon that does not know whether the last one has sent a
// signal does not send it twice.
func TestSignalComesOnce(t *testing.T) {
	r := newRig(t)
	r.run("sb", &api.Options{})
	out := r.container("sb", "c", "trap 'n=$((n+1))' USR1; trap 'echo $n; exit 0' TERM; echo ready; while :; do busybox sleep 0.01; done")
	r.eventually("it is ready", func() bool { return r.output(out) == "ready" })
	for _, again := range []bool{false, true} {
		if err := r.tasks("sb").Kill(r.asked("usr1", again, nil), "c", "", uint32(unix.SIGUSR1), false); err != nil {
			t.Fatal(err)
		}
		r.restart()
	}
	if err := r.tasks("sb").Kill(r.ctx(), "c", "", uint32(unix.SIGTERM), false); err != nil {
		t.Fatal(err)
	}
	r.wait("sb", "c")
	if got := r.output(out); got != "ready\n1" {
		t.Errorf("output %q", got)
	}
}

// TestPauseComesAgain: a pause and a resume that come again are told once, and one that
// an earlier daemon did not begin is what it was.
func TestPauseComesAgain(t *testing.T) {
	r := newRig(t)
	r.run("sb", &api.Options{})
	r.container("sb", "c", "busybox sleep 1000")
	told := func(want ...string) {
		t.Helper()
		got := slices.DeleteFunc(r.events.all(), func(e string) bool { return e != "paused c" && e != "resumed c" })
		if !slices.Equal(got, want) {
			t.Errorf("told %q, want %q", got, want)
		}
	}
	again := func(verb func(context.Context, string) error, id string) {
		t.Helper()
		var notes []byte
		for _, again := range []bool{false, true} {
			if err := verb(r.asked(id, again, &notes), "c"); err != nil {
				t.Fatalf("%s, again %t: %v", id, again, err)
			}
			r.restart()
		}
	}
	again(func(ctx context.Context, id string) error { return r.tasks("sb").Pause(ctx, id) }, "pause")
	told("paused c")
	again(func(ctx context.Context, id string) error { return r.tasks("sb").Resume(ctx, id) }, "resume")
	told("paused c", "resumed c")
	if err := r.tasks("sb").Resume(r.asked("vain", true, nil), "c"); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("resume what runs: %v", err)
	}
	told("paused c", "resumed c")
}

// TestHalfAPause: the next daemon tells a pause that came about and was not told, and
// takes back one that did not.
func TestHalfAPause(t *testing.T) {
	r := newRig(t)
	r.run("sb", &api.Options{})
	r.container("sb", "c", "busybox sleep 1000")
	left := func(frozen bool) {
		t.Helper()
		r.close()
		r.rewrite(r.path("sb", "t", "c", "init.json"), func(rec map[string]any) {
			rec["Turn"] = map[string]any{"Frozen": frozen, "At": time.Now()}
		})
		r.open()
	}
	for _, step := range []struct {
		paused, frozen bool // the container is, and was to be
		told           int  // pauses and resumes in all
	}{{false, true, 0}, {false, false, 1}, {true, true, 3}, {true, false, 3}} {
		if st, err := r.tasks("sb").State(r.ctx(), "c", ""); err != nil {
			t.Fatal(err)
		} else if step.paused && !st.Paused {
			if err := r.tasks("sb").Pause(r.ctx(), "c"); err != nil {
				t.Fatal(err)
			}
		}
		left(step.frozen)
		st, err := r.tasks("sb").State(r.ctx(), "c", "")
		if n := r.count("paused c") + r.count("resumed c"); err != nil || st.Paused != step.paused || n != step.told {
			t.Errorf("%+v: paused %t, told %q, %v", step, st.Paused, r.events.all(), err)
		}
	}
}

// TestSignalForAllComesOnce: a signal for all processes of a container, which a daemon
// was sending when it was killed, comes to none of them twice, and only one can miss it.
func TestSignalForAllComesOnce(t *testing.T) {
	r := newRig(t)
	r.run("sb", &api.Options{})
	process := func(name string) string {
		return "trap 'echo " + name + " >>/tmp/usr1' USR1; trap 'echo " + name + " >>/tmp/usr2' USR2; echo ready; while :; do busybox sleep 0.01; done"
	}
	names := []string{"a", "b", "c", "init"}
	script := ""
	for _, name := range names[:3] {
		script += "(" + process(name) + ") & "
	}
	out := r.container("sb", "c", script+process("init"))
	r.eventually("all are ready", func() bool { return strings.Count(r.output(out), "ready") == len(names) })
	got := func(signal string) []string {
		text, _ := os.ReadFile(filepath.Join(r.dir, "bundles/c/rootfs/tmp", signal)) // none before the first
		return strings.Fields(string(text))
	}
	told := errors.New("the daemon ends")
	for ends := 1; ends < 6; ends++ { // at which note
		for _, signal := range []string{"usr1", "usr2"} {
			if err := os.WriteFile(filepath.Join(r.dir, "bundles/c/rootfs/tmp", signal), nil, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		id, left, last := fmt.Sprint("usr1-", ends), ends, []byte(nil)
		dying := request.With(r.ctx(), request.New(id, false, nil, func(text []byte) error {
			last = text
			if left--; left < 0 {
				return told
			}
			return nil
		}))
		if err := r.tasks("sb").Kill(dying, "c", "", uint32(unix.SIGUSR1), true); err != nil && !errors.Is(err, told) {
			t.Fatal(err)
		}
		if err := r.tasks("sb").Kill(r.asked(id, true, &last), "c", "", uint32(unix.SIGUSR1), true); err != nil {
			t.Fatal(err)
		}
		// The second signal is not handled before the first.
		if err := r.tasks("sb").Kill(r.ctx(), "c", "", uint32(unix.SIGUSR2), true); err != nil {
			t.Fatal(err)
		}
		r.eventually("all got the second signal", func() bool { return len(got("usr2")) == len(names) })
		usr1 := got("usr1")
		slices.Sort(usr1)
		if n := len(usr1); n < len(names)-1 || n != len(slices.Compact(slices.Clone(usr1))) {
			t.Errorf("killed at note %d: the signal came to %q", ends, usr1)
		}
	}
}

// TestHalfDoneComesAgain: a creation or a start that an earlier daemon was killed in
// is done anew when it comes again, and the client's reader of the output sees
// nothing of that.
func TestHalfDoneComesAgain(t *testing.T) {
	r := newRig(t)
	r.run("sb", &api.Options{})
	f := r.fifos("c", false)
	req := task.CreateRequest{ID: "c", Bundle: r.bundle("c", "echo output; exit 3"), Stdio: f.cfg}
	if _, err := r.ctl.CreateTask(r.asked("create", false, nil), "sb", req); err != nil {
		t.Fatal(err)
	}
	text := make(chan string, 1)
	go func() { text <- f.readAll(t) }()
	r.close()
	r.rewrite(r.path("sb", "t", "c", "init.json"), func(rec map[string]any) { rec["State"], rec["Pid"], rec["Serial"] = "adding", 0, 0 })
	// The earlier daemon's runtime failed, and nobody was told.
	r.spawn("sb", "c", "", "exit 7")
	r.server.owes = "create"
	r.open()
	if _, err := r.ctl.CreateTask(r.asked("create", true, nil), "sb", req); err != nil {
		t.Fatal(err)
	}
	if _, err := r.tasks("sb").Start(r.ctx(), "c", ""); err != nil {
		t.Fatal(err)
	}
	if exit := r.wait("sb", "c"); exit.Status != 3 {
		t.Errorf("exit %+v", exit)
	}
	if got := <-text; got != "output\n" {
		t.Errorf("output %q", got)
	}

	r.container("sb", "long", "busybox sleep 1000")
	r.exec("sb", "long", "e", "/bin/sh", "-c", "exit 4")
	r.close()
	r.rewrite(r.path("sb", "t", "long", "exec-e.json"), func(rec map[string]any) { rec["State"], rec["Started"] = "starting", "start" })
	r.open()
	if _, err := r.tasks("sb").Start(r.asked("start", true, nil), "long", "e"); err != nil {
		t.Fatal(err)
	}
	if exit, err := r.tasks("sb").Wait(r.ctx(), "long", "e"); err != nil || exit.Status != 4 {
		t.Errorf("%+v, %v", exit, err)
	}
	// A start that failed before it was answered still fails.
	r.exec("sb", "long", "f", "/bin/nonexistent")
	if _, err := r.tasks("sb").Start(r.asked("start f", false, nil), "long", "f"); !errdefs.IsNotFound(err) {
		t.Fatal(err)
	}
	r.restart()
	if _, err := r.tasks("sb").Start(r.asked("start f", true, nil), "long", "f"); !errdefs.IsNotFound(err) {
		t.Errorf("a start that failed comes again: %v", err)
	}
}

// TestStartIsAnsweredAgain with what it was answered with.
func TestStartIsAnsweredAgain(t *testing.T) {
	r := newRig(t)
	if err := r.ctl.Create(r.ctx(), core.Sandbox{ID: "sb"}, r.criOptions(t)); err != nil {
		t.Fatal(err)
	}
	if _, err := r.ctl.Started(r.ctx(), "sb"); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("before it is started: %v", err)
	}
	first, err := r.ctl.Start(r.ctx(), "sb")
	if err != nil {
		t.Fatal(err)
	}
	r.restart()
	again, err := r.ctl.Started(r.ctx(), "sb")
	if err != nil {
		t.Fatal(err)
	}
	same := cmp.Comparer(func(a, b typeurl.Any) bool {
		return a.GetTypeUrl() == b.GetTypeUrl() && bytes.Equal(a.GetValue(), b.GetValue())
	})
	if diff := cmp.Diff(first, again, same); diff != "" {
		t.Error(diff)
	}
	if err := r.ctl.Stop(r.ctx(), "sb"); err != nil {
		t.Fatal(err)
	}
	if _, err := r.ctl.Started(r.ctx(), "sb"); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("after it was stopped: %v", err)
	}
}

// TestEndpointsComeAgain: containerd's own sandboxer, connected to the endpoint of a
// sandbox, asks for its creation or its start again.
func TestEndpointsComeAgain(t *testing.T) {
	r := newRig(t)
	for state, reached := range map[State]State{Creating: Reserved, Created: Created, Starting: Created} {
		id := string(state)
		if _, err := r.ctl.Endpoint(r.ctx(), id, r.bundle(id, "true")); err != nil {
			t.Fatal(err)
		}
		if err := r.ctl.Create(r.ctx(), core.Sandbox{ID: id}, r.criOptions(t)); err != nil {
			t.Fatal(err)
		}
		r.close()
		r.rewrite(r.path(id, recordName), func(rec map[string]any) { rec["State"] = state })
		r.server.connected = true
		r.open()
		b, err := r.ctl.findAny(r.ctx(), id)
		if err != nil || b.snapshot().State != reached {
			t.Fatalf("%s: %v, %v", state, b, err)
		}
		if reached == Reserved {
			if err := r.ctl.Create(r.ctx(), core.Sandbox{ID: id}, r.criOptions(t)); err != nil {
				t.Error(err)
			}
		}
		if _, err := r.ctl.Start(r.ctx(), id); err != nil {
			t.Error(err)
		}
	}
	// A container without a sandbox, in its Create.
	if _, err := r.ctl.Endpoint(r.ctx(), "single", r.bundle("single", "true")); err != nil {
		t.Fatal(err)
	}
	r.close()
	r.rewrite(r.path("single", recordName), func(rec map[string]any) { rec["State"], rec["Kind"] = Starting, kindSingle })
	r.open()
	r.container("single", "single", "exit 6")
	if exit := r.wait("single", "single"); exit.Status != 6 {
		t.Errorf("exit %+v", exit)
	}
	if _, err := r.ctl.Cleanup(r.ctx(), "single", ""); err != nil {
		t.Error(err)
	}
}

func (r *rig) criOptions(t *testing.T) core.CreateOpt {
	t.Helper()
	options, err := typeurl.MarshalAny(&cri.PodSandboxConfig{
		Metadata: &cri.PodSandboxMetadata{Name: "pod", Uid: "uid", Namespace: "ns"},
		Linux: &cri.LinuxPodSandboxConfig{SecurityContext: &cri.LinuxSandboxSecurityContext{
			NamespaceOptions: &cri.NamespaceOption{Network: cri.NamespaceMode_NODE},
		}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return core.WithOptions(options)
}

// TestAbandonedByCRI: a sandbox that CRI was about to run when the daemon ended is
// CRI's if CRI goes on with it, and else goes.
func TestAbandonedByCRI(t *testing.T) {
	for _, goesOn := range []bool{true, false} {
		r := newRig(t)
		for _, id := range []string{"created", "started", "known"} {
			if err := r.ctl.Create(r.ctx(), core.Sandbox{ID: id}, r.criOptions(t)); err != nil {
				t.Fatal(err)
			}
			if id == "created" {
				continue
			}
			if _, err := r.ctl.Start(r.ctx(), id); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := r.ctl.Status(r.ctx(), "known", false); err != nil {
			t.Fatal(err)
		}
		r.close()
		r.patience = time.Minute
		if !goesOn {
			r.patience = time.Millisecond
		}
		r.open()
		if goesOn {
			if _, err := r.ctl.Start(r.ctx(), "created"); err != nil {
				t.Error(err)
			}
			for _, id := range []string{"created", "started"} {
				if st, err := r.ctl.Status(r.ctx(), id, false); err != nil || st.State != stateReady {
					t.Errorf("%s: %+v, %v", id, st, err)
				}
			}
			r.close()
			r.patience = time.Millisecond
			r.open()
		} else {
			for _, id := range []string{"created", "started"} {
				// Not asked for by Status, which would claim it.
				r.eventually(id+" is removed", func() bool { return !slices.Contains(r.ids(), id) })
			}
		}
		if st, err := r.ctl.Status(r.ctx(), "known", false); err != nil || st.State != stateReady {
			t.Errorf("%+v, %v", st, err)
		}
	}
}

// TestAbandonedIsRemovedInTheEnd: what cannot be removed now is tried again, although
// it is stopped by then.
func TestAbandonedIsRemovedInTheEnd(t *testing.T) {
	r := newRig(t)
	if err := r.ctl.Create(r.ctx(), core.Sandbox{ID: "sb"}, r.criOptions(t)); err != nil {
		t.Fatal(err)
	}
	b, err := r.ctl.findAny(r.ctx(), "sb")
	if err != nil {
		t.Fatal(err)
	}
	busy := r.path("sb", "busy")
	if err := errors.Join(os.Mkdir(busy, 0o700), unix.Mount("tmpfs", busy, "tmpfs", 0, "")); err != nil {
		t.Fatal(err)
	}
	attempts := make(chan error)
	go b.insist("remove in a test", func(ctx context.Context) error {
		err := b.removeUnclaimed(ctx)
		attempts <- err
		return err
	})
	err = <-attempts
	if !errors.Is(err, unix.EBUSY) || !slices.Contains(r.ids(), "sb") {
		t.Errorf("something is in the way: %v", err)
	}
	if err := unix.Unmount(busy, 0); err != nil {
		t.Fatal(err)
	}
	if err := <-attempts; err != nil || slices.Contains(r.ids(), "sb") {
		t.Errorf("nothing is in the way: %v, %q", err, r.ids())
	}
}

// TestUnbornContainer: a daemon that was killed before it wrote down the first word
// of a container leaves nothing that is in the way of the next one.
func TestUnbornContainer(t *testing.T) {
	r := newRig(t)
	r.run("sb", &api.Options{})
	for _, files := range [][]string{nil, {"container.json.new"}} {
		r.close()
		dir := r.path("sb", "t", "c")
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		for _, name := range files {
			if err := os.WriteFile(filepath.Join(dir, name), []byte("{"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		r.open()
		r.container("sb", "c", "exit 3")
		if exit := r.wait("sb", "c"); exit.Status != 3 {
			t.Errorf("exit %+v", exit)
		}
		if _, err := r.tasks("sb").Delete(r.ctx(), "c", ""); err != nil {
			t.Fatal(err)
		}
	}
}
