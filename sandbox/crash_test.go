package sandbox

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	"golang.org/x/sys/unix"

	api "caisson/api/caisson/sandbox/v1"
	"caisson/internal/monitor"
	"caisson/internal/task"
)

// rewrite changes a record behind the back of a daemon that is not there.
func (r *rig) rewrite(path string, change func(rec map[string]any)) {
	r.t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		r.t.Fatal(err)
	}
	var rec map[string]any
	if err := json.Unmarshal(data, &rec); err != nil {
		r.t.Fatal(err)
	}
	change(rec)
	if data, err = json.Marshal(rec); err != nil {
		r.t.Fatal(err)
	}
	if err := os.WriteFile(path, data, 0o600); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) path(sandboxID string, names ...string) string {
	return filepath.Join(append([]string{r.ctl.dir(key{"test", sandboxID})}, names...)...)
}

// spawn runs a shell command in a sandbox as a daemon does that dies right after.
func (r *rig) spawn(sandboxID, tag, pidFile, command string) {
	r.t.Helper()
	conn, err := monitor.Dial(r.ctx(), r.path(sandboxID))
	if err != nil {
		r.t.Fatal(err)
	}
	defer conn.Close()
	_, err = conn.Spawn(r.ctx(), monitor.SpawnRequest{
		Tag: tag, PidFile: pidFile, Dir: "/", Env: os.Environ(), Args: []string{"/bin/sh", "-c", command},
	})
	if err != nil {
		r.t.Fatal(err)
	}
}

func TestRuntimesOfADeadDaemonAreSettled(t *testing.T) {
	for _, state := range []task.State{task.Starting, task.Stopped} {
		t.Run(string(state), func(t *testing.T) {
			r := newRig(t)
			r.run("sb", &api.Options{})
			r.container("sb", "c", "busybox sleep 1000")
			r.exec("sb", "c", "e", "/bin/busybox", "sleep", "1000")
			r.close()
			dir := r.path("sb", "t", "c")
			r.rewrite(filepath.Join(dir, "exec-e.json"), func(rec map[string]any) { rec["State"] = state })
			pid := filepath.Join(dir, "exec-e.json.pid")
			r.spawn("sb", "c/e", pid, "sleep 0.3; exec runc --root "+filepath.Join(r.dir, "runc/test")+" exec --detach --process "+
				filepath.Join(dir, "exec-e.spec")+" --pid-file "+pid+" c")
			r.open()
			st, err := r.tasks("sb").State(r.ctx(), "c", "e")
			if state == task.Starting {
				if err != nil || st.State != task.Running || st.Pid == 0 {
					t.Errorf("%+v, %v, want it running", st, err)
				}
				if r.count("exec-started e") != 1 {
					t.Errorf("events %q", r.events.all())
				}
				return
			}
			r.eventually("no process but the container's own", func() bool {
				pids, err := r.tasks("sb").Pids(r.ctx(), "c")
				return err == nil && len(pids) == 1
			})
		})
	}
}

// halfMade ends the daemon in the middle of a creation, before the OCI runtime has
// begun, and returns the command with which that would go on.
func (r *rig) halfMade(bundle string) (pidFile, create, runc string) {
	r.t.Helper()
	if _, err := r.tasks("sb").Create(r.ctx(), task.CreateRequest{ID: "half", Bundle: bundle}); err != nil {
		r.t.Fatal(err)
	}
	r.close()
	runc = "runc --root " + filepath.Join(r.dir, "runc/test")
	r.shell(runc + " delete --force half")
	r.rewrite(r.path("sb", "t", "half", "init.json"), func(rec map[string]any) {
		rec["State"], rec["Pid"], rec["Serial"] = "adding", 0, 0
	})
	pidFile = filepath.Join(r.dir, "half.pid")
	return pidFile, "exec " + runc + " create --bundle " + bundle + " --pid-file " + pidFile + " half", runc
}

func TestRuntimeThatStillCreatesIsEnded(t *testing.T) {
	r := newRig(t)
	r.run("sb", &api.Options{})
	bundle := r.bundle("half", "busybox sleep 1000")
	pid, create, runc := r.halfMade(bundle)
	r.spawn("sb", "half", pid, "sleep 0.3; "+create)
	r.open()
	if _, err := r.tasks("sb").State(r.ctx(), "half", ""); !errdefs.IsNotFound(err) {
		t.Errorf("the half-made container is there: %v", err)
	}
	if out, err := exec.Command("/bin/sh", "-c", runc+" list -q").CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("the runtime still has %q, %v", out, err)
	}
}

