package sandbox

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	core "github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"

	api "caisson/api/caisson/sandbox/v1"
)

// limits are a sandbox's limits of processes, one for each hierarchy that has them.
func (r *rig) limits(id string) (limits []string) {
	r.t.Helper()
	for _, pattern := range []string{"/sys/fs/cgroup/pids", "/sys/fs/cgroup"} {
		files, err := filepath.Glob(filepath.Join(pattern, "caisson-test-"+filepath.Base(r.dir), "test--"+id, "pids.max"))
		if err != nil {
			r.t.Fatal(err)
		}
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				r.t.Fatal(err)
			}
			limits = append(limits, strings.TrimSpace(string(text)))
		}
	}
	return limits
}

// TestStartMakesTheCgroup: with the limits that were set until then.
func TestStartMakesTheCgroup(t *testing.T) {
	r := newRig(t)
	if err := r.ctl.Create(r.ctx(), core.Sandbox{ID: "sb"}, core.WithOptions(&api.Options{Resources: &api.Resources{PidsLimit: 50}})); err != nil {
		t.Fatal(err)
	}
	if got := r.limits("sb"); len(got) > 0 {
		t.Errorf("limits before the start: %q", got)
	}
	change, err := typeurl.MarshalAny(&api.Options{Resources: &api.Resources{PidsLimit: 77}})
	if err != nil {
		t.Fatal(err)
	}
	sb := core.Sandbox{ID: "sb", Extensions: map[string]typeurl.Any{ownExtension: change}}
	if err := r.ctl.Update(r.ctx(), "sb", sb, "extensions"); err != nil {
		t.Fatalf("update before the start: %v", err)
	}
	if _, err := r.ctl.Metrics(r.ctx(), "sb"); !errdefs.IsNotFound(err) {
		t.Errorf("metrics before the start: %v", err)
	}
	if _, err := r.ctl.Start(r.ctx(), "sb"); err != nil {
		t.Fatal(err)
	}
	if got := r.limits("sb"); len(got) != 1 || got[0] != "77" {
		t.Errorf("limits %q", got)
	}
}

// TestStartWithoutItsCgroup: walls that are up by then come down again.
func TestStartWithoutItsCgroup(t *testing.T) {
	r := newRig(t)
	o := &api.Options{Resources: &api.Resources{CpusetCpus: "100000"}} // there is no such processor
	if err := r.ctl.Create(r.ctx(), core.Sandbox{ID: "sb"}, core.WithOptions(o)); err != nil {
		t.Fatal(err)
	}
	if _, err := r.ctl.Start(r.ctx(), "sb"); err == nil {
		t.Fatal("started")
	}
	if ids := r.ids(); len(ids) > 0 {
		t.Errorf("left: %q", ids)
	}
	if sbs, err := r.store.List(r.ctx()); err != nil || len(sbs) > 0 {
		t.Errorf("records %v, %v", sbs, err)
	}
}
