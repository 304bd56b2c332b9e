package daemon

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// TestWatchdog: systemd is told as often as the daemon answers, and not when it gives
// an error or takes too long.
func TestWatchdog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const every = 20 * time.Second
		ctx, cancel := context.WithCancel(t.Context())
		var asked, told atomic.Int64
		done := make(chan struct{})
		go func() {
			defer close(done)
			watchdog(ctx, every, func(ctx context.Context) error {
				switch asked.Add(1) {
				case 3:
					return errors.New("no")
				case 4:
					<-ctx.Done()
					return ctx.Err()
				}
				return nil
			}, func() { told.Add(1) })
		}()
		for i, want := range []int64{1, 2, 2, 2, 3} {
			synctest.Wait()
			if asked.Load() != int64(i+1) || told.Load() != want {
				t.Errorf("after %d intervals: asked %d times, told %d times, not %d", i, asked.Load(), told.Load(), want)
			}
			time.Sleep(every) // of the bubble's clock
		}
		cancel()
		<-done
	})
}

// TestAnswers: a daemon that clients cannot reach does not answer, though it runs.
func TestAnswers(t *testing.T) {
	needRoot(t)
	cfg := sandboxerConfig(t)
	stop := start(t, cfg)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := answers(ctx, cfg); err != nil {
		t.Errorf("a daemon that is well: %v", err)
	}
	if err := os.Remove(filepath.Join(cfg.State, sandboxerSocket)); err != nil {
		t.Fatal(err)
	}
	if err := answers(ctx, cfg); err == nil {
		t.Error("a daemon without its socket answers")
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
}
