package task

import (
	"context"
	"fmt"
	"time"

	"github.com/containerd/containerd/api/events"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"caisson/internal/cgroup"
	"caisson/internal/fault"
	"caisson/internal/request"
	"caisson/internal/undo"
)

// turn is a pause or resume that is under way, or that may not have been told. It is
// written down before anything is done, and forgotten when its event is safe, so that
// the next daemon can tell what came about, and takes back what was left half way.
type turn struct {
	Frozen bool      // what it leads to
	At     time.Time // tells it from others
}

func (t turn) verb() string {
	if t.Frozen {
		return "pause"
	}
	return "resume"
}

// Pause stops every process of a container until Resume. FailedPrecondition: it
// does not run. Pausing a paused container changes nothing.
func (s *Set) Pause(ctx context.Context, id string) error {
	return s.turn(ctx, id, turn{Frozen: true, At: time.Now()})
}

// Resume lets a paused container go on. Resuming one that is not paused is
// FailedPrecondition.
func (s *Set) Resume(ctx context.Context, id string) error {
	return s.turn(ctx, id, turn{At: time.Now()})
}

func (s *Set) turn(ctx context.Context, id string, t turn) error {
	p, err := s.acquire(ctx, id, "")
	if err != nil {
		return err
	}
	defer p.unlock()
	st := p.status()
	if st.State != Running {
		return fmt.Errorf("task %q: %s: it is %s, not running: %w", id, t.verb(), st.State, errdefs.ErrFailedPrecondition)
	}
	req := request.From(ctx)
	if st.Paused == t.Frozen {
		begun := req.Again && string(req.Noted) == t.verb() // by the earlier daemon, and Load has seen to the rest
		if t.Frozen || begun {
			return nil
		}
		return fmt.Errorf("task %q: it is not paused: %w", id, errdefs.ErrFailedPrecondition)
	}
	group, err := p.c.cgroup()
	if err != nil {
		return err
	}
	if err := req.Note([]byte(t.verb())); err != nil {
		return fmt.Errorf("task %q: %s: %w", id, t.verb(), err)
	}
	fault.Point("task:turn")
	if err := p.setTurn(&t); err != nil {
		return err
	}
	if err := t.make(ctx, group); err != nil {
		// One that cannot be forgotten now is no different for the next daemon.
		if err := p.setTurn(nil); err != nil {
			log.G(ctx).WithError(err).Warn("forget a pause or resume that failed")
		}
		return fmt.Errorf("task %q: %w", id, err)
	}
	p.c.setPaused(t.Frozen)
	fault.Point("task:turned")
	p.tellTurn(ctx)
	return nil
}

func (t turn) make(ctx context.Context, group *cgroup.Group) error {
	if t.Frozen {
		return group.Freeze(ctx)
	}
	return group.Thaw(ctx)
}

func (c *container) setPaused(paused bool) {
	c.mu.Lock()
	c.paused = paused
	c.mu.Unlock()
}

// setTurn writes down what is under way; nil: nothing is. The caller holds op.
func (p *process) setTurn(t *turn) error {
	swap := func(t *turn) (old *turn) {
		p.mu.Lock()
		defer p.mu.Unlock()
		old, p.rec.Turn = p.rec.Turn, t
		return old
	}
	old := swap(t)
	err := p.save()
	if err != nil {
		swap(old)
	}
	return err
}

// tellTurn tells a turn that came about, which is a fact, and forgets it once it is
// safe. The caller holds op.
func (p *process) tellTurn(ctx context.Context) {
	if err := p.tryTellTurn(ctx); err != nil {
		log.G(ctx).WithError(err).Error("tell that a container was paused or resumed")
		p.c.set.retry(func() error {
			p.op <- struct{}{}
			defer p.unlock()
			if !p.current() {
				return nil
			}
			return p.tryTellTurn(p.context())
		})
	}
}

func (p *process) tryTellTurn(ctx context.Context) error {
	t := p.snapshot().Turn
	if t == nil {
		return nil
	}
	var event any = &events.TaskResumed{ContainerID: p.c.ID}
	if t.Frozen {
		event = &events.TaskPaused{ContainerID: p.c.ID}
	}
	if err := p.c.set.tell(ctx, p.key(t.verb(), uint64(t.At.UnixNano())), event); err != nil {
		return err
	}
	return p.setTurn(nil)
}

// settleTurn finds out how it is with a container, and what became of the pause or
// resume that the last daemon was killed in.
func (c *container) settleTurn(ctx context.Context, group *cgroup.Group) {
	t := c.init.snapshot().Turn
	err := undo.Try(ctx, func() error {
		frozen, err := group.Frozen()
		if err == nil && t != nil && t.Frozen && !frozen {
			err = group.Thaw(ctx) // some of its processes may have been stopped
		}
		if err == nil {
			c.setPaused(frozen)
		}
		return err
	})
	switch {
	case errdefs.IsNotFound(err): // It has ended.
	case err != nil:
		log.G(ctx).WithError(err).Error("a loaded container may be paused")
	case t != nil && t.Frozen == c.init.status().Paused:
		c.init.tellTurn(ctx)
	case t != nil:
		if err := c.init.setTurn(nil); err != nil {
			log.G(ctx).WithError(err).Warn("forget a pause or resume of the last daemon")
		}
	}
}
