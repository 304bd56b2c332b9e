package bench

import (
	"context"
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	sandboxapi "github.com/containerd/containerd/api/services/sandbox/v1"
	core "github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/containerd/v2/core/sandbox/proxy"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/ttrpc"

	options "caisson/api/caisson/sandbox/v1"
	"caisson/internal/task"
	"caisson/test/harness"
)

// statsOf are the two questions that CRI asks about a pod of one container.
type statsOf struct {
	side          string
	task, metrics func(context.Context) error
}

// benchStats asks for the stats of a container and of its sandbox, through the sockets
// of the side, and in process.
func benchStats(t *testing.T, r *recorder) {
	const what = "stats, one by one"
	var all []statsOf
	for _, s := range startSides(t, "runc") {
		all = append(all, s.socketStats(t))
	}
	all = append(all, localStats(t))
	for round := range 25**rounds + 25 {
		for _, of := range all {
			for _, ask := range []struct {
				name string
				f    func(context.Context) error
			}{{"Task.Stats", of.task}, {"Controller.Metrics", of.metrics}} {
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				begin := time.Now()
				err := ask.f(ctx)
				took := time.Since(begin)
				cancel()
				if err != nil {
					t.Fatalf("%s: %s: %v", of.side, ask.name, err)
				}
				if round >= 25 {
					r.add(what, ask.name, "µs", of.side, float64(took.Nanoseconds())/1000)
				}
			}
		}
	}
}

// localStats has a container in a controller of this process.
func localStats(t *testing.T) statsOf {
	t.Helper()
	ctl, bundle := localController(t, 0), makeBundle(t, "/caisson-stats/c")
	ctx := namespaces.WithNamespace(t.Context(), "bench")
	fail := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	fail(ctl.Create(ctx, core.Sandbox{ID: "s"}, core.WithOptions(&options.Options{Network: options.Network_NETWORK_HOST})))
	t.Cleanup(func() {
		if err := ctl.Shutdown(context.WithoutCancel(ctx), "s"); err != nil {
			t.Error(err)
		}
		if err := removeGroup("caisson-stats"); err != nil {
			t.Error(err)
		}
	})
	_, err := ctl.Start(ctx, "s")
	fail(err)
	_, err = ctl.CreateTask(ctx, "s", task.CreateRequest{ID: "c", Bundle: bundle})
	fail(err)
	tasks, err := ctl.Tasks(ctx, "s")
	fail(err)
	_, err = tasks.Start(ctx, "c", "")
	fail(err)
	return statsOf{
		side: "caisson, in process",
		task: func(ctx context.Context) error {
			_, err := tasks.Stats(namespaces.WithNamespace(ctx, "bench"), "c")
			return err
		},
		metrics: func(ctx context.Context) error {
			_, err := ctl.Metrics(namespaces.WithNamespace(ctx, "bench"), "s")
			return err
		},
	}
}

// socketStats has a pod of one container, and connections to what containerd asks
// about it: the socket of the shim, or the sandbox's, and that of the sandboxer. The
// sandboxer of containerd's own pods is within it.
func (s side) socketStats(t *testing.T) statsOf {
	t.Helper()
	cfg := s.cri.PodConfig(networks[0].mode)
	pod := s.runPod(t, cfg)
	id := s.createContainer(t, pod, cfg, waits)
	s.startContainer(t, id)
	t.Cleanup(func() { s.cri.Remove(pod) })
	conn, err := net.Dial("unix", s.taskSocket(t, id))
	if err != nil {
		t.Fatal(err)
	}
	ttrpcClient := ttrpc.NewClient(conn)
	t.Cleanup(func() { _ = ttrpcClient.Close() })
	tasks := taskapi.NewTTRPCTaskClient(ttrpcClient)
	var sandboxes core.Controller
	if s.ours() {
		sandboxes = proxy.NewSandboxController(sandboxapi.NewControllerClient(s.SandboxerConn()), harness.Sandboxer)
	} else {
		sandboxes = s.Client(harness.CRINamespace).SandboxController("podsandbox")
	}
	return statsOf{
		side: s.name,
		task: func(ctx context.Context) error {
			_, err := tasks.Stats(namespaces.WithNamespace(ctx, harness.CRINamespace), &taskapi.StatsRequest{ID: id})
			return err
		},
		metrics: func(ctx context.Context) error {
			_, err := sandboxes.Metrics(namespaces.WithNamespace(ctx, harness.CRINamespace), pod)
			return err
		},
	}
}

// taskSocket is where containerd reaches a container's task, as it notes it.
func (s side) taskSocket(t *testing.T, id string) string {
	t.Helper()
	var noted struct{ Address string }
	files, err := filepath.Glob(filepath.Join(s.Dir, "*", "*", "io.containerd.runtime.v2.task", harness.CRINamespace, id, "bootstrap.json"))
	if err != nil || len(files) != 1 {
		t.Fatalf("%s: %d files say where the task is served, %v", s.name, len(files), err)
	}
	text, err := os.ReadFile(files[0])
	if err == nil {
		err = json.Unmarshal(text, &noted)
	}
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimPrefix(noted.Address, "unix://")
}
