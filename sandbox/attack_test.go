package sandbox

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	core "github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	api "caisson/api/caisson/sandbox/v1"
	"caisson/internal/task"
)

// victim makes a directory of the host with a file in it, and a function that
// tells whether something was changed there.
func (r *rig) victim(name string) (dir string, unharmed func()) {
	r.t.Helper()
	dir = filepath.Join(r.dir, "host", name)
	content := func() (list []string) {
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			info, err := d.Info()
			if err != nil {
				return err
			}
			var data []byte
			if d.Type().IsRegular() {
				data, err = os.ReadFile(path)
			}
			list = append(list, fmt.Sprintf("%s %v %q", path, info.Mode(), data))
			return err
		})
		if err != nil {
			r.t.Fatal(err)
		}
		return list
	}
	if err := errors.Join(os.MkdirAll(dir, 0o755), os.WriteFile(filepath.Join(dir, "file"), []byte("the host's"), 0o644)); err != nil {
		r.t.Fatal(err)
	}
	before := content()
	return dir, func() {
		r.t.Helper()
		if after := content(); strings.Join(before, "\n") != strings.Join(after, "\n") {
			r.t.Errorf("%s: the host had %q and has %q", name, before, after)
		}
	}
}

// TestHostileRootfs: whatever an image has in the places where the sandbox's files
// go, they go nowhere else, and nothing waits for a FIFO.
func TestHostileRootfs(t *testing.T) {
	r := newRig(t)
	r.run("sb", &api.Options{Hostname: "box"})
	link := func(at string, to func(victim string) string) func(rootfs, victim string) error {
		return func(rootfs, victim string) error {
			return errors.Join(os.RemoveAll(filepath.Join(rootfs, at)), os.Symlink(to(victim), filepath.Join(rootfs, at)))
		}
	}
	up := strings.Repeat("../", 20)
	node := func(at string, mode uint32, dev int) func(rootfs, victim string) error {
		return func(rootfs, _ string) error { return unix.Mknod(filepath.Join(rootfs, at), mode|0o666, dev) }
	}
	for name, tc := range map[string]struct {
		make    func(rootfs, victim string) error
		refused bool
	}{
		"etc leads to the host":      {make: link("etc", func(victim string) string { return victim })},
		"etc leads up":               {make: link("etc", func(victim string) string { return up + victim })},
		"hosts leads to the host":    {make: link("etc/hosts", func(victim string) string { return victim + "/file" })},
		"hosts leads up":             {make: link("etc/hosts", func(victim string) string { return up + victim + "/file" })},
		"hosts leads nowhere":        {make: link("etc/hosts", func(victim string) string { return victim + "/new" })},
		"hosts leads to itself":      {make: link("etc/hosts", func(string) string { return "hosts" }), refused: true},
		"dev leads to the host":      {make: link("dev", func(victim string) string { return victim }), refused: true},
		"proc leads to the host":     {make: link("proc", func(victim string) string { return victim }), refused: true},
		"hosts leads through proc":   {make: link("etc/hosts", func(victim string) string { return "/proc/self/root" + up + victim + "/file" })},
		"hosts leads to process 1":   {make: link("etc/hosts", func(victim string) string { return "/proc/1/root" + victim + "/file" })},
		"hostname is a FIFO":         {make: node("etc/hostname", unix.S_IFIFO, 0)},
		"hostname is a device":       {make: node("etc/hostname", unix.S_IFCHR, int(unix.Mkdev(1, 5)))},
		"hostname is a socket":       {make: node("etc/hostname", unix.S_IFSOCK, 0)},
		"resolv.conf is a directory": {make: func(rootfs, _ string) error { return os.Mkdir(filepath.Join(rootfs, "etc/resolv.conf"), 0o755) }, refused: true},
		"etc is a FIFO": {make: func(rootfs, _ string) error {
			return errors.Join(os.RemoveAll(filepath.Join(rootfs, "etc")), unix.Mkfifo(filepath.Join(rootfs, "etc"), 0o666))
		}, refused: true},
	} {
		t.Run(name, func(t *testing.T) {
			victim, unharmed := r.victim(name)
			id := "c" + strings.Map(func(c rune) rune {
				if c == ' ' || c == '.' || c == '/' {
					return '-'
				}
				return c
			}, name)
			bundle := r.bundle(id, "busybox cat /etc/hostname; exit 7")
			if err := tc.make(filepath.Join(bundle, "rootfs"), victim); err != nil {
				t.Fatal(err)
			}
			_, err := r.ctl.CreateTask(r.ctx(), "sb", task.CreateRequest{ID: id, Bundle: bundle})
			if err == nil {
				_, err = r.tasks("sb").Start(r.ctx(), id, "")
			}
			if (err != nil) != tc.refused {
				t.Errorf("refused: %v", err)
			}
			if err == nil {
				if exit := r.wait("sb", id); exit.Status != 7 {
					t.Errorf("exit %+v", exit)
				}
			}
			unharmed()
		})
	}
}

