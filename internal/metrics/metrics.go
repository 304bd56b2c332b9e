// Package metrics is what caissond tells Prometheus.
//
// The parts of the daemon know nothing of it. They count what is to be counted, and
// are asked for that when somebody collects; only calls are told, since how long they
// take nobody else keeps. Each label has few values, whatever clients do: there is
// none of a sandbox, a container or an image.
package metrics

import (
	"errors"
	"io"
	"net/http"
	"runtime"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/prometheus/common/expfmt"
)

// Metrics is safe for concurrent use.
type Metrics struct {
	registry *prometheus.Registry
	calls    *prometheus.HistogramVec
}

// New returns the metrics that need no other part: of calls, of the build, of Go and
// of the process. engine says where containerd's core runs.
func New(version, engine string) *Metrics {
	m := &Metrics{registry: prometheus.NewRegistry(), calls: newCalls()}
	build := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name:        "caisson_build_info",
		Help:        "1, with the version of this caissond, of Go, and where containerd's core runs.",
		ConstLabels: prometheus.Labels{"version": version, "goversion": runtime.Version(), "engine": engine},
	}, func() float64 { return 1 })
	m.registry.MustRegister(m.calls, build, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// Handler answers who collects, at most a few at a time.
func (m *Metrics) Handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{MaxRequestsInFlight: 4})
}

// Sources are what the parts of the daemon count.
type Sources struct {
	// Sandboxes is their number by state; a state that nothing is in may be there
	// with 0.
	Sandboxes func() map[string]int
	// Deaths are of processes that ended without being told to, by what they are.
	Deaths func() map[string]uint64
	// EventsQueued are owed to containerd.
	EventsQueued func() int
	Pool         func() Pool
}

// Pool is of monitors that wait for sandboxes.
type Pool struct {
	Size, Waiting int
	Taken, Missed uint64
}

// Watch adds what the sources count. It is called once.
func (m *Metrics) Watch(s Sources) {
	m.registry.MustRegister(&collector{
		Sources: s,
		sandboxes: prometheus.NewDesc("caisson_sandboxes",
			"Sandboxes by state. A container without a sandbox counts as one.", []string{"state"}, nil),
		deaths: prometheus.NewDesc("caisson_process_deaths_total",
			"Processes of Caisson's own that ended without being told to: monitors, holders, the keeper.", []string{"process"}, nil),
		queued:  prometheus.NewDesc("caisson_events_queued", "Events that containerd has not taken yet.", nil, nil),
		size:    prometheus.NewDesc("caisson_pool_size", "Monitors that are to wait for sandboxes, as configured.", nil, nil),
		waiting: prometheus.NewDesc("caisson_pool_waiting", "Monitors that wait for sandboxes.", nil, nil),
		taken:   prometheus.NewDesc("caisson_pool_taken_total", "Sandboxes that found a monitor waiting.", nil, nil),
		missed:  prometheus.NewDesc("caisson_pool_missed_total", "Sandboxes that found none, although there is a pool.", nil, nil),
	})
}

// collector asks the sources when somebody collects.
type collector struct {
	Sources
	sandboxes, deaths, queued, size, waiting, taken, missed *prometheus.Desc
}

func (c *collector) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.sandboxes, c.deaths, c.queued, c.size, c.waiting, c.taken, c.missed} {
		out <- d
	}
}

func (c *collector) Collect(out chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v int, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(v), labels...)
	}
	counter := func(d *prometheus.Desc, v uint64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	for state, n := range c.Sandboxes() {
		gauge(c.sandboxes, n, state)
	}
	for process, n := range c.Deaths() {
		counter(c.deaths, n, process)
	}
	gauge(c.queued, c.EventsQueued())
	pool := c.Pool()
	gauge(c.size, pool.Size)
	gauge(c.waiting, pool.Waiting)
	counter(c.taken, pool.Taken)
	counter(c.missed, pool.Missed)
}

// WriteText writes all metrics as a collector gets them.
func (m *Metrics) WriteText(w io.Writer) error {
	families, err := m.registry.Gather()
	for _, family := range families {
		if _, werr := expfmt.MetricFamilyToText(w, family); werr != nil {
			return errors.Join(err, werr)
		}
	}
	return err
}
