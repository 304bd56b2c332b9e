package libcontainerd_test

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/events"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
)

func (f *conn) Publish(_ context.Context, topic string, event events.Event) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.away || f.cut {
		return errAway
	}
	f.publishLocked(topic, event)
	return nil
}

func (f *conn) Forward(context.Context, *events.Envelope) error { return errors.ErrUnsupported }

func (f *conn) Subscribe(ctx context.Context, _ ...string) (<-chan *events.Envelope, <-chan error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	errs := make(chan error, 1)
	if f.away || f.cut {
		errs <- errAway
		return nil, errs
	}
	s := &stream{wake: make(chan struct{}, 1)}
	f.streams = append(f.streams, s)
	f.heard <- 1
	life, out := f.life, make(chan *events.Envelope)
	go func() {
		errs <- f.serve(ctx, s, life, out)
		f.mu.Lock()
		defer f.mu.Unlock()
		f.streams = slices.DeleteFunc(f.streams, func(other *stream) bool { return other == s })
	}()
	return out, errs
}

func (f *fake) serve(ctx context.Context, s *stream, life chan struct{}, out chan *events.Envelope) error {
	for {
		f.mu.Lock()
		queue := s.queue
		s.queue = nil
		f.mu.Unlock()
		for _, ev := range queue {
			select {
			case out <- ev:
			case <-life:
				return errAway
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		select {
		case <-s.wake:
		case <-life:
			return errAway
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// records are the fake's containers.
type records struct {
	containers.Store // Update and List are not needed
	f                *conn
}

func (r *records) Create(_ context.Context, c containers.Container) (containers.Container, error) {
	return c, r.f.native(func() error {
		if _, ok := r.f.containers[c.ID]; ok {
			return fmt.Errorf("container %q: %w", c.ID, errdefs.ErrAlreadyExists)
		}
		r.f.containers[c.ID] = c
		return nil
	})
}

func (r *records) Get(_ context.Context, id string) (c containers.Container, err error) {
	if err := r.f.hook("find"); err != nil {
		return c, err
	}
	r.f.mu.Lock()
	defer r.f.mu.Unlock()
	if err := r.f.downLocked(); err != nil {
		return c, errgrpc.ToNative(err)
	}
	c, ok := r.f.containers[id]
	if !ok {
		return c, fmt.Errorf("container %q: %w", id, errdefs.ErrNotFound)
	}
	return c, nil
}

func (r *records) Delete(_ context.Context, id string) error {
	if err := r.f.hook("forget"); err != nil {
		return err
	}
	return r.f.native(func() error {
		if _, ok := r.f.containers[id]; !ok {
			return fmt.Errorf("container %q: %w", id, errdefs.ErrNotFound)
		}
		delete(r.f.containers, id)
		return nil
	})
}

// native is a call with the errors that the client of a real server gives.
func (f *conn) native(do func() error) error { return errgrpc.ToNative(f.call(do)) }

type noLeases struct{ leases.Manager }

func (noLeases) Create(context.Context, ...leases.Opt) (leases.Lease, error) {
	return leases.Lease{ID: "fake"}, nil
}

func (noLeases) Delete(context.Context, leases.Lease, ...leases.DeleteOpt) error { return nil }
