package cli

import (
	"context"
	"fmt"
	"time"

	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
)

// partialFor is how long what a failed pull has fetched is kept.
const partialFor = time.Hour

// resumable runs a pull under a lease, which keeps what it fetches from the garbage
// collector until an image names it. If the pull fails, another lease keeps that for
// the next try; nothing is kept of one that was interrupted.
func (c *client) resumable(ctx context.Context, name string, pull func(context.Context) error) error {
	store := c.LeasesService()
	lease, err := store.Create(ctx, leases.WithRandomID(), leases.WithExpiration(24*time.Hour))
	if err != nil {
		return fmt.Errorf("lease: %w", err)
	}
	partial := leases.Lease{ID: "caisson-partial-" + digest.FromString(name).Encoded()[:32]}
	err = pull(leases.WithLease(ctx, lease.ID))
	// What goes wrong from here on is mended by the leases' expiry.
	_ = detached(ctx, func(clean context.Context) error {
		if ctx.Err() == nil {
			if _ = store.Delete(clean, partial); err != nil {
				_ = keep(clean, store, lease, partial)
			}
			return store.Delete(clean, lease)
		}
		_ = store.Delete(clean, partial)
		return store.Delete(clean, lease, leases.SynchronousDelete)
	})
	return err
}

// keep puts what one lease keeps under another.
func keep(ctx context.Context, store leases.Manager, from, to leases.Lease) error {
	resources, err := store.ListResources(ctx, from)
	if err != nil || len(resources) == 0 {
		return err
	}
	if _, err := store.Create(ctx, leases.WithID(to.ID), leases.WithExpiration(partialFor)); err != nil && !errdefs.IsAlreadyExists(err) {
		return err
	}
	for _, r := range resources {
		if err := store.AddResource(ctx, to, r); err != nil {
			return err
		}
	}
	return nil
}
