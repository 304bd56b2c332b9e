package bench

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// benchMemory runs more and more pods of one container each, and measures at each
// number what all processes that are not the containers' have grown by, in the same
// servers all the time: a server that was restarted is not the one whose base is known.
// At each number it then runs one more, several times. Then it lets pods go, and measures
// at each number how long a restart of the daemon takes.
func benchMemory(t *testing.T, r *recorder) {
	counts := numbers(t, *pods)
	slices.Sort(counts)
	for _, s := range startSides(t, "runc") { // it does not stay, so one will do
		s.removePods(t, s.addPods(t, 4)) // what the first ones cost
		time.Sleep(settle)
		base, up := s.pss(t), []string(nil)
		for _, n := range counts {
			up = append(up, s.addPods(t, n-len(up))...)
			time.Sleep(settle)
			r.add("memory of all that is not the workload (PSS)", fmt.Sprintf("per pod, %d pods", n), "KiB", s.name, (s.pss(t)-base)/float64(n))
			for range 10 {
				cfg := s.cri.PodConfig(networks[0].mode)
				begin := time.Now()
				id := s.runPod(t, cfg)
				s.startContainer(t, s.createContainer(t, id, cfg, waits))
				r.took("pod up beside others", fmt.Sprintf("%d pods", n), s.name, begin)
				s.removePods(t, []string{id})
			}
		}
		for _, n := range slices.Backward(counts) {
			s.removePods(t, up[n:])
			up = up[:n]
			for range 3 {
				r.took("restart of the daemon", fmt.Sprintf("with %d pods", n), s.name, s.restart(t))
			}
		}
		s.removePods(t, up)
	}
}

// settle is how long all sides are left alone before what they need is measured: what
// they need while pods come is not what pods cost.
const settle = 15 * time.Second

// numbers are those of a flag.
func numbers(t *testing.T, list string) (all []int) {
	t.Helper()
	for text := range strings.SplitSeq(list, ",") {
		n, err := strconv.Atoi(text)
		if err != nil {
			t.Fatalf("numbers of pods: %v", err)
		}
		all = append(all, n)
	}
	return all
}

func (s side) addPods(t *testing.T, n int) []string {
	ids := make([]string, n)
	configs := make([]*runtime.PodSandboxConfig, n)
	for i := range configs {
		configs[i] = s.cri.PodConfig(networks[0].mode)
	}
	inParallel(n, 4, func(i int) {
		ids[i] = s.runPod(t, configs[i])
		s.startContainer(t, s.createContainer(t, ids[i], configs[i], "exec sleep 1000000"))
	})
	if t.Failed() {
		t.FailNow()
	}
	return ids
}

func (s side) removePods(t *testing.T, ids []string) {
	inParallel(len(ids), 4, func(i int) {
		s.stopPod(t, ids[i])
		s.removePod(t, ids[i])
	})
}

// restart kills the daemon that the pods depend on, and returns when its start began:
// caissond, or the containerd that has the shims.
func (s side) restart(t *testing.T) (begin time.Time) {
	t.Helper()
	kill, start := s.Kill, s.Start
	if !s.ours() {
		kill, start = s.KillContainerd, s.StartContainerd
	}
	if err := kill(); err != nil {
		t.Fatal(err)
	}
	begin = time.Now()
	if err := start(s.Context(2 * time.Minute)); err != nil {
		t.Fatal(err)
	}
	return begin
}
