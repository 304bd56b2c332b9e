package integration

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	_ "github.com/containerd/cgroups/v3/cgroup1/stats" // types of metrics
	_ "github.com/containerd/cgroups/v3/cgroup2/stats"
	sandboxapi "github.com/containerd/containerd/api/services/sandbox/v1"
	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/containerd/v2/core/sandbox/proxy"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"

	options "caisson/api/caisson/sandbox/v1"
	"caisson/test/daemon"
	"caisson/test/harness"
)

// controller is our sandboxer, on the socket that containerd itself uses: of
// what it answers, containerd's own service passes on only a part.
func controller(h *harness.Host) sandbox.Controller {
	return proxy.NewSandboxController(sandboxapi.NewControllerClient(h.SandboxerConn()), harness.Sandboxer)
}

// taskIn makes the task of a container in a sandbox. Clients must name the
// sandbox's endpoint, as CRI does.
func taskIn(ctx context.Context, h *harness.Host, sandboxID string, c containerd.Container, io cio.Creator) (containerd.Task, error) {
	status, err := controller(h).Status(ctx, sandboxID, false)
	if err != nil {
		return nil, err
	}
	return c.NewTask(ctx, io, containerd.WithTaskAPIEndpoint(status.Address, status.Version))
}

// record is a sandbox as a client describes it.
func record(id string) sandbox.Sandbox {
	return sandbox.Sandbox{
		ID: id, Sandboxer: harness.Sandboxer,
		Runtime:   sandbox.RuntimeOpts{Name: harness.Runtime},
		CreatedAt: time.Now(), UpdatedAt: time.Now(),
		Labels: map[string]string{"made-by": "test"},
	}
}

// createSandbox puts a sandbox into the store and makes it. It is shut down when
// the test ends.
func createSandbox(t *testing.T, h *harness.Host, id string, opts *options.Options) {
	t.Helper()
	ctx := h.In(time.Minute)
	info := record(id)
	client := h.Client("")
	var create []sandbox.CreateOpt
	if opts != nil {
		create = append(create, sandbox.WithOptions(opts))
	}
	if _, err := client.SandboxStore().Create(ctx, info); err != nil {
		t.Fatalf("store sandbox %s: %v", id, err)
	}
	if err := client.SandboxController(harness.Sandboxer).Create(ctx, info, create...); err != nil {
		t.Fatalf("create sandbox %s: %v", id, err)
	}
	t.Cleanup(func() { removeSandbox(t, h, id) })
}

func startSandbox(t *testing.T, h *harness.Host, id string, opts *options.Options) sandbox.ControllerInstance {
	t.Helper()
	createSandbox(t, h, id, opts)
	instance, err := controller(h).Start(h.In(time.Minute), id)
	if err != nil {
		t.Fatalf("start sandbox %s: %v", id, err)
	}
	return instance
}

// removeSandbox stops and forgets a sandbox that may be gone already.
func removeSandbox(t *testing.T, h *harness.Host, id string) {
	t.Helper()
	ctx, cancel := detached(h, time.Minute)
	defer cancel()
	err := controller(h).Stop(ctx, id)
	if err == nil || errdefs.IsNotFound(err) {
		err = controller(h).Shutdown(ctx, id)
	}
	if err == nil || errdefs.IsNotFound(err) {
		err = h.Client("").SandboxStore().Delete(ctx, id)
	}
	if err != nil && !errdefs.IsNotFound(err) {
		t.Errorf("remove sandbox %s: %v", id, err)
	}
}

