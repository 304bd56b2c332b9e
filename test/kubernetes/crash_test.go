package kubernetes

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"caisson/test/daemon"
	"caisson/test/harness"
)

// runs is the container ids and restart counts of the pods that run on through crashes.
func (k *kubelet) runs(t *testing.T) []string {
	t.Helper()
	var all []string
	for _, name := range k.lasting {
		p := k.awaitPod(t, name, pod.ready)
		for _, c := range p.Status.ContainerStatuses {
			all = append(all, fmt.Sprintf("%s/%s: %s, restarts: %d", name, c.Name, c.id(), c.RestartCount))
		}
	}
	return all
}

// testKubeletCrash also has the counter count some seconds beside the new
// kubelet, in which that looks at all pods.
func (k *kubelet) testKubeletCrash(t *testing.T) {
	before := k.runs(t)
	k.running.kill()
	k.start()
	k.awaitCount(t, k.awaitCount(t, 0)+150)
	k.compareRuns(t, before)
}

// testDaemonCrash kills the daemon while the counter writes, and reads every
// number of it, before, without and after the daemon. A stock containerd beside the
// daemon must not notice.
func (k *kubelet) testDaemonCrash(t *testing.T) {
	before := k.runs(t)
	n := k.awaitCount(t, 10)
	k.h.Crash()
	k.h.StartDaemon()
	k.awaitCount(t, n+150)
	k.compareRuns(t, before)
	k.cri.Shell(k.awaitPod(t, "counter", pod.ready).Status.ContainerStatuses[0].id(), "true")
}

// testContainerdCrash kills a stock containerd, which loses nothing either.
func (k *kubelet) testContainerdCrash(t *testing.T) {
	before := k.runs(t)
	n := k.awaitCount(t, 10)
	if err := k.h.KillContainerd(); err != nil {
		t.Fatal(err)
	}
	if err := k.h.StartContainerd(k.h.Context(time.Minute)); err != nil {
		t.Fatal(err)
	}
	k.awaitCount(t, n+150)
	k.compareRuns(t, before)
	k.cri.Shell(k.awaitPod(t, "counter", pod.ready).Status.ContainerStatuses[0].id(), "true")
}

func (k *kubelet) compareRuns(t *testing.T, before []string) {
	t.Helper()
	if after := k.runs(t); !slices.Equal(before, after) {
		t.Errorf("containers:\n%s\nwere:\n%s", strings.Join(after, "\n"), strings.Join(before, "\n"))
	}
}

// awaitCount waits until the log of the counter has so many lines, and returns
// how many it has.
func (k *kubelet) awaitCount(t *testing.T, atLeast int) (n int) {
	t.Helper()
	path := k.logFile(k.awaitPod(t, "counter", pod.ready), "main", 0)
	limit := time.Minute
	err := daemon.Poll(harness.Context(t, limit), limit, func() (err error) {
		if n, err = counted(path); err == nil && n < atLeast {
			err = fmt.Errorf("the counter is at %d, not at %d", n, atLeast)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// counted is how many lines a log of the counter has, each the one after the
// other; the last line may not be whole.
func counted(path string) (int, error) {
	log, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	lines := strings.Split(string(log), "\n")
	for n, line := range lines[:len(lines)-1] {
		if _, got, _ := strings.Cut(line, " stdout F "); got != strconv.Itoa(n) {
			return n, fmt.Errorf("log of the counter: line %d is %q", n, line)
		}
	}
	return len(lines) - 1, nil
}
