package daemon

import (
	"context"
	"runtime/debug"
	"runtime/metrics"
	"sync"
	"time"

	"caisson/internal/undo"
)

const (
	// restInterval is how often the daemon looks whether it has come to rest.
	restInterval = 5 * time.Second
	// restAllocs is how much it allocates in that time at most while it rests: answers
	// to a kubelet's questions, not pods.
	restAllocs = 8 << 20
	// restDue is how much it must have allocated since it last gave memory back.
	restDue = 16 << 20
)

// giveBack gives the memory that a burst of work has left back to the system once the
// daemon has come to rest. Go does that by itself, but keeps twice of what is in use
// for a next burst: on a node that may be hours away, and pods could use it.
func giveBack(steps *undo.Stack) {
	ctx, cancel := context.WithCancel(context.Background())
	var done sync.WaitGroup
	done.Go(func() {
		tick := time.NewTicker(restInterval)
		defer tick.Stop()
		for last, given := uint64(0), uint64(0); ; {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			now := allocated()
			if now-last < restAllocs && now-given > restDue {
				debug.FreeOSMemory()
				given = now
			}
			last = now
		}
	})
	steps.Add("memory", func(context.Context) error {
		cancel()
		done.Wait()
		return nil
	})
}

// allocated is how many bytes were allocated since the start.
func allocated() uint64 {
	sample := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	metrics.Read(sample)
	return sample[0].Value.Uint64()
}
