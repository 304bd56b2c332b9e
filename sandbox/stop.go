package sandbox

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	core "github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/log"

	"caisson/internal/cgroup"
	"caisson/internal/fault"
	"caisson/internal/isolation"
	"caisson/internal/network"
	"caisson/internal/task"
)

const (
	// stopGrace is how long containers have to end after TERM, unless the caller
	// says otherwise: docker's.
	stopGrace = 10 * time.Second
	// cleanupTimeout bounds clean-up that no caller waits for.
	cleanupTimeout = 30 * time.Second
	// insistPause is the longest between two attempts to clean up when nobody asked.
	insistPause = 5 * time.Second
)

// Stop ends everything in a sandbox: TERM to its containers, KILL when the
// timeout (10 s if none is given) or the context is over; then its walls and its
// own network go. Its containers' exit statuses can still be asked for. Stopping
// a stopped sandbox does nothing; a Stop that failed can be repeated.
func (c *Controller) Stop(ctx context.Context, sandboxID string, opts ...core.StopOpt) error {
	var o core.StopOptions
	for _, opt := range opts {
		opt(&o)
	}
	grace := stopGrace
	if o.Timeout != nil {
		grace = *o.Timeout
	}
	b, err := c.acquire(ctx, sandboxID, c.find)
	if err != nil {
		return err
	}
	defer b.unlock()
	fault.Point("sandbox:stop")
	return b.end(ctx, grace, 0, "")
}

// end takes a sandbox to Stopped, from whatever state. The caller holds op.
func (b *box) end(ctx context.Context, grace time.Duration, status uint32, reason string) error {
	switch b.snapshot().State {
	case Stopped:
		return nil
	case Ready:
		if err := b.note(Stopping, func(r *boxRecord) {
			r.ExitStatus, r.Reason, r.StopBy = status, reason, time.Now().Add(grace)
		}); err != nil {
			return err
		}
	}
	if err := b.endTasks(ctx, grace); err != nil {
		return err
	}
	// The rest is short, and a caller that gave up gains nothing from half of it.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
	defer cancel()
	fault.Point("sandbox:stop:walls")
	if err := b.takeDown(ctx); err != nil {
		return err
	}
	fault.Point("sandbox:stop:tasks")
	b.tasks.Lost(ctx) // whatever ended without being seen
	if err := b.teardownNetwork(ctx); err != nil {
		return err
	}
	if err := b.note(Stopped, func(r *boxRecord) { r.ExitedAt = time.Now() }); err != nil {
		return err
	}
	fault.Point("sandbox:stopped")
	b.finish()
	log.G(b.context()).WithField("reason", reason).Info("sandbox stopped")
	return nil
}

// endTasks ends the containers, as far as there is somebody who can tell.
func (b *box) endTasks(ctx context.Context, grace time.Duration) error {
	if b.instance() == nil {
		err := b.reconnect(ctx) // A daemon that could not take it over left it alone.
		if gone(err) {
			b.tasks.EndOrphans(ctx)
			return b.tasks.Load(ctx, nil)
		}
		if err != nil {
			return err
		}
	}
	err := b.tasks.End(ctx, grace)
	if !errors.Is(err, task.ErrMonitorGone) {
		return err
	}
	select {
	case <-b.c.closed:
		return err // The monitor lives on, we have let go of it.
	default:
		b.tasks.EndOrphans(ctx)
		return nil
	}
}

// takeDown ends the walls, with whatever a client hid from us in there.
func (b *box) takeDown(ctx context.Context) error {
	inst := b.instance()
	if inst == nil {
		return nil
	}
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
	if rec.Kind != kindSandbox || !ownsNetwork(rec) && !rec.NoFiles {
		return nil
	}
	req := b.networkRequest(rec)
	if rec.NoFiles {
		req.Mode = network.CNI // Nobody knows; addresses that it gave are still taken.
	}
	if err := b.c.cfg.Network.Teardown(ctx, req); err != nil {
		return fmt.Errorf("sandbox %q: network: %w", rec.ID, err)
	}
	return nil
}

