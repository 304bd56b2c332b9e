package daemon

import (
	"runtime/metrics"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"caisson/internal/undo"
)

// TestGiveBack: once after each burst, when it is over.
func TestGiveBack(t *testing.T) {
	forced := func() uint64 {
		sample := []metrics.Sample{{Name: "/gc/cycles/forced:gc-cycles"}}
		metrics.Read(sample)
		return sample[0].Value.Uint64()
	}
	synctest.Test(t, func(t *testing.T) {
		var events atomic.Uint64
		var steps undo.Stack
		before := forced()
		giveBack(&steps, events.Load)
		for i, interval := range []struct {
			events uint64 // in it
			given  uint64 // since the start, at its end
		}{{0, 1}, {0, 1}, {3, 1}, {2, 1}, {0, 2}, {0, 2}} {
			events.Add(interval.events)
			time.Sleep(restInterval)
			synctest.Wait()
			if given := forced() - before; given != interval.given {
				t.Errorf("interval %d: given back %d times, not %d", i, given, interval.given)
			}
		}
		if err := steps.Run(t.Context()); err != nil {
			t.Error(err)
		}
	})
}
