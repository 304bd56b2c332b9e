package kubernetes

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"caisson/test/daemon"
	"caisson/test/harness"
	"caisson/test/leak"
)

// built is one of Kubernetes' programs.
func built(name string) string { return filepath.Join(os.Getenv(programsEnv), name) }

// program is a server, in a session of its own as an init system gives it.
type program struct {
	dir, path string
	env, args []string
	running   *exec.Cmd
}

// start starts a program, whose log is in dir.
func start(t *testing.T, dir, path string, env []string, args ...string) *program {
	t.Helper()
	p := &program{dir: dir, path: path, env: env, args: args}
	p.start(t)
	return p
}

// start starts the program again.
func (p *program) start(t *testing.T) {
	t.Helper()
	log, err := os.OpenFile(p.log(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	p.running = exec.Command(p.path, p.args...)
	p.running.Env = append(os.Environ(), p.env...)
	p.running.Dir, p.running.Stdout, p.running.Stderr = p.dir, log, log
	p.running.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := p.running.Start(); err != nil {
		t.Fatal(err)
	}
}

func (p *program) log() string { return filepath.Join(p.dir, filepath.Base(p.path)+".log") }

// kill ends the program with SIGKILL, as a crash does.
func (p *program) kill() {
	_ = p.running.Process.Kill() // it has ended already
	_ = p.running.Wait()         // always "signal: killed"
}

// stop ends the program with SIGTERM, as an init system does; one that does not end in
// time is killed, and that is an error.
func (p *program) stop(limit time.Duration) error {
	_ = p.running.Process.Signal(syscall.SIGTERM) // it has ended already
	ended := make(chan struct{})
	go func() {
		_ = p.running.Wait() // its exit code says nothing here
		close(ended)
	}()
	select {
	case <-ended:
		return nil
	case <-time.After(limit):
		_ = p.running.Process.Kill() // it ends just now
		<-ended
		return fmt.Errorf("%s did not stop within %v", p.path, limit)
	}
}

func (p *program) showLog(t *testing.T) {
	log, err := os.ReadFile(p.log())
	if err != nil {
		t.Log(err)
	}
	t.Logf("log of %s:\n%s", p.path, log[max(0, len(log)-16<<10):])
}

// command runs a program that ends by itself.
func command(t *testing.T, path string, stdin string, env []string, args ...string) harness.Result {
	t.Helper()
	ctx := harness.Context(t, 2*time.Minute)
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 5 * time.Second
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &stdout, &stderr
	err := cmd.Run()
	if exit := (*exec.ExitError)(nil); ctx.Err() != nil || err != nil && !errors.As(err, &exit) {
		t.Fatalf("%s %s: %v, %v\n%s", path, strings.Join(args, " "), err, context.Cause(ctx), stderr.String())
	}
	return harness.Result{Code: cmd.ProcessState.ExitCode(), Stdout: stdout.String(), Stderr: stderr.String()}
}

// classes are kubelet's cgroups for pods of a kind, children first.
var classes = []string{"kubepods/besteffort", "kubepods/burstable", "kubepods"}

// leftOf is what there is of the daemon's pods that was not there before. It
// leaves out kubelet's classes and the network's bridge, which come when they are
// first needed.
func leftOf(before *leak.Snapshot, h *harness.Host) ([]string, error) {
	left, err := before.New(h.Token)
	return slices.DeleteFunc(left, func(line string) bool {
		return strings.HasPrefix(line, "link "+h.Token+" ") || strings.HasPrefix(line, "cgroup ") && slices.ContainsFunc(classes, func(class string) bool { return strings.HasSuffix(line, "/"+class) })
	}), err
}

// awaitNothingLeft waits until kubelet has removed what CRI leaves to it, such as
// the pods' cgroups and volumes.
func awaitNothingLeft(t *testing.T, before *leak.Snapshot, h *harness.Host, limit time.Duration) {
	t.Helper()
	err := daemon.Poll(harness.Context(t, limit), limit, func() error {
		left, err := leftOf(before, h)
		if err == nil && len(left) > 0 {
			err = fmt.Errorf("left of the pods: %q", left)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// detach unmounts kubelet's directory, which it bind-mounts on itself.
func detach(t *testing.T, path string) {
	err := unix.Unmount(path, unix.MNT_DETACH)
	if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		t.Errorf("unmount %s: %v", path, err)
	}
}

// removeCgroups removes the cgroups of the classes, and not those of pods.
func removeCgroups(t *testing.T, token string) {
	for _, root := range cgroupRoots(t) {
		for _, class := range classes {
			err := unix.Rmdir(filepath.Join(root, token, class))
			if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EBUSY) {
				t.Errorf("cgroup: %v", err)
			}
		}
	}
}

func cgroupRoots(t *testing.T) (roots []string) {
	mounts, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup", "cgroup2"))
	if err != nil {
		t.Error(err)
	}
	for _, m := range mounts {
		roots = append(roots, m.Mountpoint)
	}
	return roots
}

// cgroupLimit is what a cgroup of a pod has in the first of the files, which has a
// name for cgroup v1 and one for v2. Below is "" for the pod itself.
func cgroupLimit(t *testing.T, token, uid, below string, files ...string) (int, error) {
	for _, root := range cgroupRoots(t) {
		for _, class := range []string{"", "burstable"} { // "" if requests equal limits
			for _, file := range files {
				text, err := os.ReadFile(filepath.Join(root, token, "kubepods", class, "pod"+uid, below, file))
				if err == nil {
					value, _, _ := strings.Cut(strings.TrimSpace(string(text)), " ") // cpu.max has the period, too
					return strconv.Atoi(value)
				}
			}
		}
	}
	return 0, fmt.Errorf("no cgroup of pod %s has any of %q", uid, files)
}
