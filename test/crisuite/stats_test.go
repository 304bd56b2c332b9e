package crisuite

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// filled lists the fields of a message that are there, whatever their values:
// zero is a value of UInt64Value.
func filled(m proto.Message) []string {
	names := map[string]bool{}
	var walk func(prefix string, m protoreflect.Message)
	walk = func(prefix string, m protoreflect.Message) {
		m.Range(func(field protoreflect.FieldDescriptor, v protoreflect.Value) bool {
			name := prefix + string(field.Name())
			switch {
			case field.IsMap() || field.Kind() != protoreflect.MessageKind:
				names[name] = true
			case field.IsList():
				for i := range v.List().Len() {
					walk(name+".", v.List().Get(i).Message())
				}
			case field.Message().Name() == "UInt64Value":
				names[name] = true
			default:
				walk(name+".", v.Message())
			}
			return true
		})
	}
	walk("", m.ProtoReflect())
	var list []string
	for name := range names {
		list = append(list, name)
	}
	slices.Sort(list)
	return list
}

// busy is a script that uses a processor for a while and then 8 MiB of memory.
const busy = "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done; dd if=/dev/zero of=/dev/shm/block bs=1M count=8 2>/dev/null; echo ready; exec sleep 1000"

func (s *server) stats(id string) *runtime.ContainerStats {
	s.t.Helper()
	return ask(s, s.ContainerStats, &runtime.ContainerStatsRequest{ContainerId: id}).Stats
}

func (p *pod) stats() *runtime.PodSandboxStats {
	p.s.t.Helper()
	return ask(p.s, p.s.PodSandboxStats, &runtime.PodSandboxStatsRequest{PodSandboxId: p.id}).Stats
}

// TestStats compares which statistics there are, and looks whether they can be true.
func TestStats(t *testing.T) {
	compare(t, func(t *testing.T, s *server) map[string][]string {
		p := s.pod(func(cfg *runtime.PodSandboxConfig) { cfg.Labels = map[string]string{"app": "stats"} })
		id := p.launch("c", busy, func(cfg *runtime.ContainerConfig) {
			cfg.Labels = map[string]string{"app": "stats"}
			cfg.Annotations = map[string]string{"note": "a note"}
		})
		p.awaitLog("c.log", "ready")
		stats, ofPod := s.stats(id), p.stats()
		checkAttributes(t, p, id, stats.Attributes, ofPod.Attributes)
		memory, cpu := stats.Memory, stats.Cpu.GetUsageCoreNanoSeconds().GetValue()
		if used := memory.GetUsageBytes().GetValue(); used < 8<<20 || used > 64<<20 || memory.GetWorkingSetBytes().GetValue() > used || memory.GetAvailableBytes().GetValue() > 56<<20 {
			t.Errorf("memory of the container: %v", memory)
		}
		if cpu < uint64(5*time.Millisecond) || cpu > uint64(time.Minute) {
			t.Errorf("CPU time of the container: %s", time.Duration(cpu))
		}
		if all := ofPod.Linux.GetMemory().GetUsageBytes().GetValue(); all < memory.GetUsageBytes().GetValue()/2 || all > 96<<20 {
			t.Errorf("memory of the pod %d, of its container %d", all, memory.GetUsageBytes().GetValue())
		}
		if all := ofPod.Linux.GetCpu().GetUsageCoreNanoSeconds().GetValue(); all < cpu {
			t.Errorf("CPU time of the pod %s, of its container %s", time.Duration(all), time.Duration(cpu))
		}
		if network := ofPod.Linux.GetNetwork().GetDefaultInterface(); network.GetName() != "eth0" {
			t.Errorf("network of the pod: %v", network)
		}
		if n := ofPod.Linux.GetProcess().GetProcessCount().GetValue(); n != 1 {
			t.Errorf("%d processes in the pod", n)
		}
		for what, at := range map[string]int64{"CPU": stats.Cpu.Timestamp, "memory": memory.Timestamp, "pod": ofPod.Linux.GetCpu().GetTimestamp()} {
			if since := time.Since(time.Unix(0, at)); since < 0 || since > time.Minute {
				t.Errorf("time of %s: %s ago", what, since)
			}
		}
		// What containerd measures now and then comes late, and not if it is zero.
		late := func(name string) bool {
			return strings.Contains(name, "writable_layer") || strings.HasSuffix(name, "usage_nano_cores")
		}
		return map[string][]string{"container": slices.DeleteFunc(filled(stats), late), "pod": slices.DeleteFunc(filled(ofPod), late)}
	})
}

