package sandbox

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	api "caisson/api/caisson/sandbox/v1"
	"caisson/internal/stdio"
	"caisson/internal/task"
)

// TestLoggerOutlivesTheDaemon runs a logger as containerd's clients name one. It
// says where its own end is by closing a FIFO.
func TestLoggerOutlivesTheDaemon(t *testing.T) {
	r := newRig(t)
	r.run("sb", &api.Options{})
	log, ended := filepath.Join(r.dir, "log"), filepath.Join(r.dir, "ended")
	logger := filepath.Join(r.dir, "logger")
	script := "#!/bin/sh\nexec 9>" + ended + "\nexec 5>&-\n(cat <&4 >$2.err) &\n" +
		"echo \"$CONTAINER_NAMESPACE/$CONTAINER_ID\" >$2; cat <&3 >>$2; wait\n"
	if err := os.WriteFile(logger, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(ended, 0o600); err != nil {
		t.Fatal(err)
	}
	end, err := os.OpenFile(ended, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer end.Close()
	uri := "binary://" + logger + "?file=" + log
	r.start("sb", task.CreateRequest{
		ID:     "c",
		Bundle: r.bundle("c", "echo before; while [ ! -e /dev/shm/go ]; do busybox sleep 0.01; done; echo after; echo error >&2"),
		Stdio:  stdio.Config{Stdout: uri, Stderr: uri},
	})
	gate := r.shm("sb", "c", "go")
	r.close()
	if err := os.WriteFile(gate, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	r.open()
	if exit := r.wait("sb", "c"); exit.Status != 0 {
		t.Errorf("exit %+v", exit)
	}
	if err := end.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := end.Read(make([]byte, 1)); err == nil || os.IsTimeout(err) {
		t.Fatalf("the logger goes on: %v", err)
	}
	if got := r.output(log); got != "test/c\nbefore\nafter" {
		t.Errorf("log %q", got)
	}
	if got := r.output(log + ".err"); got != "error" {
		t.Errorf("log of errors %q", got)
	}
}

// TestCheckpointInVain: where CRIU is not installed, the directory is as it was before.
func TestCheckpointInVain(t *testing.T) {
	r := newRig(t)
	r.run("sb", &api.Options{})
	r.container("sb", "c", "busybox sleep 1000")
	t.Setenv("PATH", t.TempDir())
	for name, had := range map[string][]string{"none": nil, "empty": {}, "full": {"theirs"}} {
		image := filepath.Join(t.TempDir(), name)
		for _, file := range had {
			if err := os.MkdirAll(filepath.Join(image, file), 0o700); err != nil {
				t.Fatal(err)
			}
		}
		if had != nil {
			if err := os.MkdirAll(image, 0o700); err != nil {
				t.Fatal(err)
			}
		}
		if err := r.tasks("sb").Checkpoint(r.ctx(), "c", image, nil); err == nil || !strings.Contains(err.Error(), "criu") {
			t.Errorf("%s: %v", name, err)
		}
		entries, err := os.ReadDir(image)
		if len(entries) != len(had) || errors.Is(err, os.ErrNotExist) != (had == nil) {
			t.Errorf("%s: then %v, %v", name, entries, err)
		}
	}
	if n := r.count("*events.TaskCheckpointed"); n > 0 {
		t.Errorf("told %q", r.events.all())
	}
}

// TestCheckpointAndRestore needs a CRIU that works on this kernel. The container has the
// streams that it cannot save: FIFOs of a client, and a log.
func TestCheckpointAndRestore(t *testing.T) {
	if out, err := exec.Command("criu", "check").CombinedOutput(); err != nil {
		t.Skipf("criu check: %v: %s", err, strings.TrimSpace(string(out)))
	}
	r := newRig(t)
	r.run("sb", &api.Options{})
	tasks, ctx := r.tasks("sb"), r.ctx()
	bundle := r.bundle("c", `n=0; while read x; do n=$((n+1)); echo "$n $x"; echo "$n $x" >&2; done`)
	r.editSpec(bundle, func(s *specs.Spec) {
		// CRIU does not take what the tests' small specification leaves out.
		s.Mounts = append(s.Mounts, specs.Mount{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"ro"}})
	})
	f, log := r.fifos("c", false), filepath.Join(r.dir, "c.log")
	f.cfg.Stderr = "file://" + log
	say := func(text, want string) {
		t.Helper()
		if _, err := f.stdin.WriteString(text + "\n"); err != nil {
			t.Fatal(err)
		}
		r.eventually("a line more in the log", func() bool { return r.output(log) == want })
	}
	r.start("sb", task.CreateRequest{ID: "c", Bundle: bundle, Stdio: f.cfg})
	say("a", "1 a")
	image, work := filepath.Join(r.dir, "checkpoint"), filepath.Join(r.dir, "work")
	opts, err := typeurl.MarshalAny(&options.CheckpointOptions{Exit: true, WorkPath: work})
	if err != nil {
		t.Fatal(err)
	}
	if err := tasks.Checkpoint(ctx, "c", image, opts); err != nil {
		dump, _ := os.ReadFile(filepath.Join(work, "dump.log"))
		t.Fatalf("checkpoint: %v\n%s", err, dump)
	}
	if exit := r.wait("sb", "c"); exit.Status != 137 {
		t.Errorf("exit of what was checkpointed: %+v", exit)
	}
	if _, err := tasks.Delete(ctx, "c", ""); err != nil {
		t.Fatal(err)
	}

	restore := task.CreateRequest{ID: "c", Bundle: bundle, Checkpoint: image}
	if _, err := r.ctl.CreateTask(ctx, "sb", restore); err != nil {
		t.Fatal(err)
	}
	if _, err := tasks.Start(ctx, "c", ""); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "stdin") {
		t.Errorf("restored without its stdio: %v", err)
	}
	if _, err := tasks.Delete(ctx, "c", ""); err != nil {
		t.Fatal(err)
	}
	restore.Stdio = f.cfg
	if _, err := r.ctl.CreateTask(ctx, "sb", restore); err != nil {
		t.Fatal(err)
	}
	if _, err := tasks.Start(ctx, "c", ""); err != nil {
		dump, _ := os.ReadFile(filepath.Join(bundle, "work/restore.log"))
		t.Fatalf("restore: %v\n%s", err, dump)
	}
	say("b", "1 a\n2 b")
	if err := tasks.Kill(ctx, "c", "", 9, false); err != nil {
		t.Error(err)
	}
	r.wait("sb", "c")
	if _, err := tasks.Delete(ctx, "c", ""); err != nil {
		t.Error(err)
	}
	if got := f.readAll(t); got != "1 a\n2 b\n" {
		t.Errorf("output %q", got)
	}
}