func TestDeletionOfADeadDaemonIsTold(t *testing.T) {
	r := newRig(t)
	r.run("sb", &api.Options{})
	r.container("sb", "c", "exit 3")
	r.wait("sb", "c")
	r.close()
	if err := os.Rename(r.path("sb", "t", "c"), r.path("sb", "t", ".c")); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		r.open()
		if n := r.count("delete c"); n != 1 {
			t.Errorf("%d deletions told, want 1: %q", n, r.events.all())
		}
		if _, err := r.tasks("sb").State(r.ctx(), "c", ""); !errdefs.IsNotFound(err) {
			t.Errorf("the container is there: %v", err)
		}
		if left, err := os.ReadDir(r.path("sb", "t")); err != nil || len(left) > 0 {
			t.Errorf("left: %v, %v", left, err)
		}
		r.close()
	}
	r.open()
}

func TestStartThatADeadDaemonDidNotTell(t *testing.T) {
	for _, told := range []bool{true, false} {
		r := newRig(t)
		r.run("sb", &api.Options{})
		r.container("sb", "c", "busybox sleep 1000")
		r.close()
		r.rewrite(r.path("sb", "t", "c", "init.json"), func(rec map[string]any) { rec["State"] = "starting" })
		if !told {
			r.events = &recorder{}
		}
		r.open()
		if n := r.count("start c"); n != 1 {
			t.Errorf("start told %d times in %q", n, r.events.all())
		}
	}
}

func TestASandboxThatCannotBeTakenOverIsNotCalledStopped(t *testing.T) {
	r := newRig(t)
	r.run("sb", &api.Options{})
	r.container("sb", "c", "busybox sleep 1000")
	isolation := func(name string) {
		r.close()
		r.rewrite(r.path("sb", recordName), func(rec map[string]any) { rec["Settings"].(map[string]any)["Isolation"] = name })
		r.open()
	}
	isolation("of another daemon")
	// containerd keeps a task that answers Connect, and whose Pids are not NotFound.
	if _, err := r.tasks("sb").Connect(r.ctx(), "c"); err != nil {
		t.Errorf("connect: %v", err)
	}
	if _, err := r.tasks("sb").Pids(r.ctx(), "c"); !errdefs.IsUnavailable(err) {
		t.Errorf("processes of a container that may run: %v", err)
	}
	if _, err := r.ctl.Cleanup(r.ctx(), "c", r.member("sb")); !errdefs.IsUnavailable(err) {
		t.Errorf("cleanup: %v", err)
	}
	if err := r.ctl.Stop(r.ctx(), "sb"); err == nil {
		t.Error("stopped, although nobody can tell")
	}
	isolation("")
	if err := r.ctl.Stop(r.ctx(), "sb"); err != nil {
		t.Error(err)
	}
	if exit := r.wait("sb", "c"); exit.Status != 137 && exit.Status != 143 {
		t.Errorf("exit %+v", exit)
	}
}

func TestDirectoryOfAnUnfinishedFirstRecordGoes(t *testing.T) {
	r := newRig(t)
	dir := r.path("never")
	r.close()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, recordName+".new"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	r.open()
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("it is there: %v", err)
	}
}

func TestCreateSparesTheContainerOfAnotherSandbox(t *testing.T) {
	r := newRig(t)
	r.run("one", &api.Options{})
	r.run("two", &api.Options{})
	r.container("one", "c", "busybox sleep 1000")
	_, err := r.tasks("two").Create(r.ctx(), task.CreateRequest{ID: "c", Bundle: r.bundle("other", "true")})
	if !errdefs.IsAlreadyExists(err) {
		t.Errorf("create: %v", err)
	}
	if st, err := r.tasks("one").State(r.ctx(), "c", ""); err != nil || st.State != task.Running {
		t.Errorf("the other one: %+v, %v", st, err)
	}
	if events := r.events.all(); slices.ContainsFunc(events, func(e string) bool { return e == "exit c c 137" }) {
		t.Errorf("events %q", events)
	}
}

func TestDeleteIsRepeatedAfterItsFirstStep(t *testing.T) {
	r := newRig(t)
	r.run("sb", &api.Options{})
	r.container("sb", "c", "true")
	r.wait("sb", "c")
	if out, err := exec.Command("runc", "--root", filepath.Join(r.dir, "runc/test"), "delete", "c").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if _, err := r.tasks("sb").Delete(r.ctx(), "c", ""); err != nil {
		t.Error(err)
	}
}

