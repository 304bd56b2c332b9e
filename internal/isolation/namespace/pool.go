package namespace

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"caisson/internal/monitor"
)

const (
	// poolName is what ps shows of a monitor that waits.
	poolName = "waits for a sandbox"
	// poolTimeout bounds the start, and the end, of one monitor.
	poolTimeout = 10 * time.Second
	// poolPause is how long no monitor is started after one that failed: the machine
	// is short of something, and waiting sandboxes are the last to need it.
	poolPause = 30 * time.Second
)

// Pool keeps monitors running that wait for a sandbox, so that none has to be started
// when one comes. They are the daemon's alone: another daemon ends those that it finds.
//
// A monitor is what can be had in advance of any sandbox. Its holder joins namespaces
// and its cgroup has a path that only the sandbox's client knows.
type Pool struct {
	binary, dir string
	room        chan struct{} // a token for each monitor that may be started
	ready       chan waiting  // has room for all but one, which fill has in hand
	closing     chan struct{}
	filler      sync.WaitGroup
	close       func() error

	size          int
	waiting       atomic.Int64
	taken, missed atomic.Uint64
	died          atomic.Uint64
}

// PoolCounts tell how a pool does.
type PoolCounts struct {
	Size    int    // how many monitors are to wait
	Waiting int    // how many do
	Taken   uint64 // sandboxes that got one
	Missed  uint64 // sandboxes that got none, although there is a pool
	Died    uint64 // monitors that ended while they waited
}

// Counts are since the pool was opened.
func (p *Pool) Counts() PoolCounts {
	return PoolCounts{
		Size: p.size, Waiting: int(p.waiting.Load()),
		Taken: p.taken.Load(), Missed: p.missed.Load(), Died: p.died.Load(),
	}
}

// waiting is a monitor in a directory of its own.
type waiting struct {
	conn *monitor.Conn
	dir  string
}

// OpenPool ends what an earlier daemon left in dir, which is made if it is missing, and
// begins to fill a pool of that size; 0 is none.
func OpenPool(ctx context.Context, monitorBinary, dir string, size int) (*Pool, error) {
	err := os.MkdirAll(dir, 0o700)
	var entries []os.DirEntry
	if err == nil {
		entries, err = os.ReadDir(dir)
	}
	for _, e := range entries {
		if err == nil {
			err = endWaiting(ctx, filepath.Join(dir, e.Name()))
		}
	}
	if err != nil {
		return nil, fmt.Errorf("pool of monitors: %w", err)
	}
	p := &Pool{binary: monitorBinary, dir: dir, size: size, room: make(chan struct{}, size), ready: make(chan waiting, max(size-1, 0)), closing: make(chan struct{})}
	for range size {
		p.room <- struct{}{}
	}
	if size > 0 {
		p.filler.Go(p.fill)
	}
	p.close = sync.OnceValue(func() error {
		close(p.closing)
		p.filler.Wait()
		var errs []error
		for len(p.ready) > 0 {
			errs = append(errs, (<-p.ready).end())
		}
		return errors.Join(errs...)
	})
	return p, nil
}

// Close ends what waits. It may be repeated.
func (p *Pool) Close() error { return p.close() }

// endWaiting ends what an earlier daemon left in a directory of the pool.
func endWaiting(ctx context.Context, dir string) error {
	ctx, cancel := context.WithTimeout(ctx, poolTimeout)
	defer cancel()
	conn, err := monitor.Dial(ctx, dir)
	if errdefs.IsNotFound(err) || errdefs.IsUnavailable(err) { // killed over its start, or taken
		return os.RemoveAll(dir)
	}
	if err != nil {
		return err
	}
	return waiting{conn, dir}.end()
}

// end ends a monitor that waits, alive or not.
func (w waiting) end() error {
	ctx, cancel := context.WithTimeout(context.Background(), poolTimeout)
	defer cancel()
	if err := errors.Join(end(ctx, w.conn), w.conn.Close()); err != nil {
		return err
	}
	return os.RemoveAll(w.dir)
}

// fill starts monitors for as long as there is room for one more.
func (p *Pool) fill() {
	for n := 0; ; n++ {
		select {
		case <-p.room:
		case <-p.closing:
			return
		}
		w, err := p.start(filepath.Join(p.dir, strconv.Itoa(n)))
		if err != nil {
			log.L.WithError(err).Warn("no monitor waits for a sandbox")
			select {
			case <-time.After(poolPause):
				p.room <- struct{}{}
				continue
			case <-p.closing:
				return
			}
		}
		p.waiting.Add(1)
		select {
		case p.ready <- w:
			continue
		case <-w.conn.Done(): // somebody killed it
			p.died.Add(1)
		case <-p.closing:
		}
		p.waiting.Add(-1)
		if err := w.end(); err != nil {
			log.L.WithError(err).Warn("end a monitor that waits for a sandbox")
		}
		select {
		case <-p.closing:
			return
		default:
			p.room <- struct{}{}
		}
	}
}

func (p *Pool) start(dir string) (waiting, error) {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return waiting{}, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), poolTimeout)
	defer cancel()
	conn, err := monitor.Start(ctx, monitor.Config{Binary: p.binary, Dir: dir, Name: poolName, Waits: true})
	if err != nil {
		return waiting{}, errors.Join(err, os.Remove(dir))
	}
	return waiting{conn, dir}, nil
}

// take gives one of those that wait to a sandbox, nil if none does; with one, settled has
// to be called. p may be nil.
func (p *Pool) take(ctx context.Context, dir, name string) *monitor.Conn {
	for p != nil {
		var w waiting
		select {
		case w = <-p.ready:
			p.waiting.Add(-1)
		default:
			if p.size > 0 {
				p.missed.Add(1)
			}
			return nil
		}
		err := w.conn.Move(ctx, dir, name)
		if err == nil {
			err = os.Remove(w.dir)
		}
		if err == nil {
			p.taken.Add(1)
			return w.conn
		}
		p.settled()
		log.G(ctx).WithError(err).Warn("a monitor that waited cannot be used")
		if err := w.end(); err != nil {
			log.G(ctx).WithError(err).Warn("end a monitor that waits for a sandbox")
		}
	}
	return nil
}

// settled lets the place of a monitor that was taken be filled: not before its sandbox is
// up, which would have to share the processor with that.
func (p *Pool) settled() { p.room <- struct{}{} }
