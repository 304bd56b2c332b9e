package sandbox

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	core "github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"golang.org/x/sync/errgroup"

	"caisson/internal/fault"
	"caisson/internal/statefile"
	"caisson/internal/undo"
)

// loadAtOnce bounds how many sandboxes are taken over at the same time. On a busy
// machine each mostly waits for its monitor to get a processor.
const loadAtOnce = 64

// loadTimeout bounds the taking over of one sandbox.
const loadTimeout = time.Minute

// Load takes over what an earlier daemon left: running sandboxes go on, verbs
// that it did not finish are finished or undone. The server then serves every
// sandbox's endpoint. Nothing may be served before Load has returned: a client
// would be told that its sandboxes do not exist.
func (c *Controller) Load(ctx context.Context, server Server) error {
	c.server = server
	entries, err := os.ReadDir(c.cfg.Dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("load sandboxes: %w", err)
	}
	var group errgroup.Group
	group.SetLimit(loadAtOnce)
	for _, entry := range entries {
		group.Go(func() error {
			c.loadDir(ctx, filepath.Join(c.cfg.Dir, entry.Name()))
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	if err := c.loadRecords(ctx); err != nil {
		return err
	}
	c.loadBundles(ctx)
	c.mu.Lock()
	unread := maps.Clone(c.unread)
	c.mu.Unlock()
	for name, again := range unread {
		if again {
			c.background(func() { c.loadLater(filepath.Join(c.cfg.Dir, name)) })
		}
	}
	return nil
}

// loadLater takes over a sandbox whose record could not be read for want of
// something, such as descriptors.
func (c *Controller) loadLater(dir string) {
	for pause := 50 * time.Millisecond; ; pause = min(2*pause, insistPause) {
		select {
		case <-time.After(pause):
		case <-c.closed:
			return
		}
		b := c.loadDir(context.Background(), dir)
		c.mu.Lock()
		again := c.unread[filepath.Base(dir)]
		c.mu.Unlock()
		if b != nil {
			c.loadBundle(b)
		}
		if !again {
			return
		}
	}
}

// loadDir takes over one sandbox. One that cannot be is reported and left as it
// is, for a person to look at; it does not keep the others from being served.
func (c *Controller) loadDir(ctx context.Context, dir string) *box {
	var rec boxRecord
	read := func() (err error) {
		rec, err = readBox(dir, runMigrations)
		return err
	}
	err := read()
	if err != nil && !errdefs.IsNotFound(err) {
		err = undo.Try(ctx, read)
	}
	if errdefs.IsNotFound(err) {
		// The daemon died before the first record or after the last file.
		err := os.Remove(filepath.Join(dir, recordName+statefile.TempSuffix))
		if err == nil || errors.Is(err, os.ErrNotExist) {
			err = os.Remove(dir)
		}
		if err != nil {
			log.G(ctx).WithError(err).WithField("path", dir).Warn("directory without a sandbox")
		}
		return nil
	}
	if err == nil && c.dir(key{rec.Namespace, rec.ID}) != dir {
		err = fmt.Errorf("it is the record of sandbox %q: %w", rec.ID, errdefs.ErrDataLoss)
	}
	if err != nil {
		log.G(ctx).WithError(err).WithField("path", dir).Error("sandbox not loaded")
		c.mu.Lock()
		c.unread[filepath.Base(dir)] = !errdefs.IsDataLoss(err) && !errdefs.IsFailedPrecondition(err)
		c.mu.Unlock()
		return nil
	}
	fault.Point("sandbox:load")
	b := c.newBox(rec)
	c.mu.Lock()
	c.boxes[b.k] = b
	delete(c.unread, filepath.Base(dir))
	c.mu.Unlock()
	b.op <- struct{}{}
	defer b.unlock()
	// One that hangs must not keep the others from being served.
	bctx, cancel := context.WithTimeout(b.context(), loadTimeout)
	defer cancel()
	if err := undo.Try(bctx, func() error { return b.resume(bctx) }); err != nil {
		log.G(b.context()).WithError(err).WithField("state", rec.State).Error("sandbox not taken over")
		c.background(func() { b.insist("take over a sandbox", b.resumeLeft) })
	}
	b.removeAbandoned()
	return b
}

// resumeLeft is another attempt to take a sandbox over. The caller holds op.
func (b *box) resumeLeft(ctx context.Context) error {
	if !b.c.current(b) {
		return nil // Somebody has removed it.
	}
	return b.resume(ctx)
}

// resume goes on from the state that the last daemon wrote down. The caller
// holds op.
func (b *box) resume(ctx context.Context) error {
	state := b.snapshot().State
	if slices.Contains([]State{Ready, Stopping, Stopped}, state) && b.instance() == nil {
		b.tasks.Withhold() // until they are loaded, which another attempt may have done
	}
	if b.snapshot().Removing {
		return b.resumeRemoval(ctx)
	}
	switch state {
	case Reserved:
		return b.listen()
	case Creating:
		return b.undoCreate(ctx)
	case Created:
		if b.snapshot().Settings.CRI && !b.awaited() && b.c.cfg.Patience == 0 {
			// CRI starts a sandbox in the call that creates it, and that call is over.
			return b.remove(ctx)
		}
		return b.listen()
	case Starting:
		if b.awaited() {
			return b.undoStart(ctx)
		}
		return b.remove(ctx)
	case Ready:
		err := b.reconnect(ctx)
		if gone(err) {
			b.c.deadMonitors.Add(1)
			log.G(ctx).WithError(err).Error("sandbox ended while no daemon was there")
			err = b.end(ctx, 0, 255, "its monitor died while no daemon was there")
		}
		return errors.Join(err, b.listen())
	case Stopping:
		return errors.Join(b.resumeStop(ctx), b.listen())
	case Stopped:
		err := b.tasks.Load(ctx, nil)
		b.finish()
		return errors.Join(err, b.listen())
	default:
		return fmt.Errorf("sandbox %q: state %q is unknown: %w", b.k.id, state, errdefs.ErrDataLoss)
	}
}

// resumeRemoval goes on with a removal.
func (b *box) resumeRemoval(ctx context.Context) error {
	if b.snapshot().State == Stopped {
		if err := b.tasks.Load(ctx, nil); err != nil {
			return err
		}
	}
	return b.remove(ctx)
}

// resumeStop goes on with a stop. Containers that were given time to end have the
// rest of it, for which nothing that is to be served can wait.
func (b *box) resumeStop(ctx context.Context) error {
	if time.Now().After(b.snapshot().StopBy) || b.reconnect(ctx) != nil {
		return b.end(ctx, 0, 0, "")
	}
	b.c.background(func() {
		select {
		case b.op <- struct{}{}:
			defer b.unlock()
		case <-b.c.closed:
			return
		}
		// Its client, which got no answer, asks again if this fails.
		if err := b.end(b.context(), max(0, time.Until(b.snapshot().StopBy)), 0, ""); err != nil {
			log.G(b.context()).WithError(err).Error("finish the stop that the last daemon began")
		}
	})
	return nil
}

// gone tells that no monitor answers.
func gone(err error) bool { return errdefs.IsNotFound(err) || errdefs.IsUnavailable(err) }

// reconnect finds the sandbox's walls and its tasks again.
func (b *box) reconnect(ctx context.Context) error {
	if b.instance() != nil {
		return nil // An attempt to resume failed later than here.
	}
	walls, err := b.c.isolation(b.snapshot().Settings.Isolation)
	if err != nil {
		return fmt.Errorf("sandbox %q: %w", b.k.id, err)
	}
	inst, err := walls.Load(ctx, b.dir)
	if err != nil {
		return fmt.Errorf("sandbox %q: %w", b.k.id, err)
	}
	if err := b.tasks.Load(ctx, inst.Host()); err != nil {
		return errors.Join(err, inst.Close())
	}
	b.attach(inst)
	return nil
}

// awaited tells whether the client that creates and starts the sandbox through its
// own endpoint is still connected to it: it does not know of the daemon's end, and
// its call is made again.
func (b *box) awaited() bool {
	return b.snapshot().ByShim && b.c.server.Connected(b.k.namespace, b.k.id)
}

// undoStart takes back a start that will be made again.
func (b *box) undoStart(ctx context.Context) error {
	rec := b.snapshot()
	walls, err := b.c.isolation(rec.Settings.Isolation)
	if err != nil {
		return fmt.Errorf("sandbox %q: %w", rec.ID, err)
	}
	inst, err := walls.Load(ctx, b.dir)
	if err == nil {
		err = errors.Join(inst.End(ctx), inst.Close())
	} else if gone(err) {
		err = nil // It did not come so far.
	}
	if err != nil {
		return fmt.Errorf("sandbox %q: %w", rec.ID, err)
	}
	if err := b.teardownNetwork(ctx); err != nil {
		return err
	}
	if rec.State = Created; rec.Kind == kindSingle {
		rec.State, rec.Kind = Reserved, kindOpen
	}
	if err := b.save(rec); err != nil {
		return err
	}
	return b.listen()
}

func (b *box) undoCreate(ctx context.Context) error {
	if err := b.removeCgroup(ctx); err != nil {
		return err
	}
	if err := b.unmountFiles(); err != nil {
		return err
	}
	if err := b.deleteRecord(ctx); err != nil {
		return err
	}
	if !b.awaited() {
		return b.unclaim()
	}
	if err := b.reset(); err != nil {
		return err
	}
	return b.listen()
}

// undoLeft undoes what Create has left, which nobody asks for again. The caller
// holds op.
func (b *box) undoLeft(ctx context.Context) error {
	if !b.c.current(b) || b.snapshot().State != Creating {
		return nil
	}
	return b.undoCreate(ctx)
}

// loadRecords finds the records whose sandbox has no directory: the host was
// restarted, and the sandbox with everything in it ended then.
func (c *Controller) loadRecords(ctx context.Context) error {
	err := c.cfg.Store.ForEach(ctx, func(namespace string, sb core.Sandbox) error {
		k := key{namespace, sb.ID}
		if !errdefs.IsNotFound(c.missing(k)) {
			return nil // It has a directory, and may run.
		}
		b, fresh := c.add(k, kindSandbox, Stopped)
		if !fresh {
			return nil
		}
		defer b.unlock()
		b.mu.Lock()
		b.rec.NoFiles = true
		b.rec.CreatedAt, b.rec.ExitedAt = sb.CreatedAt, time.Now()
		b.rec.ExitStatus, b.rec.Reason = 255, "the host was restarted"
		b.mu.Unlock()
		b.finish()
		return nil
	})
	if err != nil {
		return fmt.Errorf("load sandboxes: %w", err)
	}
	return nil
}
