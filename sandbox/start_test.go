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
	"caisson/internal/task"
)

// TestStartsNeedNoRuntime: one is run only for what nobody else can do, such as hooks.
func TestStartsNeedNoRuntime(t *testing.T) {
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
	start := func(id string, edit func(*specs.Spec)) (starts int) {
		t.Helper()
		if err := os.RemoveAll(verbs); err != nil {
			t.Fatal(err)
		}
		bundle := r.bundle(id, "exit 7")
		r.editSpec(bundle, edit)
		r.start("sb", task.CreateRequest{ID: id, Bundle: bundle, Options: opts})
		if exit := r.wait("sb", id); exit.Status != 7 {
			t.Errorf("%s: exit %+v", id, exit)
		}
		return strings.Count(r.output(verbs), " start ")
	}

	if n := start("plain", func(*specs.Spec) {}); n != 0 {
		t.Errorf("a plain container was started by %d runtimes", n)
	}
	note := filepath.Join(r.dir, "note")
	hook := specs.Hook{Path: "/bin/sh", Args: []string{"sh", "-c", "echo hooked >" + note}}
	if n := start("hook", func(s *specs.Spec) { s.Hooks = &specs.Hooks{Poststart: []specs.Hook{hook}} }); n != 1 {
		t.Errorf("a container with a hook was started by %d runtimes", n)
	}
	if got := r.output(note); got != "hooked" {
		t.Errorf("the hook wrote %q", got)
	}
	if got := r.events.all(); !slices.Contains(got, "start plain") || !slices.Contains(got, "start hook") {
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