// member runs a command of the shell in a sandbox until it ends, and returns
// what it printed.
func member(t *testing.T, h *harness.Host, sandboxID, id, script string, opts ...oci.SpecOpts) string {
	t.Helper()
	ctx := h.In(time.Minute)
	opts = append([]oci.SpecOpts{oci.WithProcessArgs("/bin/sh", "-c", script)}, opts...)
	c, err := newContainer(h, id, []containerd.NewContainerOpts{containerd.WithSandbox(sandboxID)}, opts...)
	if err != nil {
		t.Fatal(err)
	}
	defer remove(t, h, id)
	var stdout, stderr strings.Builder
	task, err := taskIn(ctx, h, sandboxID, c, cio.NewCreator(cio.WithStreams(nil, &stdout, &stderr), fifos(h)))
	if err != nil {
		t.Fatalf("container %s: create: %v", id, err)
	}
	exited, err := task.Wait(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := task.Start(ctx); err != nil {
		t.Fatalf("container %s: start: %v", id, err)
	}
	status := <-exited
	if _, err := task.Delete(ctx); err != nil { // it waits for the last output
		t.Errorf("container %s: delete: %v", id, err)
	}
	if status.ExitCode() != 0 || status.Error() != nil {
		t.Fatalf("container %s: exit code %d (%v), stderr %q", id, status.ExitCode(), status.Error(), stderr.String())
	}
	return stdout.String()
}

func TestSandboxLife(t *testing.T) {
	h := harness.Start(t, daemon.Options{})
	ctx := h.In(2 * time.Minute)
	ctl := controller(h)
	started := startSandbox(t, h, "life", nil)
	if started.Pid == 0 || started.CreatedAt.IsZero() || !strings.HasPrefix(started.Address, "ttrpc+unix://") || started.Version != 3 {
		t.Errorf("started: %+v", started)
	}
	status, err := ctl.Status(ctx, "life", true)
	if err != nil {
		t.Fatal(err)
	}
	if status.State != "SANDBOX_READY" || status.Pid != started.Pid || !json.Valid([]byte(status.Info["info"])) {
		t.Errorf("status: %+v", status)
	}
	platform, err := ctl.Platform(ctx, "life")
	if err != nil || platform.OS != "linux" {
		t.Errorf("platform: %+v, %v", platform, err)
	}
	metric, err := ctl.Metrics(ctx, "life")
	if err != nil {
		t.Fatal(err)
	}
	if v, err := typeurl.UnmarshalAny(metric.Data); err != nil {
		t.Errorf("metrics: %v, %v", v, err)
	}

	changed := record("life")
	changed.Labels["more"] = "labels"
	if err := ctl.Update(ctx, "life", changed, "labels"); err != nil {
		t.Errorf("update: %v", err)
	}

	type exit struct {
		sandbox.ExitStatus
		error
	}
	waited := make(chan exit, 1)
	go func() {
		status, err := ctl.Wait(ctx, "life")
		waited <- exit{status, err}
	}()
	before := time.Now().Add(-time.Second)
	for range 2 { // Stop may be repeated
		if err := ctl.Stop(ctx, "life", sandbox.WithTimeout(5*time.Second)); err != nil {
			t.Errorf("stop: %v", err)
		}
	}
	if got := <-waited; got.error != nil || got.ExitedAt.Before(before) {
		t.Errorf("wait: %+v", got)
	}
	if status, err := ctl.Status(ctx, "life", false); err != nil || status.State != "SANDBOX_NOTREADY" {
		t.Errorf("status of the stopped sandbox: %+v, %v", status, err)
	}
	if err := ctl.Shutdown(ctx, "life"); err != nil {
		t.Errorf("shutdown: %v", err)
	}
	if _, err := ctl.Status(ctx, "life", false); !errdefs.IsNotFound(err) {
		t.Errorf("status after shutdown: %v", err)
	}
}

// TestShutdownAlone: nobody calls Stop after a failure elsewhere, so Shutdown
// must end everything by itself.
func TestShutdownAlone(t *testing.T) {
	h := harness.Start(t, daemon.Options{})
	ctx := h.In(time.Minute)
	startSandbox(t, h, "alone", nil)
	c, err := newContainer(h, "inside", []containerd.NewContainerOpts{containerd.WithSandbox("alone")}, oci.WithProcessArgs("sleep", "1000"))
	if err != nil {
		t.Fatal(err)
	}
	task, err := taskIn(ctx, h, "alone", c, cio.NullIO)
	if err != nil {
		t.Fatal(err)
	}
	if err := task.Start(ctx); err != nil {
		t.Fatal(err)
	}
	exited, err := task.Wait(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := controller(h).Shutdown(ctx, "alone"); err != nil {
		t.Fatal(err)
	}
	<-exited
	remove(t, h, "inside")
}

func TestSandboxIsShared(t *testing.T) {
	h := harness.Start(t, daemon.Options{})
	startSandbox(t, h, "shared", &options.Options{
		Hostname: "the-box",
		Dns:      &options.DNS{Servers: []string{"192.0.2.1"}, Searches: []string{"example.test"}, Options: []string{"ndots:3"}},
		Sysctls:  map[string]string{"net.ipv4.ip_unprivileged_port_start": "80", "kernel.shmmax": "123456789"},
	})
	const look = `hostname; cat /etc/hostname /etc/resolv.conf; grep the-box /etc/hosts
cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/shmmax
for n in net ipc uts; do readlink /proc/self/ns/$n; done`
	first := member(t, h, "shared", "a", look+"; echo from a > /dev/shm/note")
	second := member(t, h, "shared", "b", look)
	if first != second {
		t.Errorf("the containers see different sandboxes:\n%s\n%s", first, second)
	}
	for _, want := range []string{"the-box\nthe-box\n", "nameserver 192.0.2.1\n", "search example.test\n", "ndots:3", "\n80\n123456789\n"} {
		if !strings.Contains(first, want) {
			t.Errorf("no %q in:\n%s", want, first)
		}
	}
	if got := member(t, h, "shared", "c", "cat /dev/shm/note; df -k /dev/shm | tail -n 1 | awk '{print $2}'"); got != "from a\n65536\n" {
		t.Errorf("/dev/shm: %q", got)
	}
}

func TestSandboxNetworks(t *testing.T) {
	h := harness.Start(t, daemon.Options{})
	ctx := h.In(time.Minute)
	const links = "ls /sys/class/net | sort | tr '\\n' ' '; readlink /proc/self/ns/net"
	startSandbox(t, h, "none", &options.Options{Network: options.Network_NETWORK_NONE})
	if got := member(t, h, "none", "n1", links); !strings.HasPrefix(got, "lo net:") {
		t.Errorf("network none: %q", got)
	}
	startSandbox(t, h, "host", &options.Options{Network: options.Network_NETWORK_HOST})
	if got, want := member(t, h, "host", "n2", "readlink /proc/self/ns/net"), readlink(t, "/proc/self/ns/net")+"\n"; got != want {
		t.Errorf("network host: %q, the host is in %q", got, want)
	}

	startSandbox(t, h, "cni1", &options.Options{Network: options.Network_NETWORK_CNI})
	startSandbox(t, h, "cni2", &options.Options{Network: options.Network_NETWORK_CNI})
	address := strings.TrimSpace(member(t, h, "cni1", "n3", "ip -4 -o addr show eth0 | awk '{print $4}' | cut -d/ -f1"))
	if !strings.HasPrefix(address, "10.") {
		t.Fatalf("address of cni1: %q", address)
	}
	if got := member(t, h, "cni2", "n4", "ping -c 1 -W 5 "+address+" >/dev/null && echo reached"); got != "reached\n" {
		t.Errorf("cni2 does not reach cni1: %q", got)
	}
	status, err := controller(h).Status(ctx, "cni1", true)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(status.Info["info"], address) {
		t.Errorf("no address %s in the status: %s", address, status.Info["info"])
	}
}

func TestSandboxResources(t *testing.T) {
	h := harness.Start(t, daemon.Options{})
	startSandbox(t, h, "small", &options.Options{Resources: &options.Resources{MemoryLimit: 96 << 20, PidsLimit: 50}})
	ctx := h.In(time.Minute)
	c, err := newContainer(h, "forks", []containerd.NewContainerOpts{containerd.WithSandbox("small")},
		oci.WithProcessArgs("/bin/sh", "-c", "for i in $(seq 100); do sleep 100 & done; wait"))
	if err != nil {
		t.Fatal(err)
	}
	var stderr strings.Builder
	task, err := taskIn(ctx, h, "small", c, cio.NewCreator(cio.WithStreams(nil, &strings.Builder{}, &stderr), fifos(h)))
	if err != nil {
		t.Fatal(err)
	}
	exited, err := task.Wait(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := task.Start(ctx); err != nil {
		t.Fatal(err)
	}
	select {
	case <-exited: // the shell gives up when it cannot fork
	case <-ctx.Done():
		t.Error("100 processes fit into a sandbox of 50")
	}
	if _, err := task.Delete(ctx); err != nil { // it waits for the last output
		t.Error(err)
	}
	remove(t, h, "forks")
	if !strings.Contains(stderr.String(), "fork") {
		t.Errorf("stderr: %q", stderr.String())
	}
}

// TestHolderDies: the death of what holds the sandbox's namespaces is its end.
func TestHolderDies(t *testing.T) {
	h := harness.Start(t, daemon.Options{})
	ctx := h.In(time.Minute)
	started := startSandbox(t, h, "held", nil)
	waited := make(chan error, 1)
	go func() {
		_, err := controller(h).Wait(ctx, "held")
		waited <- err
	}()
	kill(t, int(started.Pid))
	select {
	case err := <-waited:
		if err != nil {
			t.Errorf("wait: %v", err)
		}
	case <-ctx.Done():
		t.Fatal("Wait does not return")
	}
	status, err := controller(h).Status(ctx, "held", false)
	if err != nil || status.State != "SANDBOX_NOTREADY" {
		t.Errorf("status: %+v, %v", status, err)
	}
}

// detached is a context for clean-ups, which run after the test's own has ended.
func detached(h *harness.Host, limit time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(h.In(limit)), limit)
}

var errNotEnded = errors.New("it still runs")
