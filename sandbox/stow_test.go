package sandbox

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	core "github.com/containerd/containerd/v2/core/sandbox"
	"github.com/opencontainers/runtime-spec/specs-go"

	api "caisson/api/caisson/sandbox/v1"
	"caisson/internal/stdio"
	"caisson/internal/task"
)

// files has a sandbox's files on the host until the test ends.
func (r *rig) files(id string) {
	r.t.Helper()
	b, err := r.ctl.find(r.ctx(), id)
	if err != nil {
		r.t.Fatal(err)
	}
	done, err := b.useFiles(r.ctx())
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(done)
}

// shm is a file in a sandbox's /dev/shm as a container sees it.
func (r *rig) shm(sandboxID, id, name string) string {
	r.t.Helper()
	st, err := r.tasks(sandboxID).State(r.ctx(), id, "")
	if err != nil {
		r.t.Fatal(err)
	}
	return fmt.Sprintf("/proc/%d/root/dev/shm/%s", st.Pid, name)
}

// mounts are the mount points of the host that belong to the test, but for network
// namespaces.
func (r *rig) mounts() (points []string) {
	r.t.Helper()
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		r.t.Fatal(err)
	}
	for line := range strings.Lines(string(table)) {
		if point := strings.Fields(line)[4]; strings.HasPrefix(point, r.dir+"/") && !strings.HasPrefix(point, r.dir+"/netns/") {
			points = append(points, strings.TrimPrefix(point, r.dir+"/"))
		}
	}
	return points
}

// unmounted waits until the host has no mount of the test's.
func (r *rig) unmounted() {
	r.t.Helper()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		left := r.mounts()
		if len(left) == 0 {
			return
		}
		if time.Now().After(end) {
			r.t.Fatalf("still mounted on the host: %q", left)
		}
	}
}

// startMounted starts the container of a bundle, whose root filesystem is mounted for it.
func (r *rig) startMounted(sandboxID, id, bundle string, streams stdio.Config) {
	r.t.Helper()
	source := filepath.Join(r.dir, "images", id)
	if err := os.MkdirAll(filepath.Dir(source), 0o755); err != nil {
		r.t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(bundle, "rootfs"), source); err != nil {
		r.t.Fatal(err)
	}
	r.start(sandboxID, task.CreateRequest{
		ID: id, Bundle: bundle, Stdio: streams,
		Rootfs: []mount.Mount{{Type: "bind", Source: source, Options: []string{"rbind", "rw"}}},
	})
}

// TestHooksSeeTheRootfs: what a hook after a container's end may look at stays mounted.
func TestHooksSeeTheRootfs(t *testing.T) {
	r := newRig(t)
	r.run("sb", &api.Options{})
	seen := filepath.Join(r.dir, "seen")
	bundle := r.bundle("hooked", "echo mark >/mark")
	r.editSpec(bundle, func(spec *specs.Spec) {
		spec.Hooks = &specs.Hooks{Poststop: []specs.Hook{{Path: "/bin/cp", Args: []string{"cp", filepath.Join(bundle, "rootfs/mark"), seen}}}}
	})
	r.startMounted("sb", "hooked", bundle, stdio.Config{})
	if exit := r.wait("sb", "hooked"); exit.Status != 0 {
		t.Errorf("exit %+v", exit)
	}
	if _, err := r.tasks("sb").Delete(r.ctx(), "hooked", ""); err != nil {
		t.Error(err)
	}
	if text, err := os.ReadFile(seen); string(text) != "mark\n" {
		t.Errorf("the hook saw %q, %v", text, err)
	}
}

// TestNoMountsOnTheHost: a sandbox that runs has none of its own there, and makes further
// containers all the same, after restarts of the daemon as well.
func TestNoMountsOnTheHost(t *testing.T) {
	r := newRig(t)
	if err := r.ctl.Create(r.ctx(), core.Sandbox{ID: "sb"}, core.WithOptions(&api.Options{Hostname: "box"})); err != nil {
		t.Fatal(err)
	}
	if _, err := r.ctl.Start(r.ctx(), "sb"); err != nil {
		t.Fatal(err)
	}
	output := func(id, script string) string {
		out := filepath.Join(r.dir, id+".out")
		r.startMounted("sb", id, r.bundle(id, script), stdio.Config{Stdout: "file://" + out, Stderr: "file://" + out})
		return out
	}
	output("first", "echo first >/dev/shm/file; exec busybox sleep 1000")
	r.unmounted()
	for _, id := range []string{"second", "third"} {
		out := output(id, "busybox cat /etc/hostname /dev/shm/file; echo "+id+" >/dev/shm/file")
		if exit := r.wait("sb", id); exit.Status != 0 {
			t.Errorf("%s: exit %+v", id, exit)
		}
		want := map[string]string{"second": "box\nfirst", "third": "box\nsecond"}[id]
		if got := r.output(out); got != want {
			t.Errorf("%s: output %q, want %q", id, got, want)
		}
		r.unmounted()
		r.close()
		r.open()
	}
	if text, err := os.ReadFile(r.shm("sb", "first", "file")); string(text) != "third\n" {
		t.Errorf("in the first container: %q, %v", text, err)
	}
	if _, err := r.tasks("sb").Delete(r.ctx(), "second", ""); err != nil {
		t.Error(err)
	}
}
