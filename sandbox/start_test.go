package sandbox

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/typeurl/v2"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	api "caisson/api/caisson/sandbox/v1"
	"caisson/internal/oci"
	"caisson/internal/task"
)

// TestRuntimesAreSpared: to start a container and to delete it one is run only for what
// nobody else can do, such as hooks.
func TestRuntimesAreSpared(t *testing.T) {
	r := newRig(t)
	r.run("sb", &api.Options{})
	verbs, runtime := filepath.Join(r.dir, "verbs"), filepath.Join(r.dir, "bin", "runc")
	if err := os.Mkdir(filepath.Dir(runtime), 0o755); err != nil {
		t.Fatal(err)
	}
	script := "#!/bin/sh\necho \" $* \" >>" + verbs + "\nexec runc \"$@\"\n"
	if err := os.WriteFile(runtime, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	opts, err := typeurl.MarshalAny(&options.Options{BinaryName: runtime})
	if err != nil {
		t.Fatal(err)
	}
	live := func(id string, hooks *specs.Hooks, wantStarts, wantDeletes int) {
		t.Helper()
		if err := os.RemoveAll(verbs); err != nil {
			t.Fatal(err)
		}
		bundle := r.bundle(id, "exit 7")
		r.editSpec(bundle, func(s *specs.Spec) { s.Hooks = hooks })
		r.start("sb", task.CreateRequest{ID: id, Bundle: bundle, Options: opts})
		if exit := r.wait("sb", id); exit.Status != 7 {
			t.Errorf("%s: exit %+v", id, exit)
		}
		spec, err := oci.ReadSpec(bundle)
		if err != nil {
			t.Fatal(err)
		}
		traces := func() (n int) {
			for _, pattern := range []string{filepath.Join(r.dir, "runc/test", id), "/sys/fs/cgroup/*" + spec.Linux.CgroupsPath, "/sys/fs/cgroup" + spec.Linux.CgroupsPath} {
				found, err := filepath.Glob(pattern)
				if err != nil {
					t.Fatal(err)
				}
				n += len(found)
			}
			return n
		}
		if n := traces(); n < 2 {
			t.Errorf("%s: %d traces before it is deleted", id, n)
		}
		if _, err := r.tasks("sb").Delete(r.ctx(), id, ""); err != nil {
			t.Fatal(err)
		}
		if n := traces(); n != 0 {
			t.Errorf("%s left %d traces", id, n)
		}
		said := r.output(verbs)
		if starts, deletes := strings.Count(said, " start "), strings.Count(said, " delete "); starts != wantStarts || deletes != wantDeletes {
			t.Errorf("%s: %d runtimes to start it and %d to delete it, want %d and %d", id, starts, deletes, wantStarts, wantDeletes)
		}
	}

	live("plain", nil, 0, 0)
	note := filepath.Join(r.dir, "note")
	hooks := []specs.Hook{{Path: "/bin/sh", Args: []string{"sh", "-c", "echo hooked >>" + note}}}
	live("at-start", &specs.Hooks{Poststart: hooks}, 1, 0)
	live("at-stop", &specs.Hooks{Poststop: hooks}, 0, 1)
	if got := r.output(note); got != "hooked\nhooked" {
		t.Errorf("the hooks wrote %q", got)
	}
	if got := r.events.all(); !slices.Contains(got, "start plain") || !slices.Contains(got, "start at-start") {
		t.Errorf("events: %q", got)
	}
}

// TestStartOfALostFIFO: what cannot be let go on is the runtime's to explain.
func TestStartOfALostFIFO(t *testing.T) {
	r := newRig(t)
	r.run("sb", &api.Options{})
	if _, err := r.tasks("sb").Create(r.ctx(), task.CreateRequest{ID: "c", Bundle: r.bundle("c", "exit 7")}); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(r.dir, "runc", "test", "c", "exec.fifo")); err != nil {
		t.Fatal(err)
	}
	if _, err := r.tasks("sb").Start(r.ctx(), "c", ""); err == nil || !strings.Contains(err.Error(), "runc start: ") {
		t.Errorf("error %v", err)
	}
}

// TestStartIsGivenUp: a runtime under way goes on, and what it has started runs, whoever
// still wants to know.
func TestStartIsGivenUp(t *testing.T) {
	r := newRig(t)
	r.run("sb", &api.Options{})
	starts, runtime := filepath.Join(r.dir, "starts"), filepath.Join(r.dir, "slow-runc")
	script := "#!/bin/sh\ncase \"$*\" in *' start '*) : >" + starts + "; busybox sleep 1;; esac\nexec runc \"$@\"\n"
	if err := os.WriteFile(runtime, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	opts, err := typeurl.MarshalAny(&options.Options{BinaryName: runtime})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.tasks("sb").Create(r.ctx(), task.CreateRequest{ID: "c", Bundle: r.bundle("c", "exit 7"), Options: opts}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(r.ctx())
	defer cancel()
	started := make(chan error, 1)
	go func() {
		_, err := r.tasks("sb").Start(ctx, "c", "")
		started <- err
	}()
	r.eventually("the runtime starts the container", func() bool { _, err := os.Stat(starts); return err == nil })
	cancel()
	if err := <-started; err != nil {
		t.Errorf("it runs: %v", err)
	}
	if exit := r.wait("sb", "c"); exit.Status != 7 {
		t.Errorf("exit %+v", exit)
	}
	if n := r.count("start c"); n != 1 {
		t.Errorf("events %q", r.events.all())
	}
}
