package integration

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	common "go.opentelemetry.io/proto/otlp/common/v1"
	trace "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"caisson/sandbox"
	"caisson/test/daemon"
	"caisson/test/harness"
)

// TestObserve: what a pod does is seen in the metrics, in a dump of the daemon, in
// its log, and in one trace from CRI's call to the monitor's message.
func TestObserve(t *testing.T) {
	spans := collect(t)
	address := freeAddress(t)
	h := harness.Start(t, daemon.Options{
		Engine: daemon.EngineEmbedded,
		Config: fmt.Sprintf("[telemetry]\naddress = %q\n", address),
		Args:   []string{"--log-format", "json"},
		Env:    spans.env(),
	})
	cri := h.CRI()
	cfg := cri.PodConfig(runtime.NamespaceMode_NODE)
	id := cri.RunPod(cfg)
	container := cri.RunContainer(id, cfg, cri.ContainerConfig("c", "exec sleep 1000"))

	t.Run("metrics", func(t *testing.T) {
		tcp := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
		for name, client := range map[string]*http.Client{"http://caissond": debugClient(h.State), "http://" + address: tcp} {
			text := get(t, client, name+"/metrics")
			for _, want := range []string{
				`caisson_sandboxes{state="ready"} 1`, `caisson_sandboxes{state="stopped"} 0`,
				`caisson_call_duration_seconds_count{api="controller",class="ok",method="Start"} 1`,
				`caisson_call_duration_seconds_count{api="task",class="ok",method="Create"} 1`,
				`caisson_call_duration_seconds_count{api="shim",class="ok",method="info"} `,
				`caisson_process_deaths_total{process="monitor"} 0`,
				`caisson_build_info{engine="embedded",`, "caisson_events_queued ", "go_goroutines ", "process_open_fds ",
			} {
				if !strings.Contains(text, want) {
					t.Errorf("%s: no %s in\n%s", name, want, text)
				}
			}
			if strings.Contains(text, id) || strings.Contains(text, `method="Wait`) {
				t.Errorf("%s tells of a sandbox or of waiting:\n%s", name, text)
			}
			for _, path := range []string{"/healthz", "/readyz"} {
				if got := get(t, client, name+path); got != "ok\n" {
					t.Errorf("%s%s: %q", name, path, got)
				}
			}
		}
		if serving, err := h.Client("").IsServing(h.Context(10 * time.Second)); !serving || err != nil {
			t.Errorf("gRPC's own health: %v, %v", serving, err)
		}
		for _, path := range []string{"/debug/dump", "/debug/pprof/"} {
			resp, err := tcp.Get("http://" + address + path)
			if err != nil || resp.Body.Close() != nil || resp.StatusCode != http.StatusNotFound {
				t.Errorf("%s over TCP: %v, %v", path, resp, err)
			}
		}
	})

	t.Run("dump", func(t *testing.T) {
		file := filepath.Join(h.Dir, "dump.tar.gz")
		if out := h.Caisson("debug", "dump", "-o", file); out != file+"\n" {
			t.Errorf("printed %q", out)
		}
		archive, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		parts := unpack(t, archive)
		for name, want := range map[string]string{
			"goroutines.txt": "goroutine ", "version.json": `"containerd": "2.`, "config.json": h.State,
			"sandboxes.json": id, "descriptors.txt": "socket:", "metrics.txt": "caisson_build_info",
		} {
			if !strings.Contains(parts[name], want) {
				t.Errorf("%s: no %q in\n%s", name, want, parts[name])
			}
		}
		if text := fmt.Sprint(parts); strings.Contains(text, "hunter2") || strings.Contains(text, cfg.Annotations["note"]) {
			t.Errorf("secrets are dumped: %s", text)
		}
		var reports []sandbox.Report
		if err := json.Unmarshal([]byte(parts["sandboxes.json"]), &reports); err != nil {
			t.Fatal(err)
		}
		if len(reports) != 1 || reports[0].State != sandbox.Ready || reports[0].MonitorPid == 0 || !slices.Equal(reports[0].Containers, []string{container}) {
			t.Errorf("sandboxes: %+v", reports)
		}
		if out := h.Caisson("debug", "dump", "-o", "-"); len(unpack(t, []byte(out))) != len(parts) {
			t.Errorf("to standard output: %d bytes", len(out))
		}
		for _, args := range [][]string{{"--socket", h.Dir + "/none.sock"}, {"-o", h.Dir + "/none/file"}, {"extra"}} {
			if res := h.TryCaisson(append([]string{"debug", "dump"}, args...)...); res.Code != 1 || res.Stderr == "" {
				t.Errorf("%q: %+v", args, res)
			}
		}
		if err := intoClosedPipe(h, "debug", "dump", "-o", "-"); err == nil {
			t.Error("nobody read the dump, and that is no error")
		}
	})

	t.Run("SIGUSR1", func(t *testing.T) {
		if err := syscall.Kill(h.Pid(), syscall.SIGUSR1); err != nil {
			t.Fatal(err)
		}
		err := daemon.Poll(h.Context(time.Minute), time.Minute, func() error {
			found, err := filepath.Glob(h.State + "/goroutine-stacks-*.log")
			if err == nil && len(found) != 1 {
				err = fmt.Errorf("%d files", len(found))
			}
			if err != nil {
				return err
			}
			text, err := os.ReadFile(found[0])
			if err == nil && !bytes.Contains(text, []byte("daemon.Run(")) {
				t.Errorf("%s: %s", found[0], text)
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
	})

	cri.Remove(id)

	t.Run("log", func(t *testing.T) {
		lines := map[string]map[string]any{}
		for line := range strings.Lines(h.LogTail(1 << 20)) {
			var fields map[string]any
			if json.Unmarshal([]byte(line), &fields) == nil && fields["sandbox_id"] == id {
				lines[fmt.Sprint(fields["msg"])] = fields
			}
		}
		if l := lines["process changed state"]; l["container_id"] != container || l["state"] == nil {
			t.Errorf("no line about the container: %v", l)
		}
		for _, msg := range []string{"sandbox created", "sandbox started", "sandbox stopped", "sandbox removed"} {
			if lines[msg]["namespace"] != harness.CRINamespace {
				t.Errorf("%q: %v", msg, lines[msg])
			}
		}
	})

	t.Run("trace", func(t *testing.T) {
		spans.check(t, h, id, "caissond")
		if n := spans.served("containerd.task.v3.Task/Start"); n > 0 {
			t.Errorf("%d starts came to the daemon through a socket of its own", n)
		}
	})
}

// TestTraceBesideStock: a trace goes through a stock containerd, and through the
// connections that the keeper has.
func TestTraceBesideStock(t *testing.T) {
	spans := collect(t)
	h := harness.Start(t, daemon.Options{Engine: daemon.EngineStock, Env: spans.env()})
	cri := h.CRI()
	cfg := cri.PodConfig(runtime.NamespaceMode_NODE)
	id := cri.RunPod(cfg)
	cri.RunContainer(id, cfg, cri.ContainerConfig("c", "exec sleep 1000"))
	spans.check(t, h, id, "caissond", "containerd")
	if spans.served("containerd.task.v3.Task/Start") == 0 {
		t.Error("no start came through a socket")
	}
}

// receiver is a collector of traces.
type receiver struct {
	*httptest.Server
	mu       sync.Mutex // guards all below
	spans    []*trace.Span
	services map[string]bool // that sent some
}

func collect(t *testing.T) *receiver {
	r := &receiver{services: map[string]bool{}}
	r.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		body, err := io.ReadAll(req.Body)
		var got collector.ExportTraceServiceRequest
		if err == nil {
			err = proto.Unmarshal(body, &got)
		}
		if err != nil || req.URL.Path != "/v1/traces" || req.Header.Get("Authorization") != "hunter2" {
			t.Errorf("%s %s, %v: %v", req.Method, req.URL, req.Header, err)
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		for _, of := range got.GetResourceSpans() {
			r.services[attribute(of.GetResource().GetAttributes(), "service.name")] = true
			for _, s := range of.GetScopeSpans() {
				r.spans = append(r.spans, s.GetSpans()...)
			}
		}
	}))
	t.Cleanup(r.Close)
	return r
}

// env lets a server send its spans here, and soon.
func (r *receiver) env() []string {
	return []string{"OTEL_EXPORTER_OTLP_ENDPOINT=" + r.URL, "OTEL_BSP_SCHEDULE_DELAY=100", "OTEL_EXPORTER_OTLP_HEADERS=authorization=hunter2"}
}

// check waits for the traces of a pod with a container.
func (r *receiver) check(t *testing.T, h *harness.Host, sandboxID string, services ...string) {
	t.Helper()
	for _, path := range [][]string{
		{"runtime.v1.RuntimeService/RunPodSandbox", "containerd.services.sandbox.v1.Controller/Start", "monitor.hold"},
		{"runtime.v1.RuntimeService/StartContainer", "containerd.task.v3.Task/Create", "runtime", "monitor.spawn"},
		{"runtime.v1.RuntimeService/StartContainer", "containerd.task.v3.Task/Start", "monitor.spawn"},
	} {
		if err := daemon.Poll(h.Context(time.Minute), time.Minute, func() error { return r.path(sandboxID, path) }); err != nil {
			t.Error(err)
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if got := slices.Sorted(maps.Keys(r.services)); !slices.Equal(got, services) {
		t.Error("spans are from", got)
	}
}

// served counts the calls of a name that came to a server.
func (r *receiver) served(name string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := 0
	for _, s := range r.spans {
		if s.GetName() == name && s.GetKind() == trace.Span_SPAN_KIND_SERVER {
			n++
		}
	}
	return n
}

// path tells why there is no trace in which a span of each of the names is below one
// of the name before, the first of all calls and the second about the sandbox.
func (r *receiver) path(sandboxID string, names []string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	byID := map[string]*trace.Span{}
	for _, s := range r.spans {
		byID[string(s.GetSpanId())] = s
	}
	reached := 0
	for _, s := range r.spans {
		if s.GetName() != names[len(names)-1] {
			continue
		}
		n, about := len(names)-1, false
		for above := s; above != nil && n >= 0; above = byID[string(above.GetParentSpanId())] {
			if !bytes.Equal(above.GetTraceId(), s.GetTraceId()) {
				return fmt.Errorf("span %q is in another trace than %q below it", above.GetName(), s.GetName())
			}
			if above.GetName() == names[n] {
				about = about || n == 1 && attribute(above.GetAttributes(), "sandbox.id") == sandboxID
				n--
			}
		}
		if n < 0 && about {
			return nil
		}
		reached = max(reached, len(names)-1-n)
	}
	var all []string
	for _, s := range r.spans {
		all = append(all, fmt.Sprintf("%x %x %x %s", s.GetTraceId(), s.GetParentSpanId(), s.GetSpanId(), s.GetName()))
	}
	return fmt.Errorf("no trace of sandbox %s through %q, at most %d of them; spans:\n%s", sandboxID, names, reached, strings.Join(all, "\n"))
}

func attribute(all []*common.KeyValue, key string) string {
	for _, a := range all {
		if a.GetKey() == key {
			return a.GetValue().GetStringValue()
		}
	}
	return ""
}

// debugClient asks a daemon's debug socket, whatever the host of the URL.
func debugClient(state string) *http.Client {
	return &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", filepath.Join(state, "debug.sock"))
	}}}
}

func get(t *testing.T, client *http.Client, url string) string {
	t.Helper()
	resp, err := client.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(resp.Body)
	if err := errors.Join(err, resp.Body.Close()); err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s, %v: %s", url, resp.Status, err, text)
	}
	return string(text)
}

// freeAddress is one that nobody listens on.
func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() //nolint:errcheck // nothing was exchanged
	return l.Addr().String()
}

// unpack returns the files of a .tar.gz by their base names.
func unpack(t *testing.T, archive []byte) map[string]string {
	t.Helper()
	unzipped, err := gzip.NewReader(bytes.NewReader(archive))
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{}
	for r := tar.NewReader(unzipped); ; {
		header, err := r.Next()
		if err == io.EOF {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		files[filepath.Base(header.Name)] = string(text)
	}
}

// intoClosedPipe runs caisson with an output that nobody reads.
func intoClosedPipe(h *harness.Host, args ...string) error {
	cmd, err := h.Command(h.Context(time.Minute), "caisson", args...)
	if err != nil {
		return nil
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil
	}
	defer w.Close() //nolint:errcheck // nobody reads
	if err := r.Close(); err != nil {
		return nil
	}
	cmd.Stdout = w
	return cmd.Run()
}
