package daemon

import (
	"context"
	"errors"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/containerd/containerd/api/types"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"caisson/internal/engine"
	"caisson/internal/events"
)

// forwarder sends events to the containerd that is configured. While that has
// never taken one, because nobody configured anything and containerd is
// elsewhere, it also tries the one that shim binaries name. An engine in this
// process gets them without a socket, once it has started.
type forwarder struct {
	configured *events.Remote
	engine     atomic.Pointer[engine.Engine]

	mu      sync.Mutex // guards all below
	reached bool       // configured took an event
	address string     // of named
	named   *events.Remote
}

func newForwarder(address string) (*forwarder, error) {
	remote, err := events.Dial(address + ttrpcSuffix)
	if err != nil {
		return nil, err
	}
	return &forwarder{configured: remote, address: address}, nil
}

// forward is an events.Forwarder.
func (f *forwarder) forward(ctx context.Context, envelope *types.Envelope) error {
	if e := f.engine.Load(); e != nil {
		return e.Forward(ctx, envelope)
	}
	err := f.configured.Forward(ctx, envelope)
	f.mu.Lock()
	f.reached = f.reached || err == nil
	named := f.named
	if f.reached {
		named = nil
	}
	f.mu.Unlock()
	if named == nil || !errdefs.IsUnavailable(err) {
		return err
	}
	if other := named.Forward(ctx, envelope); other != nil {
		return errors.Join(err, other)
	}
	return nil
}

// name notes the gRPC address of a containerd that started a shim binary.
func (f *forwarder) name(address string) {
	address = strings.TrimPrefix(address, "unix://")
	f.mu.Lock()
	if f.address == address || f.reached || f.engine.Load() != nil || !filepath.IsAbs(address) {
		f.mu.Unlock()
		return
	}
	remote, err := events.Dial(address + ttrpcSuffix)
	if err != nil {
		f.mu.Unlock()
		return // it is no path
	}
	old := f.named
	f.address, f.named = address, remote
	f.mu.Unlock()
	log.L.WithField("address", address).Info("containerd is here, says the shim binary: events go there unless the configured one takes them")
	if old != nil {
		_ = old.Close() // an event on its way is sent again
	}
}

// close ends the connections.
func (f *forwarder) close() error {
	f.mu.Lock()
	named := f.named
	f.mu.Unlock()
	err := f.configured.Close()
	if named != nil {
		err = errors.Join(err, named.Close())
	}
	return err
}
