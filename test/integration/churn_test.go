package integration

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"caisson/test/daemon"
	"caisson/test/harness"
)

// churnPods is how many pods TestChurn makes; CAISSON_TEST_PODS overrides it.
const churnPods = 120

// TestChurn runs whole lives of pods, four at a time. Nothing may be left of
// them, in the daemon least of all: it has as many descriptors and goroutines
// after the last as after the first few.
func TestChurn(t *testing.T) {
	for _, engine := range []string{daemon.EngineEmbedded, daemon.EngineStock} {
		t.Run(engine, func(t *testing.T) { churn(t, engine) })
	}
}

func churn(t *testing.T, engine string) {
	pods := churnPods
	if s := os.Getenv("CAISSON_TEST_PODS"); s != "" {
		var err error
		if pods, err = strconv.Atoi(s); err != nil {
			t.Fatalf("CAISSON_TEST_PODS: %v", err)
		}
	}
	h := harness.Start(t, daemon.Options{Engine: engine})
	cri := h.CRI()
	configs := make([]*runtime.PodSandboxConfig, pods)
	for n := range configs {
		configs[n] = cri.PodConfig([]runtime.NamespaceMode{runtime.NamespaceMode_NODE, runtime.NamespaceMode_POD}[n%2])
	}
	live := func(n int) {
		cfg := configs[n]
		pod := cri.RunPod(cfg)
		id := cri.RunContainer(pod, cfg, cri.ContainerConfig("c", fmt.Sprintf("exit %d", n%7)))
		if st := cri.AwaitState(id, runtime.ContainerState_CONTAINER_EXITED); st.ExitCode != int32(n%7) {
			t.Errorf("pod %d: exit code %d", n, st.ExitCode)
		}
		cri.Remove(pod)
	}
	const first = 8
	inParallel(t, first, live)
	before := usage(t, h)
	inParallel(t, pods-first, func(n int) { live(first + n) })
	expectUsage(t, h, before, before, fmt.Sprintf("%d pods", pods-first))
	expectNothing(t, h, cri)
}

// resources are what a daemon holds.
type resources struct{ descriptors, goroutines, heap, resident int }

func (r resources) String() string {
	return fmt.Sprintf("%d descriptors, %d goroutines, %d KiB of heap, %d KiB resident", r.descriptors, r.goroutines, r.heap>>10, r.resident)
}

func usage(t *testing.T, h *harness.Host) resources {
	t.Helper()
	r := resources{descriptors: descriptorsOf(t, h.Pid()), resident: pss(t, h.Pid())}
	if _, err := fmt.Sscanf(profile(t, h, "goroutine?debug=1"), "goroutine profile: total %d", &r.goroutines); err != nil {
		t.Fatal(err)
	}
	_, stats, ok := strings.Cut(profile(t, h, "heap?gc=1&debug=1"), "\n# HeapAlloc = ")
	if _, err := fmt.Sscan(stats, &r.heap); err != nil || !ok {
		t.Fatalf("no size in the heap's profile: %v", err)
	}
	return r
}

// perGoroutine is what stays of each that there was: Go keeps 480 bytes of it for the next
// one, and the journal the keys of the last few thousand events.
const perGoroutine = 640

// expectUsage: the daemon holds what it held before, or nearly. Its heap is looked
// at beside a stock containerd only: CRI keeps the last thousand events for
// somebody to ask.
func expectUsage(t *testing.T, h *harness.Host, before, peak resources, after string) {
	t.Helper()
	var now resources
	mostHeap := before.heap + 512<<10 + max(0, peak.goroutines-before.goroutines)*perGoroutine
	// Clients close their connections when they like.
	err := daemon.Poll(h.In(time.Minute), 20*time.Second, func() error {
		now = usage(t, h)
		if now.descriptors > before.descriptors+8 || now.goroutines > before.goroutines+8 || h.Stock() && now.heap > mostHeap {
			return fmt.Errorf("%v after %s; %v before", now, after, before)
		}
		return nil
	})
	if err != nil {
		t.Errorf("%v\n%s", err, profile(t, h, "goroutine?debug=1"))
	}
	t.Logf("%v after %s; %v before", now, after, before)
}

// profile asks caissond for one of Go's profiles.
func profile(t *testing.T, h *harness.Host, name string) string {
	t.Helper()
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(h.State, "debug.sock"))
		},
	}}
	req, err := http.NewRequestWithContext(h.Context(time.Minute), http.MethodGet, "http://caissond/debug/pprof/"+name, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("profile %s: %s, %v", name, resp.Status, err)
	}
	return string(text)
}

func descriptorsOf(t *testing.T, pid int) int {
	t.Helper()
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	return len(fds)
}