// TestWritableLayer: what a container writes into its root is counted.
func TestWritableLayer(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		id := s.pod().launch("c", "dd if=/dev/urandom of=/file bs=1M count=3; exec sleep 1000")
		s.poll(func() error { // containerd measures every ten seconds
			layer := s.stats(id).WritableLayer
			if used := layer.GetUsedBytes().GetValue(); used < 3<<20 || used > 4<<20 || layer.InodesUsed.GetValue() < 1 || !exists(layer.GetFsId().GetMountpoint()) {
				return fmt.Errorf("writable layer: %v", layer)
			}
			return nil
		})
	})
}

func checkAttributes(t *testing.T, p *pod, id string, ofContainer *runtime.ContainerAttributes, ofPod *runtime.PodSandboxAttributes) {
	t.Helper()
	equal(t, "attributes of the container", &runtime.ContainerAttributes{
		Id: id, Metadata: &runtime.ContainerMetadata{Name: "c"}, Labels: map[string]string{"app": "stats"}, Annotations: map[string]string{"note": "a note"},
	}, ofContainer)
	equal(t, "attributes of the pod", &runtime.PodSandboxAttributes{
		Id: p.id, Metadata: p.cfg.Metadata, Labels: p.cfg.Labels, Annotations: p.cfg.Annotations,
	}, ofPod)
}

// TestListStats lists statistics by everything that a filter can hold.
func TestListStats(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		label := map[string]string{"test": t.Name()}
		labelled := func(cfg *runtime.ContainerConfig) { cfg.Labels = label }
		one := s.pod(func(cfg *runtime.PodSandboxConfig) { cfg.Labels = label })
		two := s.pod()
		a, b := one.sleeper("a", labelled), one.sleeper("b")
		c := two.sleeper("c", labelled)
		ended := one.launch("ended", "exit 0", labelled)
		created := one.create("created", "exit 0", labelled)
		s.AwaitState(ended, stateExited)
		for name, test := range map[string]struct {
			filter *runtime.ContainerStatsFilter
			want   []string
		}{
			"ID":              {&runtime.ContainerStatsFilter{Id: a}, []string{a}},
			"start of the ID": {&runtime.ContainerStatsFilter{Id: a[:13]}, []string{a}},
			"pod":             {&runtime.ContainerStatsFilter{PodSandboxId: one.id}, []string{a, b, ended, created}},
			"start of pod":    {&runtime.ContainerStatsFilter{PodSandboxId: two.id[:13]}, []string{c}},
			"label":           {&runtime.ContainerStatsFilter{LabelSelector: label}, []string{a, c, ended, created}},
			"label and pod":   {&runtime.ContainerStatsFilter{LabelSelector: label, PodSandboxId: two.id}, []string{c}},
			"another pod":     {&runtime.ContainerStatsFilter{Id: a, PodSandboxId: two.id}, nil},
			"another value":   {&runtime.ContainerStatsFilter{LabelSelector: map[string]string{"test": "another"}}, nil},
			"unknown":         {&runtime.ContainerStatsFilter{Id: "unknown"}, nil},
			"none":            {nil, []string{a, b, c, ended, created}},
		} {
			// Containers that do not run are listed, too: they have a writable layer.
			var got []string
			for _, stats := range ask(s, s.ListContainerStats, &runtime.ListContainerStatsRequest{Filter: test.filter}).Stats {
				id := stats.Attributes.Id
				if slices.Contains([]string{a, b, c, ended, created}, id) {
					got = append(got, id)
				} else if test.filter != nil {
					t.Errorf("filter %s: statistics of %s", name, id)
				}
			}
			slices.Sort(got)
			slices.Sort(test.want)
			equal(t, "containers by filter "+name, test.want, got)
		}
		two.stop()
		for name, test := range map[string]struct {
			filter *runtime.PodSandboxStatsFilter
			want   []string
		}{
			"ID":              {&runtime.PodSandboxStatsFilter{Id: one.id}, []string{one.id}},
			"start of the ID": {&runtime.PodSandboxStatsFilter{Id: one.id[:13]}, []string{one.id}},
			"label":           {&runtime.PodSandboxStatsFilter{LabelSelector: label}, []string{one.id}},
			"stopped":         {&runtime.PodSandboxStatsFilter{Id: two.id}, nil},
			"unknown":         {&runtime.PodSandboxStatsFilter{Id: "unknown"}, nil},
		} {
			var got []string
			for _, stats := range ask(s, s.ListPodSandboxStats, &runtime.ListPodSandboxStatsRequest{Filter: test.filter}).Stats {
				got = append(got, stats.Attributes.Id)
			}
			equal(t, "pods by filter "+name, test.want, got)
		}
	})
}
