package task

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
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
		if !s.waitAll(ctx, []*container{c}, killTimeout) {
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
