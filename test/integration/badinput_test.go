package integration

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/api/types/runc/options"
	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	sandboxoptions "caisson/api/caisson/sandbox/v1"
	"caisson/test/daemon"
	"caisson/test/harness"
	"caisson/test/leak"
)

// TestBadSandboxes gives the controller what it must refuse, and looks at what
// it left of it.
func TestBadSandboxes(t *testing.T) {
	h := harness.Start(t, daemon.Options{})
	ctl := controller(h)
	startSandbox(t, h, "ready", nil)
	createSandbox(t, h, "created", nil)
	startSandbox(t, h, "stopped", nil)
	if err := ctl.Stop(h.In(time.Minute), "stopped"); err != nil {
		t.Fatal(err)
	}
	create := func(id string, opts ...sandbox.CreateOpt) func(context.Context) error {
		return func(ctx context.Context) error { return ctl.Create(ctx, record(id), opts...) }
	}
	with := func(id string, o *sandboxoptions.Options) func(context.Context) error {
		return create(id, sandbox.WithOptions(o))
	}
	start := func(id string) func(context.Context) error {
		return func(ctx context.Context) error { _, err := ctl.Start(ctx, id); return err }
	}
	for _, test := range []struct {
		name string
		call func(context.Context) error
		want error
		// says is in the message: what a person must be told.
		says string
	}{
		{"create with a slash", create("a/b"), errdefs.ErrInvalidArgument, "a/b"},
		{"create the parent", create(".."), errdefs.ErrInvalidArgument, ".."},
		{"create without an ID", create(""), errdefs.ErrInvalidArgument, ""},
		{"create a long ID", create(strings.Repeat("x", 300)), errdefs.ErrInvalidArgument, ""},
		{"create twice", create("ready"), errdefs.ErrAlreadyExists, "ready"},
		{"a missing netns", func(ctx context.Context) error {
			if err := ctl.Create(ctx, record("netns"), sandbox.WithNetNSPath(h.Dir+"/no-netns")); err != nil {
				return err
			}
			_, err := ctl.Start(ctx, "netns") // nobody calls Shutdown when it fails
			return err
		}, nil, "no-netns"},
		{"create with a bad sysctl", with("sysctl", &sandboxoptions.Options{Sysctls: map[string]string{"../../x": "1"}}), errdefs.ErrInvalidArgument, "../../x"},
		{"create with a sysctl of the host", with("sysctl", &sandboxoptions.Options{Sysctls: map[string]string{"vm.swappiness": "1"}}), errdefs.ErrInvalidArgument, "vm.swappiness"},
		{"create with an unknown isolation", with("iso", &sandboxoptions.Options{Isolation: "walls"}), nil, "walls"},
		{"create with a bad hostname", with("host", &sandboxoptions.Options{Hostname: "a b\n"}), errdefs.ErrInvalidArgument, "hostname"},
		{"start an unknown one", start("unknown"), errdefs.ErrNotFound, "unknown"},
		{"start with a path", start("../ready"), nil, ""},
		{"start a stopped one", start("stopped"), errdefs.ErrFailedPrecondition, "stopped"},
		{"stop an unknown one", func(ctx context.Context) error { return ctl.Stop(ctx, "unknown") }, errdefs.ErrNotFound, "unknown"},
		{"status of an unknown one", func(ctx context.Context) error { _, err := ctl.Status(ctx, "unknown", false); return err }, errdefs.ErrNotFound, "unknown"},
		{"wait for an unknown one", func(ctx context.Context) error { _, err := ctl.Wait(ctx, "unknown"); return err }, errdefs.ErrNotFound, "unknown"},
		{"metrics of an unknown one", func(ctx context.Context) error { _, err := ctl.Metrics(ctx, "unknown"); return err }, errdefs.ErrNotFound, "unknown"},
		{"platform of an unknown one", func(ctx context.Context) error { _, err := ctl.Platform(ctx, "unknown"); return err }, errdefs.ErrNotFound, "unknown"},
		{"shut down an unknown one", func(ctx context.Context) error { return ctl.Shutdown(ctx, "unknown") }, errdefs.ErrNotFound, "unknown"},
		{"update an unknown one", func(ctx context.Context) error { return ctl.Update(ctx, "unknown", record("unknown"), "labels") }, errdefs.ErrNotFound, "unknown"},
		{"update a field that stays", func(ctx context.Context) error { return ctl.Update(ctx, "ready", record("ready"), "id") }, errdefs.ErrInvalidArgument, "id"},
	} {
		t.Run(test.name, func(t *testing.T) {
			before := stateFiles(t, h)
			checkError(t, test.call(h.In(20*time.Second)), test.want, test.says)
			if diff := cmp.Diff(before, stateFiles(t, h)); diff != "" {
				t.Errorf("files of sandboxes: %s", diff)
			}
		})
	}
	// The sandboxes that were there have not suffered.
	if status, err := ctl.Status(h.In(time.Minute), "ready", false); err != nil || status.State != "SANDBOX_READY" {
		t.Errorf("ready: %+v, %v", status, err)
	}
}

