package cli

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"testing"
	"time"

	cgroup1 "github.com/containerd/cgroups/v3/cgroup1/stats"
	cgroup2 "github.com/containerd/cgroups/v3/cgroup2/stats"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/api/types/task"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/typeurl/v2"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// now is when all the tables of these tests are shown.
var now = time.Date(2026, 8, 1, 12, 0, 0, 0, time.UTC)

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("%s: %s", name, diff)
	}
}

// show lists rows in every way there is, into one golden file each.
func show[R row](t *testing.T, name string, header []string, rows []R) {
	t.Helper()
	for suffix, o := range map[string]output{
		"table.txt": {format: "table"}, "json": {format: "json"}, "quiet.txt": {format: "table", quiet: true},
	} {
		var buf bytes.Buffer
		if err := list(&buf, o, header, rows); err != nil {
			t.Fatal(err)
		}
		golden(t, name+"."+suffix, buf.Bytes())
	}
}

func TestContainerRows(t *testing.T) {
	spec, err := typeurl.MarshalAny(&specs.Spec{Process: &specs.Process{Args: []string{"httpd", "-f", "-p", "8080", "-h", "/a/rather/long/path"}}})
	if err != nil {
		t.Fatal(err)
	}
	at := func(ago time.Duration) *timestamppb.Timestamp { return timestamppb.New(now.Add(-ago)) }
	record := func(id, sandboxID string) containers.Container {
		return containers.Container{
			ID: id, SandboxID: sandboxID, Image: "docker.io/library/demo:latest", Spec: spec,
			Runtime: containers.RuntimeInfo{Name: runtimeName}, CreatedAt: now.Add(-time.Hour),
		}
	}
	web := record("web", "pod1")
	web.Labels = map[string]string{labelLog: "/var/lib/caisson/logs/default/web.log", "tier": "front\x1b[31m"}
	broken := record("broken", "")
	broken.Spec = nil
	show(t, "ps", []string{"CONTAINER", "SANDBOX", "IMAGE", "COMMAND", "STATUS", "PID", "CREATED"}, []containerRow{
		newContainerRow(now, web, &task.Process{Status: task.Status_RUNNING, Pid: 4711}),
		newContainerRow(now, record("job", "pod1"), &task.Process{Status: task.Status_STOPPED, Pid: 9, ExitStatus: 3, ExitedAt: at(5 * time.Minute)}),
		newContainerRow(now, record("ice", "pod1"), &task.Process{Status: task.Status_PAUSED, Pid: 12}),
		newContainerRow(now, record("lost", "pod1"), &task.Process{Status: task.Status_UNKNOWN}),
		newContainerRow(now, broken, nil),
	})
}

func TestSandboxRows(t *testing.T) {
	record := sandbox.Sandbox{ID: "pod1", CreatedAt: now.Add(-time.Hour), Labels: map[string]string{"a": "b"}}
	show(t, "sandbox_ls", []string{"SANDBOX", "STATE", "PID", "CONTAINERS", "CREATED"}, []sandboxRow{
		newSandboxRow(now, record, sandbox.ControllerStatus{State: "SANDBOX_READY", Pid: 100}, []string{"web", "db"}),
		newSandboxRow(now, sandbox.Sandbox{ID: "pod2"}, sandbox.ControllerStatus{State: "SANDBOX_NOTREADY"}, nil),
		newSandboxRow(now, sandbox.Sandbox{ID: "pod3"}, sandbox.ControllerStatus{}, nil),
	})
}

func TestImageRows(t *testing.T) {
	target := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromString("x"), Size: 3}
	show(t, "image_ls", []string{"IMAGE", "DIGEST", "SIZE", "CREATED"}, []imageRow{
		newImageRow(now, images.Image{Name: "docker.io/library/demo:latest", Target: target, CreatedAt: now.Add(-48 * time.Hour)}, 2<<20),
		newImageRow(now, images.Image{Name: "127.0.0.1:5000/part:1", Target: target, Labels: map[string]string{"k": "v"}}, -1),
	})
}

