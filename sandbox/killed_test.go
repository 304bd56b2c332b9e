package sandbox

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	api "caisson/api/caisson/sandbox/v1"
	"caisson/internal/cgroup"
	"caisson/internal/task"
)

// ownCgroup is a path beside the sandboxes' own, as CRI chooses one.
func (r *rig) ownCgroup(id string) string {
	return filepath.Join("/caisson-test-"+filepath.Base(r.dir), "own-"+id)
}

// suicidal makes a container whose OCI runtime is killed while it creates it: after
// it has made the cgroup, before it has noted the container.
func (r *rig) suicidal(id string) (bundle string) {
	bundle = r.bundle(id, "true")
	r.editSpec(bundle, func(s *specs.Spec) {
		s.Linux.CgroupsPath = r.ownCgroup(id)
		s.Hooks = &specs.Hooks{CreateRuntime: []specs.Hook{{Path: "/bin/sh", Args: []string{"sh", "-c", "kill -KILL $PPID"}}}}
	})
	return bundle
}

func (r *rig) expectNoCgroup(id string) {
	r.t.Helper()
	if _, err := cgroup.Load(r.ownCgroup(id)); !errdefs.IsNotFound(err) {
		r.t.Errorf("cgroup of what was not created: %v", err)
	}
}

// TestKilledRuntimeLeavesNothing: runc that is killed forgets the cgroup it has made.
func TestKilledRuntimeLeavesNothing(t *testing.T) {
	r := newRig(t)
	r.run("sb", &api.Options{})
	if _, err := r.tasks("sb").Create(r.ctx(), task.CreateRequest{ID: "c", Bundle: r.suicidal("c")}); err == nil {
		t.Fatal("created by a runtime that was killed")
	}
	r.expectNoCgroup("c")
}

// TestRuntimeKilledWhileNobodyWatches is the same for a creation that the next daemon
// has to undo.
func TestRuntimeKilledWhileNobodyWatches(t *testing.T) {
	r := newRig(t)
	r.run("sb", &api.Options{})
	bundle := r.bundle("half", "true")
	r.editSpec(bundle, func(s *specs.Spec) { s.Linux.CgroupsPath = r.ownCgroup("half") })
	pid, create, _ := r.halfMade(bundle)
	r.suicidal("half")
	r.spawn("sb", "half", pid, create)
	r.open()
	if _, err := r.tasks("sb").State(r.ctx(), "half", ""); !errdefs.IsNotFound(err) {
		t.Errorf("the half-made container is there: %v", err)
	}
	r.expectNoCgroup("half")
}

// TestCgroupOfOthersStays: what was there before a failed creation is there after it.
func TestCgroupOfOthersStays(t *testing.T) {
	r := newRig(t)
	r.run("sb", &api.Options{})
	err := os.MkdirAll(filepath.Join("/sys/fs/cgroup", r.ownCgroup("c")), 0o755)
	if r.onV1() {
		_, err = cgroup.Create(r.ownCgroup("c"), nil) // on v2 one for groups, into which no process may go
	}
	if err != nil {
		t.Fatal(err)
	}
	_, created := r.tasks("sb").Create(r.ctx(), task.CreateRequest{ID: "c", Bundle: r.suicidal("c")})
	if created == nil {
		t.Fatal("created by a runtime that was killed")
	}
	group, err := cgroup.Load(r.ownCgroup("c"))
	if err != nil {
		t.Fatalf("a cgroup that was there before: %v, after: %v", err, created)
	}
	if err := group.Delete(t.Context()); err != nil {
		t.Error(err)
	}
}
