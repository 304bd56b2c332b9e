package libcontainerd_test

import (
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"

	"caisson/libcontainerd"
	"caisson/libcontainerd/eventtest"
)

// TestStdinIsClosedAgain: the server is away when the engine closes a process's stdin,
// before the process is there or after. The process sees the end all the same.
func TestStdinIsClosedAgain(t *testing.T) {
	t.Parallel() // the server takes its time to open a FIFO
	w := newWorld(t, nil)
	ctr, err := w.c.NewContainer(w.ctx, "k", spec(), "fake", nil)
	w.must(err)
	task, err := ctr.Start(w.ctx, "", false, nil)
	w.must(err)
	var asked atomic.Int32
	away := func(times int32) {
		asked.Store(-times)
		w.f.before("close", func() error {
			if asked.Add(1) <= 0 {
				return errAway
			}
			return nil
		})
	}
	exec := func(id string, attach libcontainerd.StdioCallback) libcontainerd.Process {
		t.Helper()
		p, err := task.Exec(w.ctx, id, &specs.Process{Args: []string{"cat"}}, true, attach)
		w.must(err)
		return p
	}
	t.Run("after", func(t *testing.T) {
		away(1)
		var dio *cio.DirectIO
		exec("a", func(d *cio.DirectIO) (cio.IO, error) { dio = d; return d, nil })
		if err := dio.Stdin.Close(); !errdefs.IsUnavailable(err) {
			t.Errorf("the server is away: %v", err)
		}
		for range 2 {
			w.must(dio.Stdin.Close())
		}
		if n := asked.Load(); n != 1 {
			t.Errorf("asked %d times after it came back, want once", n)
		}
	})
	t.Run("before", func(t *testing.T) {
		away(3)
		exec("b", func(d *cio.DirectIO) (cio.IO, error) { return d, d.Stdin.Close() })
		for asked.Load() <= 0 && w.ctx.Err() == nil {
			time.Sleep(time.Millisecond)
		}
	})
	t.Run("ended", func(t *testing.T) {
		away(1 << 30)
		exec("c", func(d *cio.DirectIO) (cio.IO, error) { return d, d.Stdin.Close() })
		w.f.end("k", "c", 0)
		_, err := w.log.Wait(w.ctx, func(e eventtest.Event) bool { return short(e) == "exit c 0" })
		w.must(err)
		time.Sleep(3 * time.Second) // one question may be under way
		last := asked.Load()
		time.Sleep(3 * time.Second)
		if now := asked.Load(); now != last {
			t.Errorf("asked %d times more", now-last)
		}
	})
	w.must(errors.Join(task.ForceDelete(w.ctx), ctr.Delete(w.ctx)))
}
