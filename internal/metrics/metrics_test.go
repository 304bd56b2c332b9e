package metrics

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

func TestCalls(t *testing.T) {
	m := New("v1", "none")
	for err, class := range map[error]string{
		nil:                             "ok",
		errdefs.ErrNotFound:             "not_found",
		errdefs.ErrAlreadyExists:        "already_exists",
		errdefs.ErrFailedPrecondition:   "failed_precondition",
		errdefs.ErrInvalidArgument:      "invalid_argument",
		errdefs.ErrUnavailable:          "unavailable",
		errdefs.ErrResourceExhausted:    "resource_exhausted",
		errdefs.ErrNotImplemented:       "not_implemented",
		errdefs.ErrInternal:             "internal",
		errdefs.ErrDataLoss:             "data_loss",
		context.Canceled:                "context_canceled",
		context.DeadlineExceeded:        "context_deadline_exceeded",
		errors.New("sandbox \"a\": no"): "unknown",
	} {
		if err != nil {
			err = fmt.Errorf("sandbox %q: %w", t.Name(), err)
		}
		m.Called("/containerd.services.sandbox.v1.Controller/Create", 20*time.Millisecond, err)
		want := fmt.Sprintf(`caisson_call_duration_seconds_bucket{api="controller",class=%q,method="Create",le="0.025"} 1`, class)
		if text := scrape(t, m); !strings.Contains(text, want) || strings.Contains(text, t.Name()) {
			t.Errorf("%v: no %s in\n%s", err, want, text)
		}
	}
	m.Called("/containerd.task.v3.Task/State", 0, nil)
	if text := scrape(t, m); !strings.Contains(text, `caisson_call_duration_seconds_sum{api="task",class="ok",method="State"} 0`) {
		t.Errorf("no call of a task:\n%s", text)
	}
}

// TestSources: what the parts count is what is collected, and keeps the conventions.
func TestSources(t *testing.T) {
	m := New("v1", "none")
	states := map[string]int{"ready": 3, "stopped": 0}
	m.Watch(Sources{
		Sandboxes:    func() map[string]int { return states },
		Deaths:       func() map[string]uint64 { return map[string]uint64{"monitor": 2} },
		EventsQueued: func() int { return 7 },
		Pool:         func() Pool { return Pool{Size: 4, Waiting: 1, Taken: 9, Missed: 5} },
	})
	check := func(lines ...string) {
		t.Helper()
		text := scrape(t, m)
		for _, line := range lines {
			if !strings.Contains(text, line+"\n") {
				t.Errorf("no %s in\n%s", line, text)
			}
		}
	}
	check(`caisson_sandboxes{state="ready"} 3`, `caisson_sandboxes{state="stopped"} 0`, `caisson_process_deaths_total{process="monitor"} 2`,
		"caisson_events_queued 7", "caisson_pool_size 4", "caisson_pool_waiting 1", "caisson_pool_taken_total 9", "caisson_pool_missed_total 5")
	states["ready"] = 4
	check(`caisson_sandboxes{state="ready"} 4`)
	var written strings.Builder
	if err := m.WriteText(&written); err != nil || !strings.Contains(written.String(), "caisson_events_queued 7\n") {
		t.Errorf("%v:\n%s", err, &written)
	}
	problems, err := testutil.GatherAndLint(m.registry)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		if strings.HasPrefix(p.Metric, "caisson_") {
			t.Errorf("%s: %s", p.Metric, p.Text)
		}
	}
}

func scrape(t *testing.T, m *Metrics) string {
	t.Helper()
	w := httptest.NewRecorder()
	m.Handler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	if w.Code != http.StatusOK {
		t.Fatalf("%d: %s", w.Code, w.Body)
	}
	return w.Body.String()
}

func BenchmarkCalled(b *testing.B) {
	m := New("v1", "none")
	b.ReportAllocs()
	for b.Loop() {
		m.Called("/containerd.task.v3.Task/State", time.Millisecond, nil)
	}
}
