package bench

import (
	"fmt"
	"sync"
	"testing"
	"time"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// benchParallel brings pods up, some at a time, and counts how many are up a second.
func benchParallel(t *testing.T, r *recorder) {
	const turns = 3
	sides := startSides(t, runtimes...)
	for range turns {
		for _, atOnce := range []int{1, 4, 16} {
			for _, s := range sides {
				n := 8 * atOnce
				if n > 48 {
					n = 48
				}
				configs := make([]*runtime.PodSandboxConfig, n)
				for i := range configs {
					configs[i] = s.cri.PodConfig(networks[0].mode)
				}
				ids := make([]string, n)
				begin := time.Now()
				inParallel(n, atOnce, func(i int) {
					ids[i] = s.runPod(t, configs[i])
					s.startContainer(t, s.createContainer(t, ids[i], configs[i], waits))
				})
				r.add("pods up per second", fmt.Sprintf("%d at a time", atOnce), "per s", s.name, float64(n)/time.Since(begin).Seconds())
				inParallel(n, 4, func(i int) {
					s.stopPod(t, ids[i])
					s.removePod(t, ids[i])
				})
			}
		}
	}
}

// inParallel calls f for 0 to n-1, some at a time.
func inParallel(n, atOnce int, f func(int)) {
	next := make(chan int, n)
	for i := range n {
		next <- i
	}
	close(next)
	var all sync.WaitGroup
	for range atOnce {
		all.Go(func() {
			for i := range next {
				f(i)
			}
		})
	}
	all.Wait()
}
