package sandbox

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/api/types/runc/options"
	core "github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	"golang.org/x/sys/unix"

	api "caisson/api/caisson/sandbox/v1"
	"caisson/internal/task"
)

func TestSingleContainersHaveNoWalls(t *testing.T) {
	r := newRig(t)
	ctx := r.ctx()
	for range 2 {
		address, err := r.ctl.Endpoint(ctx, "solo", r.dir)
		if err != nil || !strings.HasPrefix(address, "unix:///") {
			t.Fatalf("endpoint %q, %v", address, err)
		}
	}
	out := r.container("solo", "solo", "busybox cat /etc/hostname; busybox ls /dev/shm; exit 8")
	if exit := r.wait("solo", "solo"); exit.Status != 8 {
		t.Errorf("exit %+v", exit)
	}
	if got := r.output(out); !strings.Contains(got, "No such file") {
		t.Errorf("it has a sandbox's files: %q", got)
	}
	if _, err := r.ctl.Status(ctx, "solo", false); !errdefs.IsNotFound(err) {
		t.Errorf("it is told as a sandbox: %v", err)
	}
	if err := r.ctl.Release(ctx, "solo"); err != nil {
		t.Fatal(err)
	}
	if r.tasks("solo").Len() != 1 {
		t.Error("released with a container in it")
	}
	exit, err := r.ctl.Cleanup(ctx, "solo", "")
	if err != nil || exit.Status != 8 {
		t.Errorf("cleanup %+v, %v", exit, err)
	}
	if _, err := r.ctl.Tasks(ctx, "solo"); !errdefs.IsNotFound(err) {
		t.Errorf("it is still there: %v", err)
	}
	if exit, err := r.ctl.Cleanup(ctx, "solo", ""); err != nil || exit.Status != 255 {
		t.Errorf("second cleanup %+v, %v", exit, err)
	}
}

// TestDeletionOfASingleCanBeRepeated: the answer to Delete may not have reached
// containerd, whose client then asks for the container, and deletes it again.
func TestDeletionOfASingleCanBeRepeated(t *testing.T) {
	r := newRig(t)
	ctx := r.ctx()
	if _, err := r.ctl.Endpoint(ctx, "solo", r.dir); err != nil {
		t.Fatal(err)
	}
	r.container("solo", "solo", "exit 8")
	r.wait("solo", "solo")
	first, err := r.tasks("solo").Delete(ctx, "solo", "")
	if err != nil || first.Status != 8 {
		t.Fatalf("delete: %+v, %v", first, err)
	}
	same := func(e task.Exit) bool { return e.Pid == first.Pid && e.Status == first.Status && e.At.Equal(first.At) }
	for _, daemon := range []string{"the same daemon", "the next daemon"} {
		if daemon == "the next daemon" {
			r.close()
			r.open()
		}
		if st, err := r.tasks("solo").State(ctx, "solo", ""); err != nil || st.State != task.Stopped || !same(st.Exit) {
			t.Errorf("%s: state %+v, %v", daemon, st, err)
		}
		if exit := r.wait("solo", "solo"); !same(exit) {
			t.Errorf("%s: wait %+v, want %+v", daemon, exit, first)
		}
		if exit, err := r.tasks("solo").Delete(ctx, "solo", ""); err != nil || !same(exit) {
			t.Errorf("%s: delete %+v, %v", daemon, exit, err)
		}
		// That it has no process tells containerd, when it starts, that it is done with.
		if _, err := r.tasks("solo").Pids(ctx, "solo"); !errdefs.IsNotFound(err) {
			t.Errorf("%s: pids: %v", daemon, err)
		}
	}
	if n := r.count("delete solo"); n != 1 {
		t.Errorf("its deletion was told %d times", n)
	}
	if err := r.ctl.Release(ctx, "solo"); err != nil {
		t.Fatal(err)
	}
	if _, err := r.ctl.Tasks(ctx, "solo"); !errdefs.IsNotFound(err) {
		t.Errorf("it is still there: %v", err)
	}
}

