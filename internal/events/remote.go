package events

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"sync"

	ttrpcevents "github.com/containerd/containerd/api/services/ttrpc/events/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/ttrpc"
	"google.golang.org/grpc/status"
)

// Remote forwards events to containerd's ttrpc endpoint. It connects when it is first
// needed and again whenever the connection is lost.
type Remote struct {
	path string

	mu     sync.Mutex // guards client and closed
	client *ttrpc.Client
	closed bool
}

// Dial returns a Remote for the absolute path of containerd's ttrpc socket, with or without
// "unix://" (containerd's is its gRPC address with ".ttrpc" appended). It does not connect
// yet: containerd may start later.
func Dial(address string) (*Remote, error) {
	path := strings.TrimPrefix(address, "unix://")
	if !filepath.IsAbs(path) {
		return nil, fmt.Errorf("event address %q: not an absolute path: %w", address, errdefs.ErrInvalidArgument)
	}
	return &Remote{path: path}, nil
}

// Forward is a Forwarder.
func (r *Remote) Forward(ctx context.Context, envelope *types.Envelope) error {
	for {
		client, fresh, err := r.connect(ctx)
		if err != nil {
			return fmt.Errorf("containerd at %q: connect: %w", r.path, err)
		}
		_, err = ttrpcevents.NewTTRPCEventsClient(client).Forward(ctx, &ttrpcevents.ForwardRequest{Envelope: envelope})
		if err == nil {
			return nil
		}
		if ctx.Err() == nil {
			if _, answered := status.FromError(err); answered {
				return errgrpc.ToNative(err)
			}
		}
		// Not containerd's answer: the connection is of no use any more. One that was
		// idle may have been closed long ago by a restart of containerd, which says
		// nothing about now.
		r.drop(client)
		if fresh || ctx.Err() != nil || !errors.Is(err, ttrpc.ErrClosed) {
			return fmt.Errorf("containerd at %q: %w: %w", r.path, err, errdefs.ErrUnavailable)
		}
	}
}

// connect returns the present connection, or a fresh one. The lock is not held while
// dialling: the journal calls Forward from one goroutine, and Close must not wait.
func (r *Remote) connect(ctx context.Context) (*ttrpc.Client, bool, error) {
	r.mu.Lock()
	client, closed := r.client, r.closed
	r.mu.Unlock()
	if closed {
		return nil, false, fmt.Errorf("closed: %w", errdefs.ErrUnavailable)
	}
	if client != nil {
		return client, false, nil
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", r.path)
	if err != nil {
		return nil, false, fmt.Errorf("%w: %w", err, errdefs.ErrUnavailable)
	}
	client = ttrpc.NewClient(conn)
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil, false, errors.Join(fmt.Errorf("closed: %w", errdefs.ErrUnavailable), client.Close())
	}
	if r.client != nil { // another caller was faster
		return r.client, true, client.Close()
	}
	r.client = client
	return client, true, nil
}

func (r *Remote) drop(client *ttrpc.Client) {
	r.mu.Lock()
	if r.client == client {
		r.client = nil
	}
	r.mu.Unlock()
	client.Close() // it failed already; there is nothing to add
}

// Close ends the connection and fails further calls. It may be repeated.
func (r *Remote) Close() error {
	r.mu.Lock()
	client := r.client
	r.client, r.closed = nil, true
	r.mu.Unlock()
	if client == nil {
		return nil
	}
	return client.Close()
}
