package sandbox

import (
	"context"
	"time"

	"github.com/containerd/log"
)

// CRI runs a sandbox with two calls, Create and Start, and asks how it is after
// that. If one of the calls fails it forgets the sandbox, without a further call;
// and if the daemon is killed before it has answered, the call fails, whatever
// became of it. So a sandbox that an earlier daemon created, or started, is CRI's
// only if CRI goes on with it.

// claim notes that CRI knows of the sandbox's start.
func (b *box) claim() {
	if !b.snapshot().Unclaimed {
		return
	}
	select {
	case b.op <- struct{}{}:
	default:
		return // Something else is under way; this is not the last call.
	}
	defer b.unlock()
	rec := b.snapshot()
	rec.Unclaimed = false
	if err := b.save(rec); err != nil {
		log.G(b.context()).WithError(err).Warn("note that a sandbox is known to CRI")
	}
}

// abandoned tells that CRI has yet to go on with the sandbox.
func (b *box) abandoned() bool {
	rec := b.snapshot()
	return rec.Settings.CRI && (rec.State == Created || rec.Unclaimed && rec.State != Stopped)
}

// removeAbandoned removes the sandbox if CRI does not go on with it in time.
func (b *box) removeAbandoned() {
	if !b.abandoned() || b.c.cfg.Patience == 0 {
		return
	}
	b.c.background(func() {
		select {
		case <-time.After(b.c.cfg.Patience):
		case <-b.c.closed:
			return
		}
		b.insist("remove a sandbox that CRI gave up on when an earlier daemon ended", b.removeUnclaimed)
	})
}

// removeUnclaimed is one attempt of removeAbandoned. The caller holds op.
func (b *box) removeUnclaimed(ctx context.Context) error {
	if !b.c.current(b) || !b.abandoned() && !b.snapshot().Removing {
		return nil
	}
	if err := b.remove(ctx); err != nil {
		return err
	}
	log.G(ctx).Warn("sandbox removed: CRI gave up on it when an earlier daemon ended")
	return nil
}