// TestHostileBundle: a bundle that somebody else could write to is no way for
// them to have a file of the host written or mounted over.
func TestHostileBundle(t *testing.T) {
	r := newRig(t)
	r.run("sb", &api.Options{})
	victim, unharmed := r.victim("bundle")
	create := func(bundle string) error {
		_, err := r.ctl.CreateTask(r.ctx(), "sb", task.CreateRequest{
			ID: "c", Bundle: bundle, Rootfs: []mount.Mount{{Type: "tmpfs", Source: "tmpfs"}},
		})
		return err
	}
	bundle := r.bundle("c", "true")
	rootfs := filepath.Join(bundle, "rootfs")
	if err := errors.Join(os.RemoveAll(rootfs), os.Symlink(victim, rootfs), os.Symlink(victim+"/file", filepath.Join(bundle, ".config.json.caisson"))); err != nil {
		t.Fatal(err)
	}
	if err := create(bundle); !errdefs.IsInvalidArgument(err) {
		t.Errorf("a root filesystem somewhere else: %v", err)
	}
	unharmed()
	for _, kind := range []uint32{unix.S_IFIFO, unix.S_IFCHR} {
		config := filepath.Join(bundle, "config.json")
		if err := errors.Join(os.Remove(config), unix.Mknod(config, kind|0o600, int(unix.Mkdev(1, 5)))); err != nil {
			t.Fatal(err)
		}
		if err := create(bundle); !errdefs.IsInvalidArgument(err) {
			t.Errorf("a specification of type %o: %v", kind, err)
		}
		// What names the container's sandbox is read when containerd cleans up.
		name := filepath.Join(bundle, "sandbox")
		if err := unix.Mknod(name, kind|0o600, int(unix.Mkdev(1, 5))); err != nil {
			t.Fatal(err)
		}
		if exit, err := r.ctl.Cleanup(r.ctx(), "c", bundle); err == nil && exit.Status != 255 {
			t.Errorf("cleanup with a name of type %o: %+v", kind, exit)
		}
		if err := os.Remove(name); err != nil {
			t.Fatal(err)
		}
	}
}

// TestSandboxFilesHoldTheirContainers: root of a container owns the sandbox's files,
// and can neither put something else in their place nor fill the host's memory.
func TestSandboxFilesHoldTheirContainers(t *testing.T) {
	r := newRig(t)
	r.run("sb", &api.Options{ShmSize: 1 << 20})
	var free unix.Statfs_t
	if err := unix.Statfs(r.path("sb"), &free); err != nil {
		t.Fatal(err)
	}
	out := r.container("sb", "c", `
for f in /etc/hosts /etc/hostname /etc/resolv.conf; do
	busybox rm $f; busybox mv $f /tmp/x; busybox ln -sf /proc/1/root $f; busybox mkfifo $f
	busybox dd if=/dev/zero of=$f bs=1M count=6
done 2>/dev/null
busybox dd if=/dev/zero of=/dev/shm/x bs=1M count=3 2>/dev/null
i=0; while [ $i -lt 40 ]; do : >/dev/shm/../../etc/more$i; i=$((i+1)); done
busybox du -k /etc/hosts /etc/hostname /etc/resolv.conf /dev/shm | busybox awk '{n+=$1} END {print n}'`)
	r.wait("sb", "c")
	var sum int
	if _, err := fmt.Sscan(r.output(out), &sum); err != nil || sum > 5<<10 {
		t.Errorf("%d KiB written, %v", sum, err)
	}
	r.files("sb")
	entries, err := os.ReadDir(r.path("sb", "etc"))
	if err != nil || len(entries) != 3 {
		t.Errorf("files of the sandbox: %v, %v", entries, err)
	}
	for _, e := range entries {
		if !e.Type().IsRegular() {
			t.Errorf("%s is %v", e.Name(), e.Type())
		}
	}
}

// TestExecutablesOfTheHostSurvive: a container executes what its processes came
// from, the OCI runtime, and tries to write to it and to the monitor.
func TestExecutablesOfTheHostSurvive(t *testing.T) {
	r := newRig(t)
	r.run("sb", &api.Options{Namespaces: &api.Namespaces{SharePid: true}})
	runc, err := exec.LookPath("runc")
	if err != nil {
		t.Fatal(err)
	}
	monitors, err := filepath.Glob(filepath.Join(r.dir, "libexec/caisson-monitor-*"))
	if err != nil || len(monitors) != 1 {
		t.Fatalf("monitors %q, %v", monitors, err)
	}
	sum := func(path string) string {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprintf("%x", sha256.Sum256(data))
	}
	before := sum(runc) + sum(monitors[0])
	r.container("sb", "c", `busybox cp /bin/busybox /tmp/evil
while :; do for p in /proc/[0-9]*; do
	case "$(busybox readlink $p/exe)" in /bin/*|/tmp/*) continue;; esac
	busybox cat /tmp/evil >$p/exe; (exec 5<$p/exe && busybox cat /tmp/evil >/proc/self/fd/5)
done; done 2>/dev/null`)
	for i := range 10 {
		id := fmt.Sprintf("e%d", i)
		spec, err := typeurl.MarshalAny(&specs.Process{Args: []string{"/proc/self/exe", "--version"}, Cwd: "/", Env: []string{"PATH=/bin"}})
		if err != nil {
			t.Fatal(err)
		}
		if err := r.tasks("sb").Exec(r.ctx(), task.ExecRequest{ID: "c", ExecID: id, Spec: spec}); err != nil {
			t.Fatal(err)
		}
		if _, err := r.tasks("sb").Start(r.ctx(), "c", id); err == nil {
			if _, err := r.tasks("sb").Wait(r.ctx(), "c", id); err != nil {
				t.Error(err)
			}
		}
	}
	if sum(runc)+sum(monitors[0]) != before {
		t.Error("a program of the host was overwritten")
	}
}

