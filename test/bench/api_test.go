package bench

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	sandboxapi "github.com/containerd/containerd/api/services/sandbox/v1"
	core "github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/containerd/v2/core/sandbox/proxy"
	"github.com/containerd/containerd/v2/pkg/namespaces"

	options "caisson/api/caisson/sandbox/v1"
	"caisson/internal/events"
	"caisson/internal/isolation/namespace"
	"caisson/internal/monitor"
	"caisson/internal/network"
	"caisson/internal/service"
	"caisson/sandbox"
	"caisson/test/daemon"
	"caisson/test/harness"
)

const apiGroup = "Sandbox API, host network"

// benchAPI times the controller as a Go library and through its socket, and the
// floor: a C program that makes the same kernel objects.
func benchAPI(t *testing.T, r *recorder) {
	h := harness.Start(t, daemon.Options{Engine: daemon.EngineEmbedded, LogLevel: logLevel})
	remote := proxy.NewSandboxController(sandboxapi.NewControllerClient(h.SandboxerConn()), harness.Sandboxer)
	local, pooled := localController(t, 0), localController(t, 4)
	floor := buildFloor(t)
	for round := range 3 * *rounds {
		into := r
		if round < 3 {
			into = &recorder{}
		}
		for _, c := range []struct {
			side string
			core.Controller
		}{{"caisson, in process", local}, {"caisson, in process, from a pool", pooled}, {"caisson, gRPC", remote}} {
			oneSandbox(t, into, c.side, c, fmt.Sprintf("api%d", round))
		}
		into.add(apiGroup, "Create + Start", "ms", "C program", floor()/1000)
	}
}

func oneSandbox(t *testing.T, r *recorder, side string, c core.Controller, id string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(namespaces.WithNamespace(t.Context(), "bench"), time.Minute)
	defer cancel()
	rec := core.Sandbox{ID: id, Sandboxer: harness.Sandboxer, Runtime: core.RuntimeOpts{Name: harness.Runtime}}
	begin := time.Now()
	if err := c.Create(ctx, rec, core.WithOptions(&options.Options{Hostname: "bench", Network: options.Network_NETWORK_HOST})); err != nil {
		t.Fatalf("%s: create: %v", side, err)
	}
	at := r.took(apiGroup, "Create", side, begin)
	if _, err := c.Start(ctx, id); err != nil {
		t.Fatalf("%s: start: %v", side, err)
	}
	r.took(apiGroup, "Start", side, at)
	at = r.took(apiGroup, "Create + Start", side, begin)
	if _, err := c.Metrics(ctx, id); err != nil {
		t.Fatalf("%s: metrics: %v", side, err)
	}
	at = r.took(apiGroup, "Metrics", side, at)
	if err := c.Stop(ctx, id); err != nil {
		t.Fatalf("%s: stop: %v", side, err)
	}
	if err := c.Shutdown(ctx, id); err != nil {
		t.Fatalf("%s: shutdown: %v", side, err)
	}
	r.took(apiGroup, "Stop + Shutdown", side, at)
}

// localController is what a daemon is made of, without one, and with a pool of that size.
func localController(t *testing.T, pool int) *sandbox.Controller {
	t.Helper()
	dir, err := os.MkdirTemp("/run", "b")
	if err != nil {
		t.Fatal(err)
	}
	fail := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	store, err := sandbox.OpenStore(filepath.Join(t.TempDir(), "sandboxes.db"))
	fail(err)
	journal, err := events.Open(filepath.Join(dir, "events"), nil)
	fail(err)
	networks, err := network.New(network.Config{NetNSDir: filepath.Join(dir, "netns"), CNIConfDir: filepath.Join(dir, "cni"), CNIBinDirs: []string{daemon.CNIBinDir}})
	fail(err)
	program, err := monitor.Install(filepath.Join(dir, "libexec"))
	fail(err)
	waiting, err := namespace.OpenPool(t.Context(), program, filepath.Join(dir, "pool"), pool)
	fail(err)
	cgroup := filepath.Base(dir) + "-bench"
	ctl := sandbox.NewController(sandbox.Config{
		Store: store, Dir: filepath.Join(dir, "s"), Cgroup: "/" + cgroup,
		Isolations: []sandbox.NamedIsolation{{Name: namespace.Name, Isolation: namespace.New(program, waiting)}},
		Network:    networks, DefaultNetwork: network.Host, Events: journal,
		Runtime: sandbox.RuntimeConfig{Name: "runc", Root: filepath.Join(dir, "runc")},
	})
	endpoints, err := service.NewEndpoints(context.Background(), ctl, nil, service.Observe{})
	fail(err)
	fail(ctl.Load(t.Context(), endpoints))
	t.Cleanup(func() {
		for _, err := range []error{ctl.Close(), waiting.Close(), journal.Close(context.Background()), store.Close(), os.RemoveAll(dir), removeGroup(cgroup)} {
			if err != nil {
				t.Error(err)
			}
		}
	})
	return ctl
}

// buildFloor returns what runs a round of the C program and tells its microseconds.
func buildFloor(t *testing.T) func() float64 {
	t.Helper()
	program := compile(t, "floor/floor.c")
	dir, err := os.MkdirTemp("/run", "floor")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Remove(dir) })
	args := append([]string{dir, "1"}, hierarchies()...)
	return func() float64 {
		t.Helper()
		out, err := exec.Command(program, args...).CombinedOutput()
		if err != nil {
			t.Fatalf("floor: %v: %s", err, out)
		}
		us, err := strconv.ParseFloat(strings.TrimSpace(string(out)), 64)
		if err != nil {
			t.Fatal(err)
		}
		return us
	}
}
