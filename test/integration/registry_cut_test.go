package integration

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"caisson/test/daemon"
	"caisson/test/distribution"
	"caisson/test/harness"
)

// cutter is a proxy before a registry that cuts its answers short.
type cutter struct {
	proxy  *httputil.ReverseProxy
	silent chan struct{} // tells of each blob that came to a halt

	mu     sync.Mutex // guards all below
	limit  int        // bytes of a blob that go through; 0: all
	then   int        // what comes then
	ranges []string   // that were asked for
}

func startCutter(t *testing.T, registry string) (*cutter, string) {
	t.Helper()
	c := &cutter{proxy: httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: registry}), silent: make(chan struct{}, 100)}
	server := httptest.NewServer(c)
	t.Cleanup(server.Close)
	return c, strings.TrimPrefix(server.URL, "http://")
}

// What a cutter does at its limit.
const (
	cut    = iota // end the connection
	refuse        // that, and take no other for the rest
	stall         // go silent
)

// set sets the limit, and answers the ranges that were asked for until now.
func (c *cutter) set(limit, then int) []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	asked := c.ranges
	c.limit, c.then, c.ranges = limit, then, nil
	return asked
}

func (c *cutter) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c.mu.Lock()
	limit, then := c.limit, c.then
	isBlob := r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/")
	if isBlob {
		c.ranges = append(c.ranges, r.Header.Get("Range"))
	}
	c.mu.Unlock()
	if isBlob && limit > 0 && then == refuse && r.Header.Get("Range") != "" {
		http.Error(w, "no more of this", http.StatusForbidden)
		return
	}
	if isBlob && limit > 0 {
		w = &shortWriter{ResponseWriter: w, left: limit, full: func() {
			if then == stall {
				c.silent <- struct{}{}
				<-r.Context().Done()
			}
			panic(http.ErrAbortHandler)
		}}
	}
	c.proxy.ServeHTTP(w, r)
}

// shortWriter does something else than write when it is full.
type shortWriter struct {
	http.ResponseWriter
	left int
	full func()
}

func (w *shortWriter) Write(p []byte) (int, error) {
	if len(p) <= w.left {
		w.left -= len(p)
		return w.ResponseWriter.Write(p)
	}
	_, _ = w.ResponseWriter.Write(p[:w.left])
	_ = http.NewResponseController(w.ResponseWriter).Flush()
	w.full()
	return w.left, http.ErrAbortHandler
}

// contentLeft is what the daemon has stored of images, and for how long.
func contentLeft(t *testing.T, h *harness.Host) (ingests, leases int) {
	t.Helper()
	ctx := h.In(time.Minute)
	active, err := h.Client("").ContentStore().ListStatuses(ctx)
	if err != nil {
		t.Fatal(err)
	}
	all, err := h.Client("").LeasesService().List(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return len(active), len(all)
}

// TestRegistryCut pulls what the network cuts off: for a moment, for longer, and for
// good, when someone presses Ctrl-C.
func TestRegistryCut(t *testing.T) {
	h := harness.New(t, daemon.Options{})
	h.StartDaemon()
	r := startRegistry(t, h, distribution.Basic)
	cutter, host := startCutter(t, r.Host)
	for _, registry := range []string{r.Host, host} {
		if res := login(t, h, registry, distribution.Password); res.Code != 0 {
			t.Fatalf("login: %+v", res)
		}
	}
	const mega = 1 << 20
	importAs(t, h, r.Host+"/large", map[string]string{"/large": strings.Repeat("x", 8*mega)})
	h.Caisson("image", "push", "-q", r.Host+"/large")
	h.Caisson("image", "rm", r.Host+"/large")

	// Each connection brings 3 MiB of 9: the daemon asks for the rest by itself.
	cutter.set(3*mega, cut)
	if res := h.TryCaisson("image", "pull", host+"/large"); res.Code != 0 {
		t.Errorf("pull in pieces: %+v", res)
	}
	if asked := cutter.set(0, cut); !slices.Contains(asked, fmt.Sprintf("bytes=%d-", 3*mega)) {
		t.Errorf("pull in pieces asked for %q", asked)
	}
	h.Caisson("image", "rm", host+"/large")

	// Someone presses Ctrl-C.
	cutter.set(3*mega, stall)
	term := h.Terminal("caisson", "image", "pull", host+"/large")
	<-cutter.silent
	term.Expect("3MiB of ")
	term.Type("\x03")
	if code, out := term.Wait(); code == 0 || !strings.Contains(out, "interrupted") {
		t.Errorf("pull that was interrupted: exit code %d:\n%s", code, out)
	}
	if ingests, leases := contentLeft(t, h); ingests+leases != 0 {
		t.Errorf("left of it: %d ingests, %d leases", ingests, leases)
	}

	// The registry refuses the rest, and gives it when it is asked again.
	cutter.set(4*mega, refuse)
	wantFailure(t, h.TryCaisson("image", "pull", host+"/large"), "cannot be pulled")
	if _, leases := contentLeft(t, h); leases != 1 {
		t.Errorf("%d leases keep what is here already", leases)
	}
	cutter.set(0, cut)
	h.Caisson("image", "pull", "-q", host+"/large")
	if asked := cutter.set(0, cut); slices.ContainsFunc(asked, func(r string) bool { return r != fmt.Sprintf("bytes=%d-", 4*mega) }) || len(asked) == 0 {
		t.Errorf("pull again asked for %q", asked)
	}
	if ingests, leases := contentLeft(t, h); ingests+leases != 0 {
		t.Errorf("left of it: %d ingests, %d leases", ingests, leases)
	}
	h.Caisson("image", "rm", host+"/large")

	// The daemon dies, and what it has is there for the next try.
	cutter.set(5*mega, stall)
	term = h.Terminal("caisson", "image", "pull", host+"/large")
	<-cutter.silent
	term.Expect("5MiB of ")
	h.Crash()
	if code, out := term.Wait(); code == 0 {
		t.Errorf("pull without its daemon: exit code %d:\n%s", code, out)
	}
	cutter.set(0, cut)
	h.StartDaemon()
	h.Caisson("image", "pull", "-q", host+"/large")
	if asked := cutter.set(0, cut); !slices.ContainsFunc(asked, func(r string) bool { return r > "bytes=4" && strings.HasSuffix(r, "-") }) {
		t.Errorf("pull again asked for %q", asked)
	}
	if out := h.Caisson("run", "--rm", host+"/large"); out != "from the registry\n" {
		t.Errorf("run: %q", out)
	}
}
