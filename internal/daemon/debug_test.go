package daemon

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	api "github.com/containerd/containerd/api/services/sandbox/v1"
	"github.com/containerd/containerd/v2/core/sandbox/proxy"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"caisson/internal/undo"
)

// ask asks a daemon's debug socket.
func ask(t *testing.T, state, path string) (code int, text string) {
	t.Helper()
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", filepath.Join(state, debugSocket))
	}}
	defer transport.CloseIdleConnections()
	resp, err := (&http.Client{Transport: transport, Timeout: 20 * time.Second}).Get("http://caissond" + path)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close() //nolint:errcheck // only read from
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

// dashboard is what Grafana shows, as far as it asks for something.
type dashboard struct {
	Templating struct {
		List []struct{ Query any }
	}
	Panels []struct {
		Title   string
		Targets []struct{ Expr, LegendFormat string }
	}
}

var (
	metricName = regexp.MustCompile(`\b(caisson|go|process)_[a-z_]+\b`)
	labelUse   = regexp.MustCompile(`by \(([^)]*)\)|\{\{(\w+)\}\}|[{,](\w+)(?:=|!)`)
)

// TestDashboard: each metric and each label that the dashboard in contrib asks for is
// one that a daemon exports, and the dashboard shows all that are Caisson's own.
func TestDashboard(t *testing.T) {
	needRoot(t)
	cfg := sandboxerConfig(t)
	start(t, cfg)
	conn, err := grpc.NewClient("unix:"+cfg.State+"/sandboxer.sock", grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close() //nolint:errcheck // nothing is lost
	ctx, cancel := context.WithTimeout(namespaces.WithNamespace(context.Background(), "test"), 20*time.Second)
	defer cancel()
	if _, err := proxy.NewSandboxController(api.NewControllerClient(conn), "caisson").Status(ctx, "none", false); !errdefs.IsNotFound(err) {
		t.Fatal(err)
	}
	_, text := ask(t, cfg.State, "/metrics")
	exported, own := exports(text)

	file, err := os.ReadFile("../../contrib/grafana/caisson.json")
	if err != nil {
		t.Fatal(err)
	}
	var d dashboard
	if err := json.Unmarshal(file, &d); err != nil {
		t.Fatal(err)
	}
	labels := []string{"instance", "le"} // Prometheus's own
	for _, of := range exported {
		labels = append(labels, of...)
	}
	shown := map[string]bool{}
	check := func(where, query, legend string) {
		for _, name := range metricName.FindAllString(query, -1) {
			if exported[name] == nil {
				t.Errorf("%s: %s is not exported", where, name)
			}
			shown[strings.TrimSuffix(strings.TrimSuffix(strings.TrimSuffix(name, "_bucket"), "_sum"), "_count")] = true
		}
		for _, use := range labelUse.FindAllStringSubmatch(query+legend, -1) {
			for label := range strings.SplitSeq(use[1]+use[2]+use[3], ",") {
				if !slices.Contains(labels, strings.TrimSpace(label)) {
					t.Errorf("%s: no metric has the label %q", where, label)
				}
			}
		}
	}
	queries := 0
	for _, v := range d.Templating.List {
		check("variable", fmt.Sprint(v.Query), "")
	}
	for _, p := range d.Panels {
		for _, target := range p.Targets {
			queries++
			check(p.Title, target.Expr, target.LegendFormat)
		}
	}
	if queries < 15 {
		t.Errorf("the dashboard asks for %d things only", queries)
	}
	for _, name := range own {
		if !shown[name] {
			t.Errorf("the dashboard does not show %s", name)
		}
	}
}

// exports are the names that a daemon's answer has samples of, with their labels, and
// the names of Caisson's own metrics.
func exports(text string) (samples map[string][]string, own []string) {
	samples = map[string][]string{}
	label := regexp.MustCompile(`(\w+)="`)
	for line := range strings.Lines(text) {
		if name, found := strings.CutPrefix(line, "# TYPE caisson_"); found {
			own = append(own, "caisson_"+strings.Fields(name)[0])
		}
		if strings.HasPrefix(line, "#") {
			continue
		}
		name := line[:strings.IndexAny(line, "{ ")]
		samples[name] = append(samples[name], "")
		for _, m := range label.FindAllStringSubmatch(line, -1) {
			samples[name] = append(samples[name], m[1])
		}
	}
	return samples, own
}

// TestHealth: a daemon answers before it is ready, and says so.
func TestHealth(t *testing.T) {
	needRoot(t)
	cfg := sandboxerConfig(t)
	if err := os.Mkdir(cfg.State, 0o700); err != nil {
		t.Fatal(err)
	}
	v := newView(cfg)
	var steps undo.Stack
	if err := v.serve(context.Background(), &steps); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := steps.Run(context.Background()); err != nil {
			t.Error(err)
		}
	}()
	check := func(path string, want int, say string) {
		t.Helper()
		if code, text := ask(t, cfg.State, path); code != want || !strings.Contains(text, say) {
			t.Errorf("%s: %d %s", path, code, text)
		}
	}
	check("/healthz", http.StatusOK, "ok")
	check("/readyz", http.StatusServiceUnavailable, "starts or stops")
	check("/metrics", http.StatusOK, "caisson_build_info{")
	check("/debug/dump", http.StatusOK, "") // what there is
	v.dumping <- struct{}{}
	check("/debug/dump", http.StatusServiceUnavailable, "under way")
	v.ready.Store(true)
	check("/readyz", http.StatusOK, "ok")

	// A daemon that cannot serve what it was told to does not start.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() //nolint:errcheck // nothing was exchanged
	taken := sandboxerConfig(t)
	taken.Telemetry.Address = l.Addr().String()
	if err := Run(context.Background(), taken); err == nil || !strings.Contains(err.Error(), "telemetry.address "+taken.Telemetry.Address) {
		t.Errorf("an address that is taken: %v", err)
	}
}

func TestStacksAreFew(t *testing.T) {
	dir := t.TempDir()
	now := time.Now()
	var last string
	for i := range keepStacks + 3 {
		path, err := writeStacks(dir, now.Add(time.Duration(i)*time.Second))
		if err != nil {
			t.Fatal(err)
		}
		last = path
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != keepStacks || left[len(left)-1].Name() != filepath.Base(last) {
		t.Errorf("left: %v, %v; the last is %s", left, err, last)
	}
	text, err := os.ReadFile(last)
	if err != nil || !strings.Contains(string(text), t.Name()) {
		t.Errorf("%v: %s", err, text)
	}
	if _, err := writeStacks(filepath.Join(dir, "none"), now); err == nil {
		t.Error("no error without a directory")
	}
}

func TestDumpIsBounded(t *testing.T) {
	b := &bounded{left: 10}
	for range 5 {
		if n, err := fmt.Fprint(b, "1234567"); n != 7 || err != nil {
			t.Fatal(n, err)
		}
	}
	if got := b.buf.String(); got != "1234567123\n(cut)\n" {
		t.Errorf("%q", got)
	}
}