func TestMetricsRows(t *testing.T) {
	metric := func(m proto.Message) *types.Metric {
		data, err := typeurl.MarshalAnyToProto(m)
		if err != nil {
			t.Fatal(err)
		}
		return &types.Metric{Timestamp: timestamppb.New(now), Data: data}
	}
	var rows []metricsRow
	for id, m := range map[string]*types.Metric{
		"v1": metric(&cgroup1.Metrics{
			CPU:    &cgroup1.CPUStat{Usage: &cgroup1.CPUUsage{Total: 1_500_000_000}},
			Memory: &cgroup1.MemoryStat{Usage: &cgroup1.MemoryEntry{Usage: 12 << 20, Limit: 0x7ffffffffffff000}},
			Pids:   &cgroup1.PidsStat{Current: 3, Limit: 10},
		}),
		"v2": metric(&cgroup2.Metrics{
			CPU:    &cgroup2.CPUStat{UsageUsec: 1_500_000},
			Memory: &cgroup2.MemoryStat{Usage: 12 << 20, UsageLimit: 64 << 20},
			Pids:   &cgroup2.PidsStat{Current: 3, Limit: 1<<64 - 1},
		}),
	} {
		row, err := newMetricsRow(id, m)
		if err != nil {
			t.Fatalf("%s: %v", id, err)
		}
		rows = append(rows, row)
	}
	if rows[0].ID != "v1" {
		rows[0], rows[1] = rows[1], rows[0]
	}
	show(t, "sandbox_metrics", []string{"SANDBOX", "CPU", "MEMORY", "LIMIT", "PIDS", "LIMIT"}, rows)

	for name, m := range map[string]*types.Metric{
		"nil": nil, "empty": {}, "unknown": {Data: &anypb.Any{TypeUrl: "nobody.knows"}}, "other": metric(timestamppb.Now()),
	} {
		if _, err := newMetricsRow("a", m); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestEmptyListIsAnEmptyArray(t *testing.T) {
	for _, o := range []output{{format: "json"}, {format: "json", quiet: true}} {
		var buf bytes.Buffer
		if err := list[sandboxRow](&buf, o, []string{"SANDBOX"}, nil); err != nil || buf.String() != "[]\n" {
			t.Errorf("%+v: %q, %v", o, buf.String(), err)
		}
	}
}

func TestInspect(t *testing.T) {
	st := sandbox.ControllerStatus{State: "SANDBOX_READY", Pid: 7, Address: "ttrpc+unix:///run/x", Version: 3}
	d := sandboxDetails{
		sandboxRow: newSandboxRow(now, sandbox.Sandbox{ID: "pod1", CreatedAt: now, Labels: map[string]string{"a": "b"}}, st, []string{"web"}),
		Runtime:    runtimeName, Sandboxer: sandboxer, Address: endpointOf(st).address,
		Info: decodeInfo(map[string]string{"info": `{"cgroup":"/x"}`, "plain": "text"}),
	}
	var buf bytes.Buffer
	if err := writeJSON(&buf, []sandboxDetails{d}); err != nil {
		t.Fatal(err)
	}
	golden(t, "sandbox_inspect.json", buf.Bytes())
	buf.Reset()
	if err := writeTable(&buf, d.lines()); err != nil {
		t.Fatal(err)
	}
	golden(t, "sandbox_inspect.table.txt", buf.Bytes())
}

func TestEndpoint(t *testing.T) {
	for name, c := range map[string]struct {
		status sandbox.ControllerStatus
		want   taskEndpoint
	}{
		"field":    {sandbox.ControllerStatus{Address: "ttrpc+unix:///a", Version: 3}, taskEndpoint{"ttrpc+unix:///a", 3}},
		"info":     {sandbox.ControllerStatus{Info: map[string]string{"info": `{"address":"ttrpc+unix:///b","version":4}`}}, taskEndpoint{"ttrpc+unix:///b", 4}},
		"relative": {sandbox.ControllerStatus{Info: map[string]string{"info": `{"directory":"s/1"}`}}, taskEndpoint{}},
		"broken":   {sandbox.ControllerStatus{Info: map[string]string{"info": `{`}}, taskEndpoint{}},
		"nothing":  {sandbox.ControllerStatus{}, taskEndpoint{}},
	} {
		if got := endpointOf(c.status); got != c.want {
			t.Errorf("%s: %+v, want %+v", name, got, c.want)
		}
	}
}