func TestCleanupRemovesOnlyTheSandboxesOfContainerdsSandboxer(t *testing.T) {
	r := newRig(t)
	ctx := r.ctx()
	if _, err := r.ctl.Endpoint(ctx, "shimmed", r.dir); err != nil {
		t.Fatal(err)
	}
	r.run("shimmed", &api.Options{})
	r.run("proxied", &api.Options{})
	if _, err := r.store.Get(ctx, "shimmed"); !errdefs.IsNotFound(err) {
		t.Errorf("record of a sandbox that containerd keeps itself: %v", err)
	}
	if err := r.ctl.Update(ctx, "shimmed", core.Sandbox{Labels: map[string]string{"a": "b"}}, "labels"); err != nil {
		t.Error(err)
	}
	r.close()
	r.open() // it is remembered
	for _, id := range []string{"shimmed", "proxied"} {
		if _, err := r.ctl.Cleanup(ctx, id, r.dir); err != nil {
			t.Errorf("cleanup of %s: %v", id, err)
		}
	}
	if _, err := r.ctl.Status(ctx, "shimmed", false); !errdefs.IsNotFound(err) {
		t.Errorf("what containerd gave up on is there: %v", err)
	}
	if st, err := r.ctl.Status(ctx, "proxied", false); err != nil || st.State != stateReady {
		t.Errorf("the other sandbox: %+v, %v", st, err)
	}
	// A container in a sandbox of its own ID names it in its bundle.
	if _, err := r.ctl.Endpoint(ctx, "both", r.dir); err != nil {
		t.Fatal(err)
	}
	r.run("both", &api.Options{})
	bundle := t.TempDir()
	if err := os.WriteFile(filepath.Join(bundle, "sandbox"), []byte("both"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := r.ctl.Cleanup(ctx, "c", bundle); err != nil {
		t.Error(err)
	}
	if st, err := r.ctl.Status(ctx, "both", false); err != nil || st.State != stateReady {
		t.Errorf("the sandbox of a container that is gone: %+v, %v", st, err)
	}
}

// stuck is a runtime whose creations wait until the FIFO go is opened for writing, and
// then fail; asked is opened by each of them.
func (r *rig) stuck() (opts typeurl.Any, asked, goOn string) {
	r.t.Helper()
	runtime := filepath.Join(r.dir, "stuck")
	asked, goOn = filepath.Join(r.dir, "asked"), filepath.Join(r.dir, "go")
	for _, path := range []string{asked, goOn} {
		if err := unix.Mkfifo(path, 0o600); err != nil {
			r.t.Fatal(err)
		}
	}
	script := "#!/bin/sh\ncase \"$*\" in *create*) : > " + asked + "; read _ < " + goOn + "; exit 1;; esac\n"
	if err := os.WriteFile(runtime, []byte(script), 0o700); err != nil {
		r.t.Fatal(err)
	}
	opts, err := typeurl.MarshalAny(&options.Options{BinaryName: runtime})
	if err != nil {
		r.t.Fatal(err)
	}
	return opts, asked, goOn
}

// discard removes a bundle as containerd does.
func (r *rig) discard(bundle string) {
	r.t.Helper()
	hidden := filepath.Join(filepath.Dir(bundle), "."+filepath.Base(bundle))
	if err := errors.Join(os.Rename(bundle, hidden), os.RemoveAll(hidden)); err != nil {
		r.t.Fatal(err)
	}
}

// isGone waits until nothing is left of a single container's sandbox.
func (r *rig) isGone(id string) {
	r.t.Helper()
	dir := r.path(id)
	r.eventually("nothing of "+id, func() bool {
		_, err := r.ctl.Tasks(r.ctx(), id)
		_, serr := os.Lstat(dir)
		return errdefs.IsNotFound(err) && errors.Is(serr, os.ErrNotExist)
	})
}

// containerd gives up on a creation that takes long: it asks for the end of what is
// there, which is nothing yet, and never again.
func TestSingleGoesWithItsBundle(t *testing.T) {
	r := newRig(t)
	ctx := r.ctx()

	bundle := r.bundle("slow", "true")
	if _, err := r.ctl.Endpoint(ctx, "slow", bundle); err != nil {
		t.Fatal(err)
	}
	opts, asked, goOn := r.stuck()
	created := make(chan error, 1)
	go func() {
		_, err := r.ctl.CreateTask(ctx, "slow", task.CreateRequest{ID: "slow", Bundle: bundle, Options: opts})
		created <- err
	}()
	if _, err := os.ReadFile(asked); err != nil { // returns when it is at it
		t.Fatal(err)
	}
	if err := r.ctl.Release(ctx, "slow"); err != nil {
		t.Fatal(err)
	}
	r.discard(bundle)
	if err := os.WriteFile(goOn, []byte("\n"), 0); err != nil {
		t.Fatal(err)
	}
	if err := <-created; err == nil {
		t.Error("created")
	}
	r.isGone("slow")

	// The same for one that runs: whoever could have stopped it does not know it any more.
	bundle = r.bundle("runs", "busybox sleep 1000")
	if _, err := r.ctl.Endpoint(ctx, "runs", bundle); err != nil {
		t.Fatal(err)
	}
	r.container("runs", "runs", "busybox sleep 1000")
	r.discard(bundle)
	r.isGone("runs")
	if n := r.count("exit runs runs 137"); n != 1 {
		t.Errorf("its end was told %d times: %q", n, r.events.all())
	}
}

// The program that asks for an endpoint is killed with its client, and containerd
// does not ask for the end of what it made.
func TestEndpointGoesWithItsBundle(t *testing.T) {
	r := newRig(t)
	for _, away := range []bool{false, true} {
		bundle := r.bundle("e", "true")
		if _, err := r.ctl.Endpoint(r.ctx(), "e", bundle); err != nil {
			t.Fatal(err)
		}
		if away {
			r.close()
		}
		r.discard(bundle)
		if away {
			r.open()
		}
		r.isGone("e")
		// The request of a program that nobody waits for any more.
		if _, err := r.ctl.Endpoint(r.ctx(), "e", bundle); !errdefs.IsNotFound(err) {
			t.Errorf("an endpoint without a bundle: %v", err)
		}
		r.isGone("e")
	}
	// A container of the ID in a sandbox has a bundle of the same name.
	for range 10 {
		bundle := r.bundle("e", "true")
		if _, err := r.ctl.Endpoint(r.ctx(), "e", bundle); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(os.Rename(bundle, bundle+".old"), os.Mkdir(bundle, 0o700)); err != nil {
			t.Fatal(err)
		}
		r.isGone("e")
		if err := errors.Join(os.RemoveAll(bundle+".old"), os.RemoveAll(bundle)); err != nil {
			t.Fatal(err)
		}
	}
	// Whoever comes back has a bundle of the same name.
	bundle := r.bundle("e", "true")
	for range 2 {
		if _, err := r.ctl.Endpoint(r.ctx(), "e", bundle); err != nil {
			t.Fatal(err)
		}
	}
	r.container("e", "e", "exit 4")
	if exit := r.wait("e", "e"); exit.Status != 4 {
		t.Errorf("exit %+v", exit)
	}
	r.discard(bundle)
	r.isGone("e")
}

// A daemon that died between the deletion of a container and the release of what
// stood for it.
func TestSingleOfADeadDaemonGoesWithItsBundle(t *testing.T) {
	r := newRig(t)
	bundle := r.bundle("solo", "exit 5")
	if _, err := r.ctl.Endpoint(r.ctx(), "solo", bundle); err != nil {
		t.Fatal(err)
	}
	r.container("solo", "solo", "exit 5")
	r.wait("solo", "solo")
	if _, err := r.tasks("solo").Delete(r.ctx(), "solo", ""); err != nil {
		t.Fatal(err)
	}
	r.close()
	r.open() // containerd may still ask
	if _, err := r.ctl.Tasks(r.ctx(), "solo"); err != nil {
		t.Errorf("it went before its bundle: %v", err)
	}
	r.close()
	r.discard(bundle)
	r.open()
	r.isGone("solo")
}
