package metrics

import (
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/prometheus/client_golang/prometheus"
)

// callBuckets are in seconds. A question is answered within a millisecond, a sandbox
// or a container is there within tens of them, and a stop waits for its containers.
var callBuckets = []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30}

// Called notes a call: its full name, as the protocols have it, and what came of it.
// Only methods that the servers have come here, so that their number is bounded.
func (m *Metrics) Called(fullMethod string, took time.Duration, err error) {
	service, method := split(fullMethod)
	m.calls.WithLabelValues(service, method, class(err)).Observe(took.Seconds())
}

// split returns the last word of a service's name, in lower case, and the method:
// /containerd.services.sandbox.v1.Controller/Create is controller, Create.
func split(fullMethod string) (service, method string) {
	path, method, _ := strings.Cut(strings.TrimPrefix(fullMethod, "/"), "/")
	return strings.ToLower(path[strings.LastIndexByte(path, '.')+1:]), method
}

// class is the label of an error: the text of one of errdefs' classes, which says
// which of several it is.
func class(err error) string {
	if err == nil {
		return "ok"
	}
	return strings.ReplaceAll(errdefs.Resolve(err).Error(), " ", "_")
}

func newCalls() *prometheus.HistogramVec {
	return prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name:    "caisson_call_duration_seconds",
		Help:    "Time from a call of a client to its answer, by API, method and class of the error. Calls that wait for an end are not in it.",
		Buckets: callBuckets,
	}, []string{"api", "method", "class"})
}