// What a failed Create cannot take back keeps its name, so that it can be deleted.
func TestCreateThatCannotBeUndoneIsLeftToDelete(t *testing.T) {
	r := newRig(t)
	r.run("sb", &api.Options{})
	mended, runtime := filepath.Join(r.dir, "mended"), filepath.Join(r.dir, "fake-runc")
	state := filepath.Join(r.dir, "runc/test/c")
	script := "#!/bin/sh\ncase \"$*\" in *create*) mkdir -p " + state + "; exit 1;; *delete*) test -e " + mended + " && rmdir " + state + ";; esac\n"
	if err := os.WriteFile(runtime, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	opts, err := typeurl.MarshalAny(&options.Options{BinaryName: runtime})
	if err != nil {
		t.Fatal(err)
	}
	tasks := r.tasks("sb")
	req := task.CreateRequest{ID: "c", Bundle: r.bundle("c", "true"), Options: opts}
	if _, err := tasks.Create(r.ctx(), req); err == nil {
		t.Fatal("created")
	}
	if st, err := tasks.State(r.ctx(), "c", ""); err != nil || st.State != task.Stopped {
		t.Errorf("what is left: %+v, %v", st, err)
	}
	if _, err := tasks.Create(r.ctx(), req); !errdefs.IsAlreadyExists(err) {
		t.Errorf("create over it: %v", err)
	}
	if _, err := tasks.Delete(r.ctx(), "c", ""); err == nil {
		t.Error("deleted, although the runtime could not")
	}
	if err := os.WriteFile(mended, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := tasks.Delete(r.ctx(), "c", ""); err != nil {
		t.Error(err)
	}
	if n := r.count("exit c c 255"); n != 0 {
		t.Errorf("an exit was told of what never ran: %q", r.events.all())
	}
}

// member is the bundle of a container in a sandbox, as containerd leaves it.
func (r *rig) member(sandboxID string) string {
	r.t.Helper()
	bundle := r.t.TempDir()
	if err := os.WriteFile(filepath.Join(bundle, "sandbox"), []byte(sandboxID), 0o600); err != nil {
		r.t.Fatal(err)
	}
	return bundle
}

// What cannot be read may run all the same: clients take NotFound for an end.
func TestWhatCannotBeReadIsNotCalledGone(t *testing.T) {
	r := newRig(t)
	r.run("sb", &api.Options{})
	r.container("sb", "c", "busybox sleep 1000")
	for _, path := range []string{r.path("sb", "t", "c", "init.json"), r.path("sb", recordName)} {
		good, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		r.close()
		if err := os.WriteFile(path, []byte("{"), 0o600); err != nil {
			t.Fatal(err)
		}
		r.open()
		if filepath.Base(path) == recordName {
			if st, err := r.ctl.Status(r.ctx(), "sb", false); !errdefs.IsUnavailable(err) {
				t.Errorf("status: %+v, %v", st, err)
			}
			if _, err := r.ctl.Endpoint(r.ctx(), "sb", r.dir); !errdefs.IsUnavailable(err) {
				t.Errorf("endpoint in its place: %v", err)
			}
		} else {
			if st, err := r.tasks("sb").State(r.ctx(), "c", ""); !errdefs.IsUnavailable(err) {
				t.Errorf("state: %+v, %v", st, err)
			}
			if _, err := r.tasks("sb").Create(r.ctx(), task.CreateRequest{ID: "c", Bundle: r.bundle("other", "true")}); !errdefs.IsAlreadyExists(err) {
				t.Errorf("create in its place: %v", err)
			}
		}
		if _, err := r.ctl.Cleanup(r.ctx(), "c", r.member("sb")); !errdefs.IsUnavailable(err) {
			t.Errorf("cleanup: %v", err)
		}
		r.close()
		if err := os.WriteFile(path, good, 0o600); err != nil {
			t.Fatal(err)
		}
		r.open()
		if st, err := r.tasks("sb").State(r.ctx(), "c", ""); err != nil || st.State != task.Running {
			t.Errorf("mended: %+v, %v", st, err)
		}
	}
}

// TestReadAgainLater: what cannot be read for a reason that passes is taken over when
// it has passed.
func TestReadAgainLater(t *testing.T) {
	r := newRig(t)
	r.run("sb", &api.Options{})
	r.container("sb", "c", "busybox sleep 1000")
	for _, path := range []string{r.path("sb", "t", "c", "init.json"), r.path("sb", recordName)} {
		r.close()
		if err := os.Rename(path, path+".away"); err != nil {
			t.Fatal(err)
		}
		if err := os.Mkdir(path, 0o700); err != nil { // it opens, and cannot be read
			t.Fatal(err)
		}
		r.open()
		running := func() bool {
			tasks, err := r.ctl.Tasks(r.ctx(), "sb")
			if err != nil {
				if !errdefs.IsUnavailable(err) {
					t.Errorf("%s: %v", filepath.Base(path), err)
				}
				return false
			}
			st, err := tasks.State(r.ctx(), "c", "")
			if err != nil && !errdefs.IsUnavailable(err) {
				t.Errorf("%s: %v", filepath.Base(path), err)
			}
			return err == nil && st.State == task.Running
		}
		if running() {
			t.Errorf("%s: it was read", filepath.Base(path))
		}
		// In one step: a record that is not there says something else.
		if err := unix.Renameat2(unix.AT_FDCWD, path+".away", unix.AT_FDCWD, path, unix.RENAME_EXCHANGE); err != nil {
			t.Fatal(err)
		}
		if err := os.Remove(path + ".away"); err != nil {
			t.Fatal(err)
		}
		r.eventually("the container is taken over", running)
	}
}

// TestExitThatCannotBeWritten: it is told, and the monitor keeps it for a daemon that
// has only the record.
func TestExitThatCannotBeWritten(t *testing.T) {
	r := newRig(t)
	r.run("sb", &api.Options{})
	out := r.container("sb", "c", "trap 'exit 9' TERM; echo ready; while :; do busybox usleep 10000; done")
	r.eventually("the container is ready", func() bool { return r.output(out) == "ready" })
	blocked := r.path("sb", "t", "c", "init.json.new")
	if err := os.MkdirAll(filepath.Join(blocked, "full"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := r.tasks("sb").Kill(r.ctx(), "c", "", uint32(unix.SIGTERM), false); err != nil {
		t.Fatal(err)
	}
	if exit := r.wait("sb", "c"); exit.Status != 9 {
		t.Errorf("exit %+v", exit)
	}
	r.close()
	if err := os.RemoveAll(blocked); err != nil {
		t.Fatal(err)
	}
	r.open()
	if exit := r.wait("sb", "c"); exit.Status != 9 {
		t.Errorf("exit %+v, by the next daemon", exit)
	}
	if n := r.count("exit c c 9"); n != 1 {
		t.Errorf("events %q", r.events.all())
	}
}

// TestMonitorDiesWhileARuntimeStarts: the daemon waits for that runtime, and for no
// other process that looks like one.
func TestMonitorDiesWhileARuntimeStarts(t *testing.T) {
	r := newRig(t)
	r.run("sb", &api.Options{})
	starts, runtime := filepath.Join(r.dir, "starts"), filepath.Join(r.dir, "slow-runc")
	script := "#!/bin/sh\ncase \"$*\" in *' start '*) echo $$ >" + starts + "; busybox sleep 1;; esac\nexec runc \"$@\"\n"
	if err := os.WriteFile(runtime, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	bystander := exec.Command("/bin/sh", "-c", "while :; do sleep 1; done", "sh", "--pid-file", "/run/some.pid", "--log", "/run/some.log")
	if err := bystander.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = bystander.Wait() // it is killed, by whomever
	}()
	defer func() {
		select {
		case <-ended:
			t.Error("a process of somebody else's was killed")
		default:
			_ = bystander.Process.Kill() // it runs
			<-ended
		}
	}()
	opts, err := typeurl.MarshalAny(&options.Options{BinaryName: runtime})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.tasks("sb").Create(r.ctx(), task.CreateRequest{ID: "c", Bundle: r.bundle("c", "busybox sleep 1000"), Options: opts}); err != nil {
		t.Fatal(err)
	}
	started := make(chan error, 1)
	go func() {
		_, err := r.tasks("sb").Start(r.ctx(), "c", "")
		started <- err
	}()
	r.eventually("the runtime starts the container", func() bool { _, err := os.Stat(starts); return err == nil })
	begin := time.Now()
	if err := unix.Kill(r.pids("sb")["monitor"], unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := <-started; err == nil {
		t.Error("started without a monitor")
	}
	if took := time.Since(begin); took < 500*time.Millisecond {
		t.Errorf("the runtime was not waited for: %v", took)
	}
	if _, err := r.ctl.Wait(r.ctx(), "sb"); err != nil {
		t.Error(err)
	}
}

// TestExitOfADeadDaemonIsToldBeforeTheDeletion: it had written the end down, and told
// nobody of it.
func TestExitOfADeadDaemonIsToldBeforeTheDeletion(t *testing.T) {
	r := newRig(t)
	r.run("sb", &api.Options{})
	r.container("sb", "c", "busybox sleep 1000")
	st, err := r.tasks("sb").State(r.ctx(), "c", "")
	if err != nil {
		t.Fatal(err)
	}
	r.close()
	r.events = &recorder{}
	if err := unix.Kill(st.Pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	r.rewrite(r.path("sb", "t", "c", "init.json"), func(rec map[string]any) {
		rec["State"], rec["ExitStatus"], rec["ExitedAt"] = "stopped", 137, time.Now()
	})
	r.open()
	if _, err := r.tasks("sb").Delete(r.ctx(), "c", ""); err != nil {
		t.Fatal(err)
	}
	if got := r.events.all(); !slices.Equal(got, []string{"exit c c 137", "delete c"}) {
		t.Errorf("events %q", got)
	}
}
