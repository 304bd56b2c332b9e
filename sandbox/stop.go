package sandbox

import (
	"context"
	"errors"
	"fmt"
	"time"

	core "github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"caisson/internal/cgroup"
	"caisson/internal/isolation"
)

const (
	// stopGrace is how long containers have to end after TERM, unless the caller
	// says otherwise: docker's.
	stopGrace = 10 * time.Second
	// cleanupTimeout bounds clean-up that no caller waits for.
	cleanupTimeout = 30 * time.Second
)

// Stop ends everything in a sandbox: TERM to its containers, KILL when the
// timeout (10 s if none is given) or the context is over; then its walls and its
// own network go. Its containers' exit statuses can still be asked for. Stopping
// a stopped sandbox does nothing; a Stop that failed can be repeated.
func (c *Controller) Stop(ctx context.Context, sandboxID string, opts ...core.StopOpt) error {
	b, err := c.find(ctx, sandboxID)
	if err != nil {
		return err
	}
	var o core.StopOptions
	for _, opt := range opts {
		opt(&o)
	}
	grace := stopGrace
	if o.Timeout != nil {
		grace = *o.Timeout
	}
	if err := b.lock(ctx); err != nil {
		return err
	}
	defer b.unlock()
	return b.end(ctx, grace, 0, "")
}

// end takes a sandbox to Stopped, from whatever state. The caller holds op.
func (b *box) end(ctx context.Context, grace time.Duration, status uint32, reason string) error {
	switch b.snapshot().State {
	case Stopped:
		return nil
	case Ready:
		if err := b.move(Stopping, func(r *boxRecord) { r.ExitStatus, r.Reason = status, reason }); err != nil {
			return err
		}
	}
	if b.instance() != nil {
		if err := b.tasks.End(ctx, grace); err != nil {
			return err
		}
		if err := b.takeDown(ctx); err != nil {
			return err
		}
	}
	if err := b.teardownNetwork(ctx); err != nil {
		return err
	}
	if err := b.move(Stopped, func(r *boxRecord) { r.ExitedAt = time.Now() }); err != nil {
		return err
	}
	b.finish()
	log.G(ctx).WithField("sandbox_id", b.k.id).WithField("reason", reason).Info("sandbox stopped")
	return nil
}

// takeDown ends the walls, with whatever a client hid from us in there.
func (b *box) takeDown(ctx context.Context) error {
	inst := b.instance()
	if err := inst.End(ctx); err != nil {
		return fmt.Errorf("sandbox %q: %w", b.k.id, err)
	}
	if err := inst.Close(); err != nil {
		return fmt.Errorf("sandbox %q: %w", b.k.id, err)
	}
	b.mu.Lock()
	b.inst = nil
	b.mu.Unlock()
	return nil
}

func (b *box) teardownNetwork(ctx context.Context) error {
	rec := b.snapshot()
	if rec.Kind != kindSandbox || !ownsNetwork(rec) || rec.NoFiles {
		return nil
	}
	if err := b.c.cfg.Network.Teardown(ctx, b.networkRequest(rec)); err != nil {
		return fmt.Errorf("sandbox %q: network: %w", rec.ID, err)
	}
	return nil
}

// fallen handles walls that fell without a Stop: the holder or the monitor was
// killed. What still runs in there has no sandbox any more, and is ended too.
func (b *box) fallen(inst isolation.Instance) {
	ctx, cancel := context.WithTimeout(b.context(), cleanupTimeout)
	defer cancel()
	if b.lock(ctx) != nil {
		return
	}
	defer b.unlock()
	if b.instance() != inst {
		return // A Stop was faster.
	}
	reason, status := "its monitor died", uint32(255)
	if exit := inst.Exit(); exit != nil {
		reason = "its holder died"
		if status = uint32(exit.Status.ExitStatus()); exit.Status.Signaled() {
			status = 128 + uint32(exit.Status.Signal())
		}
	} else {
		b.tasks.Lost(ctx)
	}
	log.G(ctx).WithField("reason", reason).Error("sandbox ended by itself")
	if err := b.end(ctx, 0, status, reason); err != nil {
		log.G(ctx).WithError(err).Error("clean up after a sandbox that ended by itself")
	}
}

// Shutdown removes a sandbox and everything that belongs to it, running or not:
// processes, mounts, cgroup, network namespace, files, record. A Shutdown that
// failed can be repeated; NotFound once it is done.
func (c *Controller) Shutdown(ctx context.Context, sandboxID string) error {
	b, err := c.find(ctx, sandboxID)
	if err != nil {
		return err
	}
	if err := b.lock(ctx); err != nil {
		return err
	}
	defer b.unlock()
	if err := b.remove(ctx); err != nil {
		return err
	}
	log.G(ctx).WithField("sandbox_id", sandboxID).Info("sandbox removed")
	return nil
}

// remove takes away all of a sandbox; the record in the store goes last, so that
// what is left after a failure still has a name. The caller holds op.
func (b *box) remove(ctx context.Context) error {
	switch b.snapshot().State {
	case Reserved, Creating:
	default:
		if err := b.end(ctx, 0, 0, ""); err != nil {
			return err
		}
	}
	b.finish()
	if err := b.tasks.DeleteAll(ctx); err != nil {
		return err
	}
	rec := b.snapshot()
	if !rec.NoFiles {
		if err := b.removeCgroup(ctx); err != nil {
			return err
		}
		b.unlisten()
		if err := b.removeFiles(); err != nil {
			return err
		}
	}
	if rec.Kind == kindSandbox {
		if err := b.c.cfg.Store.Delete(ctx, rec.ID); err != nil && !errdefs.IsNotFound(err) {
			return err
		}
	}
	b.tasks.Close()
	b.c.drop(b)
	return nil
}

// removeCgroup removes the sandbox's cgroup if it is ours, with whatever is left in it.
func (b *box) removeCgroup(ctx context.Context) error {
	rec := b.snapshot()
	if !rec.OwnCgroup {
		return nil
	}
	group, err := cgroup.Load(rec.Cgroup)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err == nil {
		err = errors.Join(group.Kill(ctx), group.Delete(ctx))
	}
	if err != nil {
		return fmt.Errorf("sandbox %q: remove cgroup: %w", rec.ID, err)
	}
	return nil
}