// checkError wants an error of a class, or of any known class if want is nil,
// that says something.
func checkError(t *testing.T, err, want error, says string) {
	t.Helper()
	switch {
	case err == nil:
		t.Fatal("no error")
	case want != nil && !errors.Is(err, want):
		t.Errorf("not of class %q: %v", want, err)
	case want == nil && (errdefs.IsUnknown(err) || errdefs.IsInternal(err) || errdefs.IsDeadlineExceeded(err)):
		t.Errorf("of no class that a client can act on: %v", err)
	}
	if !strings.Contains(err.Error(), says) {
		t.Errorf("the message does not say %q: %v", says, err)
	}
}

// putAway are a sandbox's mounts, which are on the host from time to time.
var putAway = regexp.MustCompile(`/s/[0-9a-f]+/(etc|shm)\b`)

// stateFiles lists what the daemon keeps for its sandboxes.
func stateFiles(t *testing.T, h *harness.Host) []string {
	t.Helper()
	var all []string
	for _, dir := range []string{"s", "netns", "runtime"} {
		left, err := leak.Left(filepath.Join(h.State, dir))
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, left...)
	}
	return slices.DeleteFunc(all, putAway.MatchString)
}

// TestBadTasks starts containers that cannot start.
func TestBadTasks(t *testing.T) {
	h := harness.Start(t, daemon.Options{})
	startSandbox(t, h, "box", nil)
	if got := member(t, h, "box", "good", "echo good"); got != "good\n" {
		t.Fatalf("a good container prints %q", got)
	}
	for _, inSandbox := range []bool{false, true} {
		var more []containerd.NewContainerOpts
		kind := "alone: "
		if inSandbox {
			more = append(more, containerd.WithSandbox("box"))
			kind = "in a sandbox: "
		}
		for _, test := range []struct {
			name string
			more []containerd.NewContainerOpts
			opts []oci.SpecOpts
			want error
			says string
		}{
			{"missing binary", nil, []oci.SpecOpts{oci.WithProcessArgs("/bin/no-such-binary")}, errdefs.ErrNotFound, "no-such-binary"},
			{"not in PATH", nil, []oci.SpecOpts{oci.WithProcessArgs("no-such-binary")}, errdefs.ErrNotFound, "no-such-binary"},
			{"not executable", nil, []oci.SpecOpts{oci.WithProcessArgs("/etc/passwd")}, nil, "/etc/passwd"},
			{"no command", nil, []oci.SpecOpts{oci.WithProcessArgs()}, errdefs.ErrInvalidArgument, "process"},
			{"missing mount source", nil, []oci.SpecOpts{oci.WithProcessArgs("true"), oci.WithMounts(bind(h.Dir + "/no-such-file"))}, nil, "no-such-file"},
			{"missing namespace", nil, []oci.SpecOpts{oci.WithProcessArgs("true"), withNamespacePath(specs.NetworkNamespace, h.Dir+"/no-such-netns")}, nil, "no-such-netns"},
			{"missing runtime", []containerd.NewContainerOpts{containerd.WithRuntime(harness.Runtime, &options.Options{BinaryName: "/no/such/runc"})}, []oci.SpecOpts{oci.WithProcessArgs("true")}, nil, "/no/such/runc"},
		} {
			t.Run(kind+test.name, func(t *testing.T) {
				before := stateFiles(t, h)
				ctx := h.In(30 * time.Second)
				c, err := newContainer(h, "bad", append(more, test.more...), test.opts...)
				if err != nil {
					t.Fatal(err)
				}
				defer remove(t, h, "bad")
				var task containerd.Task
				if inSandbox {
					task, err = taskIn(ctx, h, "box", c, cio.NullIO)
				} else {
					task, err = c.NewTask(ctx, cio.NullIO)
				}
				if err == nil {
					if err = task.Start(ctx); err != nil {
						if _, err := task.Delete(ctx); err != nil {
							t.Errorf("delete: %v", err)
						}
					}
				}
				checkError(t, err, test.want, test.says)
				if diff := cmp.Diff(before, stateFiles(t, h)); diff != "" {
					t.Errorf("files of sandboxes: %s", diff)
				}
			})
		}
	}
	if got := member(t, h, "box", "after", "echo still good"); got != "still good\n" {
		t.Errorf("after the bad containers, a good one prints %q", got)
	}
}