// TestLargeValues: megabytes in annotations are kept, in an environment
// they are passed on or the start fails, and nothing else suffers.
func TestLargeValues(t *testing.T) {
	r := newRig(t)
	large := strings.Repeat("x", 4<<20)
	labelled := core.Sandbox{ID: "sb", Labels: map[string]string{"large": large}}
	if err := r.ctl.Create(r.ctx(), labelled, core.WithOptions(&api.Options{})); !errdefs.IsInvalidArgument(err) {
		t.Errorf("a label over containerd's limit: %v", err)
	}
	// In JSON each of these characters has six.
	huge := core.WithAnnotations(map[string]string{"huge": strings.Repeat("<", 4<<20)})
	if err := r.ctl.Create(r.ctx(), core.Sandbox{ID: "huge"}, core.WithOptions(&api.Options{}), huge); !errdefs.IsInvalidArgument(err) {
		t.Errorf("an annotation that cannot be kept: %v", err)
	}
	if err := r.ctl.Create(r.ctx(), core.Sandbox{ID: "sb"}, core.WithOptions(&api.Options{}), core.WithAnnotations(map[string]string{"large": large})); err != nil {
		t.Fatal(err)
	}
	if _, err := r.ctl.Start(r.ctx(), "sb"); err != nil {
		t.Fatal(err)
	}
	r.container("sb", "c", "busybox sleep 1000")
	start := func(id string, env []string) error {
		spec, err := typeurl.MarshalAny(&specs.Process{Args: []string{"/bin/sh", "-c", "test ${#A} -eq 100000"}, Cwd: "/", Env: env})
		if err != nil {
			t.Fatal(err)
		}
		if err := r.tasks("sb").Exec(r.ctx(), task.ExecRequest{ID: "c", ExecID: id, Spec: spec}); err != nil {
			return err
		}
		if _, err := r.tasks("sb").Start(r.ctx(), "c", id); err != nil {
			return err
		}
		exit, err := r.tasks("sb").Wait(r.ctx(), "c", id)
		if err == nil && exit.Status != 0 {
			err = fmt.Errorf("exit %+v", exit)
		}
		return err
	}
	many := make([]string, 10)
	for i := range many {
		many[i] = string(rune('A'+i)) + "=" + large[:100000]
	}
	if err := start("many", many); err != nil {
		t.Errorf("a megabyte in ten variables: %v", err)
	}
	if err := start("one", []string{"A=" + large}); err == nil {
		t.Error("a variable that no program can have was passed on")
	}
	r.close()
	r.open()
	if status, err := r.ctl.Status(r.ctx(), "sb", true); err != nil || !strings.Contains(status.Info["info"], large) {
		t.Errorf("status: %d bytes, %v", len(status.Info["info"]), err)
	}
	if st, err := r.tasks("sb").State(r.ctx(), "c", ""); err != nil || st.State != task.Running {
		t.Errorf("the container: %+v, %v", st, err)
	}
}

// TestIDsWithTheSameDirectory: the name of a sandbox's directory is a short hash of
// its ID. Somebody who looks for two with the same gets only one of them.
func TestIDsWithTheSameDirectory(t *testing.T) {
	r := newRig(t)
	first, second := "a11048600", "a30869784" // found by trying 33 million
	if r.path(first) != r.path(second) {
		t.Fatalf("%s and %s differ: look for others", r.path(first), r.path(second))
	}
	r.run(first, &api.Options{})
	for name, call := range map[string]func() error{
		"create":   func() error { return r.ctl.Create(r.ctx(), core.Sandbox{ID: second}) },
		"endpoint": func() error { _, err := r.ctl.Endpoint(r.ctx(), second, r.dir); return err },
	} {
		if err := call(); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "another ID") {
			t.Errorf("%s: %v", name, err)
		}
	}
	r.close()
	r.open()
	if status, err := r.ctl.Status(r.ctx(), first, false); err != nil || status.State != stateReady {
		t.Errorf("the first: %+v, %v", status, err)
	}
	if err := r.ctl.Shutdown(r.ctx(), first); err != nil {
		t.Fatal(err)
	}
	r.run(second, &api.Options{})
}
