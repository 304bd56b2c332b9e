package bench

import (
	"fmt"
	"testing"
	"time"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// benchIdle measures the processor time of pods that do nothing: that of all that is
// not the workload, while nobody asks for anything, and while somebody asks for the
// stats of all of them every second.
func benchIdle(t *testing.T, r *recorder) {
	const what = "processor time of idle pods, per minute"
	for _, s := range startSides(t, "runc") {
		var up []string
		for _, n := range append([]int{0}, numbers(t, *idle)...) {
			up = append(up, s.addPods(t, n-len(up))...)
			time.Sleep(settle)
			r.add(what, fmt.Sprintf("%d pods", n), "ms", s.name, s.idle(t, func() {}))
			r.add(what, fmt.Sprintf("%d pods, asked every second", n), "ms", s.name, s.idle(t, func() {
				begin := time.Now()
				s.askStats(t, n)
				r.took("stats of all pods and containers by CRI", fmt.Sprintf("%d pods", n), s.name, begin)
			}))
		}
		s.removePods(t, up)
	}
}

// idle is the processor time of a minute, in milliseconds, in which it calls a function
// every second. What the side's processes start is theirs here: the workload goes on.
func (s side) idle(t *testing.T, everySecond func()) float64 {
	t.Helper()
	used, children, begin := s.spending(t), s.childTime(t), time.Now()
	for end := begin.Add(*minute); time.Now().Before(end); {
		next := time.Now().Add(time.Second)
		everySecond()
		time.Sleep(time.Until(next))
	}
	return (used().sum() + s.childTime(t) - children) * float64(time.Minute) / float64(time.Since(begin))
}

// askStats asks CRI what kubelet asks.
func (s side) askStats(t *testing.T, n int) {
	t.Helper()
	pods, err := s.cri.ListPodSandboxStats(s.Context(time.Minute), &runtime.ListPodSandboxStatsRequest{})
	if err != nil || len(pods.Stats) != n {
		t.Fatalf("%s: ListPodSandboxStats: %d of %d pods, %v", s.name, len(pods.GetStats()), n, err)
	}
	containers, err := s.cri.ListContainerStats(s.Context(time.Minute), &runtime.ListContainerStatsRequest{})
	if err != nil || len(containers.Stats) != n {
		t.Fatalf("%s: ListContainerStats: %d of %d containers, %v", s.name, len(containers.GetStats()), n, err)
	}
}
