package task

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"caisson/internal/monitor"
)

// UnknownExit is the end of a process of which nothing is known.
func UnknownExit() Exit { return Exit{Status: unknownExit, At: time.Now()} }

// Purge ends a container, running or not, deletes it, and tells how it ended.
func (s *Set) Purge(ctx context.Context, id string) (Exit, error) {
	c, err := s.container(id)
	if err != nil {
		return Exit{}, err
	}
	if rec := c.init.snapshot(); rec.State == Running || rec.State == Starting {
		if err := s.Kill(ctx, id, "", sigkill, true); err != nil && !errdefs.IsNotFound(err) && !errdefs.IsFailedPrecondition(err) {
			return Exit{}, err
		}
		if !waitAll(ctx, []*container{c}, killTimeout) {
			return Exit{}, fmt.Errorf("task %q: it survived SIGKILL for %v: %w", id, killTimeout, errdefs.ErrUnavailable)
		}
	}
	return s.Delete(ctx, id, "")
}

const sigkill = 9

// DeleteAll purges every container in the set. It may be repeated.
func (s *Set) DeleteAll(ctx context.Context) error {
	var errs []error
	for _, id := range s.IDs() {
		if _, err := s.Purge(ctx, id); err != nil && !errdefs.IsNotFound(err) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// Lost ends what still runs after the monitor has died: the containers' cgroups
// are killed, and since nobody saw the ends, their status is that of the kill.
func (s *Set) Lost(ctx context.Context) {
	s.mu.Lock()
	all := s.allLocked()
	s.mu.Unlock()
	for _, c := range all {
		if group, err := c.cgroup(); err == nil {
			if err := group.Kill(ctx); err != nil && !errdefs.IsNotFound(err) {
				log.G(ctx).WithError(err).WithField("container_id", c.ID).Error("kill a container whose monitor died")
			}
		}
		for _, p := range append(c.allExecs(), c.init) {
			if rec := p.snapshot(); rec.State == Running || rec.State == Created && rec.Serial != 0 {
				p.ended(monitor.Exit{
					Process:  monitor.Process{Serial: rec.Serial, Pid: rec.Pid},
					Status:   sigkill, // as wait(2) tells it
					ExitedAt: time.Now(),
				})
			}
		}
	}
}
