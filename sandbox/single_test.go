package sandbox

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	core "github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/errdefs"

	api "caisson/api/caisson/sandbox/v1"
)

func TestSingleContainersHaveNoWalls(t *testing.T) {
	r := newRig(t)
	ctx := r.ctx()
	for range 2 {
		address, err := r.ctl.Endpoint(ctx, "solo")
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

func TestCleanupRemovesOnlyTheSandboxesOfContainerdsSandboxer(t *testing.T) {
	r := newRig(t)
	ctx := r.ctx()
	if _, err := r.ctl.Endpoint(ctx, "shimmed"); err != nil {
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
	if _, err := r.ctl.Endpoint(ctx, "both"); err != nil {
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
