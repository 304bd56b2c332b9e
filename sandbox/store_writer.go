package sandbox

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"syscall"

	"github.com/containerd/errdefs"
	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
	"golang.org/x/sys/unix"

	"caisson/internal/fault"
)

// storeWriter lets writers share commits. A writer that finds nobody writing
// commits at once; those that come meanwhile queue up, and the first of them
// commits the whole queue when the disk is free. So one writer pays for one
// fsync, and a hundred at once for two.
//
// (bbolt's own DB.Batch makes every writer wait for company, 10 ms unless told
// otherwise, and with no delay starts a goroutine per batch.)
type storeWriter struct {
	db *bolt.DB

	mu    sync.Mutex // guards what follows; never held while writing
	busy  bool       // somebody commits
	queue []*storeWrite
}

// storeOp reads, decides and writes, in this order: an error that is not a
// storeFault promises that nothing was written. It may be called again.
type storeOp func(tx *bolt.Tx) error

// storeFault is an error of bbolt in the middle of writing.
type storeFault struct{ error }

func (f storeFault) Unwrap() error { return f.error }

var errNothingToCommit = errors.New("nothing to commit")

type storeWrite struct {
	op   storeOp
	err  error
	wake chan bool // true: commit the queue, your own write included
}

// do runs op in a transaction and returns when it is on the disk. A context
// that ends later does not take the write back, so it is not waited for.
func (w *storeWriter) do(ctx context.Context, op storeOp) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	own := &storeWrite{op: op, wake: make(chan bool, 1)}
	w.mu.Lock()
	w.queue = append(w.queue, own)
	lead := !w.busy
	w.busy = true
	w.mu.Unlock()

	if !lead && !<-own.wake {
		return own.err
	}
	w.mu.Lock()
	batch := w.queue
	w.queue = nil
	w.mu.Unlock()

	w.commit(batch)

	w.mu.Lock()
	if len(w.queue) > 0 {
		w.queue[0].wake <- true
	} else {
		w.busy = false
	}
	w.mu.Unlock()
	for _, other := range batch {
		if other != own {
			other.wake <- false
		}
	}
	return own.err
}

// commit writes a batch in one transaction. If bbolt fails in the middle, each
// write is tried on its own, so that one that cannot work harms no other.
func (w *storeWriter) commit(batch []*storeWrite) {
	err := w.db.Update(func(tx *bolt.Tx) error {
		if err := fault.Fail("store:write", unix.ENOSPC, unix.EIO); err != nil {
			return err
		}
		wrote := false
		for _, c := range batch {
			if c.err = c.op(tx); errors.As(c.err, new(storeFault)) {
				return c.err
			}
			wrote = wrote || c.err == nil
		}
		if !wrote {
			return errNothingToCommit // spares the disk
		}
		return nil
	})
	fault.Point("store:committed")
	if err == nil || errors.Is(err, errNothingToCommit) {
		return
	}
	if len(batch) == 1 {
		batch[0].err = storeCommitError(err)
		return
	}
	for _, c := range batch {
		w.commit([]*storeWrite{c})
	}
}

func storeCommitError(err error) error {
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return fmt.Errorf("commit: %w: %w", err, errdefs.ErrResourceExhausted)
	case errors.Is(err, bolterrors.ErrDatabaseNotOpen):
		return fmt.Errorf("commit: the store is closed: %w", errdefs.ErrUnavailable)
	}
	return fmt.Errorf("commit: %w", err)
}