// TestBadCalls uses tasks and execs in states, and by names, that they do not have.
func TestBadCalls(t *testing.T) {
	h := harness.Start(t, daemon.Options{})
	ctx := h.In(time.Minute)
	c := container(t, h, "c", "exec sleep 1000")
	task, err := c.NewTask(ctx, cio.NullIO)
	if err != nil {
		t.Fatal(err)
	}
	spec, err := c.Spec(ctx)
	if err != nil {
		t.Fatal(err)
	}
	exec := func(id string, args ...string) error {
		p := *spec.Process
		p.Args = args
		process, err := task.Exec(ctx, id, &p, cio.NullIO)
		if err != nil {
			return err
		}
		if err := process.Start(ctx); err != nil {
			_, deleted := process.Delete(ctx)
			return errors.Join(err, deleted)
		}
		return nil
	}
	checkError(t, exec("early", "true"), errdefs.ErrFailedPrecondition, "")
	if err := task.Start(ctx); err != nil {
		t.Fatal(err)
	}
	checkError(t, task.Start(ctx), errdefs.ErrFailedPrecondition, "")
	checkError(t, exec("e1", "no-such-binary"), errdefs.ErrNotFound, "no-such-binary")
	checkError(t, exec("a/b", "true"), errdefs.ErrInvalidArgument, "a/b")
	if err := exec("e2", "sleep", "1000"); err != nil {
		t.Fatal(err)
	}
	checkError(t, exec("e2", "true"), errdefs.ErrAlreadyExists, "e2")
	checkError(t, task.Resume(ctx), errdefs.ErrFailedPrecondition, "")
	_, err = task.LoadProcess(ctx, "unknown", nil)
	checkError(t, err, errdefs.ErrNotFound, "unknown")
	_, err = task.Delete(ctx)
	checkError(t, err, errdefs.ErrFailedPrecondition, "")
	remove(t, h, "c")
}

// TestBadStart starts daemons that must refuse to.
func TestBadStart(t *testing.T) {
	refuses := func(t *testing.T, h *harness.Host, says ...string) {
		t.Helper()
		if err := h.Launch(); err != nil {
			t.Fatal(err)
		}
		select {
		case <-h.Exited():
		case <-h.Context(time.Minute).Done():
			t.Fatal("it runs")
		}
		var log string
		if h.ExitError() == nil {
			t.Error("it exits with 0")
		}
		if log = h.LogTail(4096); strings.Contains(log, "panic") || strings.Contains(log, "goroutine ") {
			t.Errorf("it panics: %s", log)
		}
		for _, what := range says {
			if !strings.Contains(log, what) {
				t.Errorf("it does not say %q: %s", what, log)
			}
		}
		if err := h.Kill(); err != nil { // forgets the process that has ended
			t.Fatal(err)
		}
	}
	t.Run("malformed configuration", func(t *testing.T) {
		h := harness.New(t, daemon.Options{Config: "\n[network\n"})
		refuses(t, h, h.ConfigFile)
	})
	t.Run("unknown key", func(t *testing.T) {
		h := harness.New(t, daemon.Options{Config: "\n[log]\nlevle = \"debug\"\n"})
		refuses(t, h, "levle")
	})
	t.Run("bad flag", func(t *testing.T) {
		h := harness.New(t, daemon.Options{Args: []string{"--engine", "steam"}})
		refuses(t, h, "steam", "embedded")
	})
	t.Run("no state directory", func(t *testing.T) {
		h := harness.New(t, daemon.Options{})
		// Root may write everywhere, but not make a directory below a file.
		if err := os.WriteFile(h.State, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		refuses(t, h, h.State)
	})
	t.Run("no root directory", func(t *testing.T) {
		h := harness.New(t, daemon.Options{})
		if err := os.WriteFile(h.Root, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		refuses(t, h, h.Root)
	})
	t.Run("second daemon", func(t *testing.T) {
		h := harness.New(t, daemon.Options{})
		h.StartDaemon()
		second := harness.New(t, daemon.Options{Args: []string{"--root", h.Root}})
		refuses(t, second, h.Root)
		if out := h.Ctr("version"); !strings.Contains(out, "Server:") {
			t.Errorf("the first daemon: %s", out)
		}
	})
}
