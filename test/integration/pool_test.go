package integration

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	core "github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/errdefs"

	options "caisson/api/caisson/sandbox/v1"
	"caisson/test/daemon"
	"caisson/test/harness"
)

// TestPool kills and restarts a daemon with a pool of monitors while sandboxes come and
// go: they all come and go, and what waited for them is gone after the last stop, which
// the harness checks.
func TestPool(t *testing.T) {
	h := harness.Start(t, daemon.Options{Config: "\n[pool]\nsize = 4\n"})
	waiting := func() int {
		sockets, err := filepath.Glob(filepath.Join(h.State, "pool", "*", "monitor.sock"))
		if err != nil {
			t.Fatal(err)
		}
		return len(sockets)
	}
	full := func() {
		t.Helper()
		err := daemon.Poll(h.In(time.Minute), time.Minute, func() error {
			if n := waiting(); n != 4 {
				return fmt.Errorf("%d monitors wait", n)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	full()
	ctl := controller(h)
	life := func(id string) error {
		ctx := h.In(2 * time.Minute)
		// Calls that a kill cut off are made again.
		insist := func(done func(error) bool, call func() error) error {
			return daemon.Poll(ctx, time.Minute, func() error {
				if err := call(); err != nil && !done(err) {
					return err
				}
				return nil
			})
		}
		err := insist(errdefs.IsAlreadyExists, func() error {
			return ctl.Create(ctx, core.Sandbox{ID: id, Sandboxer: harness.Sandboxer, Runtime: core.RuntimeOpts{Name: harness.Runtime}},
				core.WithOptions(&options.Options{Network: options.Network_NETWORK_HOST}))
		})
		if err == nil { // a daemon killed over the start of a sandbox gives up on it
			over := func(err error) bool { return errdefs.IsFailedPrecondition(err) || errdefs.IsNotFound(err) }
			err = insist(over, func() error { _, err := ctl.Start(ctx, id); return err })
		}
		return errors.Join(err, insist(errdefs.IsNotFound, func() error { return ctl.Shutdown(ctx, id) }))
	}
	stop := make(chan struct{})
	var lives sync.WaitGroup
	errs := make([]error, 4)
	var ended atomic.Int64
	for w := range errs {
		lives.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				if errs[w] = life(fmt.Sprintf("w%d-%d", w, i)); errs[w] != nil {
					return
				}
				ended.Add(1)
			}
		})
	}
	for range 5 {
		enough := ended.Load() + 20
		err := daemon.Poll(h.In(time.Minute), time.Minute, func() error {
			if n := ended.Load(); n < enough {
				return fmt.Errorf("%d sandboxes have come and gone", n)
			}
			return nil
		})
		if err != nil {
			t.Error(err)
			break
		}
		if err := h.Kill(); err != nil {
			t.Error(err)
		}
		if err := h.Start(h.In(time.Minute)); err != nil {
			t.Fatal(err)
		}
	}
	close(stop)
	lives.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Error(err)
	}
	full()
	if err := h.Stop(h.In(time.Minute)); err != nil {
		t.Error(err)
	}
	if left, err := os.ReadDir(filepath.Join(h.State, "pool")); err != nil || len(left) > 0 {
		t.Errorf("left after the stop: %v, %v", left, err)
	}
}
