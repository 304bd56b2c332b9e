package sandbox

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	core "github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	api "caisson/api/caisson/sandbox/v1"
)

func TestContainersShareTheirSandbox(t *testing.T) {
	r := newRig(t)
	inst := r.run("sb", &api.Options{Hostname: "shared", Dns: &api.DNS{Servers: []string{"192.0.2.1"}}, ExtraHosts: map[string]string{"db": "192.0.2.7"}})
	if inst.Pid == 0 || inst.Version != 3 || !strings.HasPrefix(inst.Address, "ttrpc+unix:///") {
		t.Errorf("instance %+v", inst)
	}
	const show = "busybox hostname; busybox cat /etc/hostname /etc/resolv.conf; busybox grep db /etc/hosts; busybox readlink /proc/self/ns/net /proc/self/ns/ipc /proc/self/ns/uts; "
	a := r.container("sb", "a", show+"echo from-a > /dev/shm/x")
	r.wait("sb", "a")
	b := r.container("sb", "b", show+"busybox cat /dev/shm/x; exit 7")
	if exit := r.wait("sb", "b"); exit.Status != 7 {
		t.Errorf("exit %+v", exit)
	}
	gotA, gotB := r.output(a), r.output(b)
	if !strings.HasPrefix(gotA, "shared\nshared\nnameserver 192.0.2.1\n192.0.2.7\tdb\n") {
		t.Errorf("a saw:\n%s", gotA)
	}
	if gotB != gotA+"\nfrom-a" {
		t.Errorf("a saw:\n%s\nb saw:\n%s", gotA, gotB)
	}
	host, err := os.Readlink("/proc/self/ns/net")
	if err != nil || strings.Contains(gotA, host) {
		t.Errorf("a is in the host's network: %s", gotA)
	}
}

func TestAContainerCannotFillTheHostWithItsSandboxsFiles(t *testing.T) {
	r := newRig(t)
	r.run("sb", &api.Options{})
	r.container("sb", "c", "busybox dd if=/dev/zero of=/etc/hosts bs=1M count=64")
	if exit := r.wait("sb", "c"); exit.Status == 0 {
		t.Error("64 MiB fit into /etc/hosts")
	}
	r.files("sb")
	info, err := os.Stat(filepath.Join(r.ctl.dir(key{"test", "sb"}), "etc/hosts"))
	if err != nil || info.Size() > 4<<20 {
		t.Errorf("/etc/hosts: %v, %v", info.Size(), err)
	}
}

func TestStateMachineOfVerbs(t *testing.T) {
	r := newRig(t)
	ctx := r.ctx()
	for name, call := range map[string]func() error{
		"start":    func() error { _, err := r.ctl.Start(ctx, "sb"); return err },
		"stop":     func() error { return r.ctl.Stop(ctx, "sb") },
		"wait":     func() error { _, err := r.ctl.Wait(ctx, "sb"); return err },
		"status":   func() error { _, err := r.ctl.Status(ctx, "sb", true); return err },
		"shutdown": func() error { return r.ctl.Shutdown(ctx, "sb") },
		"metrics":  func() error { _, err := r.ctl.Metrics(ctx, "sb"); return err },
		"platform": func() error { _, err := r.ctl.Platform(ctx, "sb"); return err },
		"update":   func() error { return r.ctl.Update(ctx, "sb", core.Sandbox{ID: "sb"}, "labels") },
	} {
		if err := call(); !errdefs.IsNotFound(err) {
			t.Errorf("%s of an unknown sandbox: %v", name, err)
		}
	}
	r.run("sb", &api.Options{})
	if err := r.ctl.Create(ctx, core.Sandbox{ID: "sb"}); !errdefs.IsAlreadyExists(err) {
		t.Errorf("second create: %v", err)
	}
	if _, err := r.ctl.Start(ctx, "sb"); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("second start: %v", err)
	}
	status, err := r.ctl.Status(ctx, "sb", true)
	if err != nil || status.State != "SANDBOX_READY" || status.Pid == 0 || !strings.Contains(status.Info["info"], `"pid"`) {
		t.Errorf("status %+v, %v", status, err)
	}
	for range 2 {
		if err := r.ctl.Stop(ctx, "sb"); err != nil {
			t.Errorf("stop: %v", err)
		}
	}
	if exit, err := r.ctl.Wait(ctx, "sb"); err != nil || exit.ExitStatus != 0 || exit.ExitedAt.IsZero() {
		t.Errorf("wait %+v, %v", exit, err)
	}
	if status, err := r.ctl.Status(ctx, "sb", false); err != nil || status.State != "SANDBOX_NOTREADY" {
		t.Errorf("status %+v, %v", status, err)
	}
	if err := unix.Kill(int(status.Pid), 0); !errors.Is(err, unix.ESRCH) {
		t.Errorf("the holder lives: %v", err)
	}
	if err := r.ctl.Shutdown(ctx, "sb"); err != nil {
		t.Errorf("shutdown: %v", err)
	}
	if err := r.ctl.Shutdown(ctx, "sb"); !errdefs.IsNotFound(err) {
		t.Errorf("second shutdown: %v", err)
	}
}

func TestFailedStartLeavesNothing(t *testing.T) {
	r := newRig(t)
	err := r.ctl.Create(r.ctx(), core.Sandbox{ID: "sb"}, core.WithNetNSPath(filepath.Join(r.dir, "none")))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.ctl.Start(r.ctx(), "sb"); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("start in a missing namespace: %v", err)
	}
	if _, err := r.ctl.Status(r.ctx(), "sb", false); !errdefs.IsNotFound(err) {
		t.Errorf("the sandbox is still there: %v", err)
	}
	if _, err := r.store.Get(r.ctx(), "sb"); !errdefs.IsNotFound(err) {
		t.Errorf("the record is still there: %v", err)
	}
}
