package daemon

import (
	"context"
	"math"
	"runtime/debug"
	"sync"
	"time"

	"caisson/internal/undo"
)

// restInterval is how long no container comes or goes before the daemon counts as at rest.
const restInterval = 5 * time.Second

// giveBack gives the memory that a burst of work has left back to the system once the
// daemon has come to rest: when no event was published for a while, of which events tells
// the number. Go does that by itself, but keeps twice of what is in use for a next burst:
// on a node that may be hours away, and pods could use it.
func giveBack(steps *undo.Stack, events func() uint64) {
	ctx, cancel := context.WithCancel(context.Background())
	var done sync.WaitGroup
	done.Go(func() {
		tick := time.NewTicker(restInterval)
		defer tick.Stop()
		given := uint64(math.MaxUint64) // never: a start is a burst, too
		for last := events(); ; {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			now := events()
			if now == last && now != given {
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
