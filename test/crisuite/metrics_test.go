package crisuite

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestMetricDescriptors compares the names, meanings and labels of the metrics.
func TestMetricDescriptors(t *testing.T) {
	compare(t, func(t *testing.T, s *server) map[string]*runtime.MetricDescriptor {
		all := map[string]*runtime.MetricDescriptor{}
		for _, d := range ask(s, s.ListMetricDescriptors, &runtime.ListMetricDescriptorsRequest{}).Descriptors {
			if d.Name == "" || d.Help == "" || len(d.LabelKeys) == 0 {
				t.Errorf("descriptor %v", d)
			}
			all[d.Name] = proto.Clone(d).(*runtime.MetricDescriptor)
		}
		return all
	})
}

// metrics are those of the pod's only container, and of the pod, by name.
func (p *pod) metrics() (ofPod, ofContainer map[string][]*runtime.Metric) {
	p.s.t.Helper()
	byName := func(all []*runtime.Metric) map[string][]*runtime.Metric {
		m := map[string][]*runtime.Metric{}
		for _, metric := range all {
			m[metric.Name] = append(m[metric.Name], metric)
		}
		return m
	}
	for _, m := range ask(p.s, p.s.ListPodSandboxMetrics, &runtime.ListPodSandboxMetricsRequest{}).PodMetrics {
		if m.PodSandboxId == p.id && len(m.ContainerMetrics) == 1 {
			return byName(m.Metrics), byName(m.ContainerMetrics[0].Metrics)
		}
	}
	return nil, nil
}

// TestMetrics compares the names, labels and kinds of a pod's metrics, and looks
// whether the values can be true.
func TestMetrics(t *testing.T) {
	compare(t, func(t *testing.T, s *server) map[string][]string {
		p := s.pod()
		id := p.launch("c", busy, func(cfg *runtime.ContainerConfig) {
			cfg.Linux.Resources.CpuPeriod, cfg.Linux.Resources.CpuQuota = 50000, 25000
		})
		p.awaitLog("c.log", "ready")
		var ofPod, ofContainer map[string][]*runtime.Metric
		s.poll(func() error { // a pod whose metrics fail is left out
			if ofPod, ofContainer = p.metrics(); ofContainer == nil {
				return fmt.Errorf("no metrics of the pod")
			}
			return nil
		})
		value := func(name string) uint64 {
			if len(ofContainer[name]) == 0 {
				t.Errorf("no metric %s", name)
				return 0
			}
			return ofContainer[name][0].Value.GetValue()
		}
		for name, bounds := range map[string][2]uint64{
			"container_memory_usage_bytes":              {8 << 20, 64 << 20},
			"container_memory_working_set_bytes":        {1 << 20, 64 << 20},
			"container_spec_memory_limit_bytes":         {64 << 20, 64 << 20},
			"container_spec_cpu_period":                 {50000, 50000},
			"container_spec_cpu_shares":                 {256, 256},
			"container_processes":                       {1, 1},
			"container_file_descriptors":                {1, 20},
			"container_sockets":                         {0, 0},
			"container_oom_events_total":                {0, 0},
			"container_cpu_cfs_periods_total":           {1, 10000},
			"container_cpu_cfs_throttled_periods_total": {0, 10000},
			"container_start_time_seconds":              {uint64(time.Now().Add(-time.Minute).Unix()), uint64(time.Now().Unix())},
			"container_last_seen":                       {uint64(time.Now().Add(-time.Minute).Unix()), uint64(time.Now().Unix())},
			"container_fs_inodes_total":                 {1, 1 << 62},
		} {
			if v := value(name); v < bounds[0] || v > bounds[1] {
				t.Errorf("%s is %d, not within %v", name, v, bounds)
			}
		}
		if len(ofPod["container_network_receive_bytes_total"]) != 1 {
			t.Errorf("metrics of the pod: %v", ofPod)
		}
		names := strings.NewReplacer(p.cfg.Metadata.Name, "(pod)", p.id, "(pod ID)", id, "(container ID)")
		answer := map[string][]string{}
		for _, metrics := range []map[string][]*runtime.Metric{ofPod, ofContainer} {
			for name := range maps.Keys(metrics) {
				if strings.HasPrefix(name, "container_blkio_") || strings.HasPrefix(name, "container_fs_reads") || strings.HasPrefix(name, "container_fs_writes") {
					continue // there is one for each device that was used
				}
				for _, m := range metrics[name] {
					answer[name] = append(answer[name], names.Replace(fmt.Sprint(m.MetricType, m.LabelValues)))
				}
				slices.Sort(answer[name])
			}
		}
		return answer
	})
}
