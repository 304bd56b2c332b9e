package libcontainerd

import (
	"context"
	"fmt"
	"runtime/debug"
	"slices"
	"time"

	"github.com/containerd/errdefs"
)

// The waits between two attempts to tell an event, and how long one of a deleted
// container is tried.
const (
	firstRetry = 100 * time.Millisecond
	lastRetry  = 30 * time.Second
	giveUp     = time.Minute
)

// maxUntold is how many events of a container may wait before NewTask and Exec do,
// too.
const maxUntold = 128

// tellLocked has a goroutine tell what waits; it ends when nothing does.
func (l *ledger) tellLocked() {
	if l.telling || len(l.untold) == 0 && !l.deleted {
		return
	}
	l.telling = l.client.spawn(l.tell)
}

func (l *ledger) tell(ctx context.Context) {
	for {
		l.mu.Lock()
		if len(l.untold) == 0 || ctx.Err() != nil {
			l.telling = false
			finished := l.deleted && len(l.untold) == 0
			l.mu.Unlock()
			if finished {
				l.client.forget(l)
			}
			return
		}
		n := l.untold[0]
		l.mu.Unlock()
		if n.phase >= phaseStarted {
			// Should this program be killed before the backend's answer is written
			// down, the next one tells the same, even if the server has forgotten.
			l.saveOr("an event may be told otherwise after a restart")
		}
		if !l.deliver(ctx, n) {
			continue // the client was closed
		}
		l.told(n)
	}
}

// told notes that the backend took the event, and writes that down before the next
// is told.
func (l *ledger) told(n notice) {
	l.update(func() {
		l.untold = slices.Delete(l.untold, 0, 1)
		if n.proc != nil {
			n.proc.told = n.phase
		}
		switch n.event {
		case EventPaused, EventResumed:
			n.run.pausedTold = n.event == EventPaused
		}
		if l.room != nil && len(l.untold) <= maxUntold {
			close(l.room)
			l.room = nil
		}
	})
	l.saveOr("an event may be told again after a restart")
}

// saveOr writes the record, or says what that may lead to.
func (l *ledger) saveOr(danger string) {
	if err := l.save(); err != nil {
		l.client.log.WithError(err).WithField("container", l.id).Error(danger)
	}
}

// deliver gives the event to the backend until it takes it. False: the client was
// closed before.
func (l *ledger) deliver(ctx context.Context, n notice) bool {
	var hopeless time.Time // since when the container is deleted and the backend failed
	log := l.client.log.WithField("container", l.id).WithField("process", n.info.ProcessID).WithField("event", n.event)
	for wait := firstRetry; ; wait = min(2*wait, lastRetry) {
		err := l.client.call(l.id, n)
		if err == nil {
			return true
		}
		l.mu.Lock()
		deleted := l.deleted
		l.mu.Unlock()
		if deleted && hopeless.IsZero() {
			hopeless = time.Now()
		}
		if deleted && time.Since(hopeless) > giveUp {
			log.WithError(err).Error("event of a deleted container given up")
			return true
		}
		log.WithError(err).Warn("backend failed, the event will be told again")
		select {
		case <-ctx.Done():
			return false
		case <-time.After(wait):
		}
	}
}

func (c *client) call(id string, n notice) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = fmt.Errorf("backend panicked: %v: %w\n%s", v, errdefs.ErrInternal, debug.Stack())
		}
	}()
	return c.backend.ProcessEvent(id, n.event, n.info)
}

// waitForRoom returns when the backend is not too far behind.
func (l *ledger) waitForRoom(ctx context.Context) error {
	for {
		l.mu.Lock()
		if len(l.untold) <= maxUntold {
			l.mu.Unlock()
			return nil
		}
		if l.room == nil {
			l.room = make(chan struct{})
		}
		room := l.room
		l.mu.Unlock()
		select {
		case <-room:
		case <-ctx.Done():
			return fmt.Errorf("container %q: the backend has not taken %d events: %w: %w", l.id, maxUntold, errdefs.ErrResourceExhausted, context.Cause(ctx))
		}
	}
}