// fallen handles walls that fell without a Stop: the holder or the monitor was
// killed. What still runs in there has no sandbox any more, and is ended too.
func (b *box) fallen(inst isolation.Instance) {
	b.insist("clean up after a sandbox that ended by itself", func(ctx context.Context) error { return b.endFallen(ctx, inst) })
}

// endFallen is one attempt of fallen. The caller holds op.
func (b *box) endFallen(ctx context.Context, inst isolation.Instance) error {
	if other := b.instance(); !b.c.current(b) || b.snapshot().State == Stopped || other != nil && other != inst {
		return nil // A Stop was faster.
	}
	reason, status, deaths := "its monitor died", uint32(255), &b.c.deadMonitors
	if exit := inst.Exit(); exit != nil {
		reason, deaths = "its holder died", &b.c.deadHolders
		if status = uint32(exit.Status.ExitStatus()); exit.Status.Signaled() {
			status = 128 + uint32(exit.Status.Signal())
		}
	}
	if b.snapshot().State == Ready { // the first attempt
		deaths.Add(1)
	}
	log.G(ctx).WithField("reason", reason).Error("sandbox ended by itself")
	return b.end(ctx, 0, status, reason)
}

// Shutdown removes a sandbox and everything that belongs to it, running or not:
// processes, mounts, cgroup, network namespace, files, record. A Shutdown that
// failed can be repeated; NotFound once it is done.
func (c *Controller) Shutdown(ctx context.Context, sandboxID string) error {
	b, err := c.acquire(ctx, sandboxID, c.find)
	if err != nil {
		return err
	}
	defer b.unlock()
	fault.Point("sandbox:shutdown")
	if err := b.remove(ctx); err != nil {
		return err
	}
	fault.Point("sandbox:removed")
	log.G(b.context()).Info("sandbox removed")
	return nil
}

// remove takes away all of a sandbox. Its directory goes last: it says that the
// sandbox is being removed, and so lets the next daemon finish what this one does not
// live to. The caller holds op.
func (b *box) remove(ctx context.Context) error {
	switch b.snapshot().State {
	case Reserved, Creating:
	default:
		b.noteRemoval()
		if err := b.end(ctx, 0, 0, ""); err != nil {
			return err
		}
	}
	b.finish()
	if err := b.tasks.DeleteAll(ctx); err != nil {
		return err
	}
	rec := b.snapshot()
	if rec.NoFiles {
		if err := b.teardownNetwork(ctx); err != nil {
			return err
		}
	} else if err := b.dismantle(ctx); err != nil {
		return err
	}
	if rec.Kind == kindSandbox {
		if err := b.deleteRecord(ctx); err != nil {
			return err
		}
	}
	if !rec.NoFiles {
		if err := b.removeFiles(); err != nil {
			return err
		}
	}
	b.tasks.Close()
	b.c.drop(b)
	return nil
}

// dismantle removes what a sandbox has besides its record and its directory. The kernel
// takes its time for cgroups and for mounts: neither waits for the other.
func (b *box) dismantle(ctx context.Context) error {
	var cgroupErr, mountErr error
	var work sync.WaitGroup
	work.Go(func() { cgroupErr = b.removeCgroup(ctx) })
	work.Go(func() { mountErr = b.unmountFiles() })
	err := b.unlisten(Endpoint.Remove)
	work.Wait()
	return errors.Join(cgroupErr, mountErr, err)
}

// noteRemoval lets the next daemon finish the removal if this one does not.
func (b *box) noteRemoval() {
	rec := b.snapshot()
	if rec.Removing || rec.NoFiles {
		return
	}
	rec.Removing = true
	if err := b.save(rec); err != nil {
		// Room for it is what the removal makes.
		log.G(b.context()).WithError(err).Warn("record that the sandbox is removed")
	}
}

// removeCgroup removes the sandbox's cgroup if it is ours, with whatever is left in it.
func (b *box) removeCgroup(ctx context.Context) error {
	rec := b.snapshot()
	if !rec.OwnCgroup {
		return nil
	}
	if err := cgroup.Remove(ctx, rec.Cgroup); err != nil {
		return fmt.Errorf("sandbox %q: remove cgroup: %w", rec.ID, err)
	}
	return nil
}
