package task

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"golang.org/x/sys/unix"
)

// End stops everything in the set, for good: TERM to each container, KILL when
// grace is over or the context ends, and returns when all have ended. What is
// being created or started meanwhile fails. ErrMonitorGone: nobody can tell, Lost
// has to follow. It may be repeated.
func (s *Set) End(ctx context.Context, grace time.Duration) error {
	s.end()
	s.mu.Lock() // whatever was reserved before is in the list
	all := s.allLocked()
	s.mu.Unlock()
	if grace > 0 {
		for _, c := range all {
			if c.init.snapshot().State == Running {
				// One that cannot be told gets killed below.
				_ = s.Kill(ctx, c.ID, "", uint32(unix.SIGTERM), false)
			}
		}
		s.waitAll(ctx, all, grace)
	}
	// Killing is quick, and a caller that gave up gains nothing from half of it.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*killTimeout)
	defer cancel()
	var errs []error
	for _, c := range all {
		errs = append(errs, s.killForGood(ctx, c))
	}
	ended := s.waitAll(ctx, all, killTimeout)
	if _, err := s.attached(); err != nil {
		return ErrMonitorGone
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if !ended {
		return fmt.Errorf("sandbox %q: containers survived SIGKILL for %v: %w", s.cfg.SandboxID, killTimeout, errdefs.ErrUnavailable)
	}
	return nil
}

func (s *Set) killForGood(ctx context.Context, c *container) error {
	if c.init.snapshot().State == Adding {
		// Its creation was told to give up, and leaves nothing, or a container.
		if err := c.init.lock(ctx); err != nil {
			return err
		}
		c.init.unlock()
	}
	if rec := c.init.snapshot(); rec.State == Stopped || rec.Serial == 0 {
		return nil
	}
	if err := s.Kill(ctx, c.ID, "", uint32(unix.SIGKILL), true); err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	return nil
}

// waitAll waits until the containers that ever ran have ended; false if they have
// not when the limit or the context is over, or the monitor is gone.
func (s *Set) waitAll(ctx context.Context, all []*container, limit time.Duration) bool {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	for _, c := range all {
		if c.init.snapshot().Serial == 0 {
			continue
		}
		select {
		case <-c.init.done:
			continue
		default:
		}
		select {
		case <-c.init.done:
		case <-timer.C:
			return false
		case <-s.gone:
			return false
		case <-ctx.Done():
			return false
		}
	}
	return true
}

// Lost ends what the monitor did not see the end of, because it died or was ended
// itself: the containers' cgroups are killed, and the exits told as those of the
// kill. It may be repeated.
func (s *Set) Lost(ctx context.Context) {
	s.end()
	s.mu.Lock()
	all := s.allLocked()
	s.mu.Unlock()
	for _, c := range all {
		if c.init.snapshot().State != Stopped {
			c.killGroup(ctx)
		}
		for _, p := range append(c.allExecs(), c.init) {
			p.lost()
		}
	}
}

// killGroup kills what is left in the container's cgroup.
func (c *container) killGroup(ctx context.Context) {
	group, err := c.cgroup()
	if err != nil {
		return // Nothing ever ran.
	}
	kctx, cancel := context.WithTimeout(ctx, killTimeout)
	defer cancel()
	if err := group.Kill(kctx); err != nil && !errdefs.IsNotFound(err) {
		log.G(c.context()).WithError(err).Error("kill what is left of a container")
	}
}
