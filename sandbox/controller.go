// Package sandbox implements containerd's Sandbox API: a Store of sandbox
// records, and a Controller for the sandboxes' life.
//
// The types of the API are containerd's own, of core/sandbox. A Controller
// keeps nothing in memory alone: the Store, a directory on tmpfs per sandbox and
// the sandbox's monitor hold all that a new daemon needs, and Load takes over
// from them, whatever the old daemon was doing when it ended.
package sandbox

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"sync"
	"time"

	core "github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/containerd/v2/pkg/identifiers"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"

	"caisson/internal/isolation"
	"caisson/internal/network"
	"caisson/internal/task"
)

// Config is what a controller is made from; every field is required.
type Config struct {
	Store *Store
	// Dir is where sandboxes keep their run-time state, on tmpfs. Sockets are
	// made in directories below it, so it must be short.
	Dir string
	// Cgroup is the parent of the cgroups of sandboxes that name none.
	Cgroup string
	// Isolations by name; the first is what clients get that name none.
	Isolations []NamedIsolation
	Network    *network.Manager
	// DefaultNetwork is what clients get that ask for no network in particular.
	DefaultNetwork network.Mode
	Events         task.Publisher
	Runtime        RuntimeConfig
}

// NamedIsolation is an isolation under the name that clients ask for.
type NamedIsolation struct {
	Name string
	isolation.Isolation
}

// RuntimeConfig is how containers are run whose client does not say.
type RuntimeConfig struct {
	Name          string // of the OCI runtime, or its path
	Root          string // where it keeps its state
	SystemdCgroup bool
}

// Server serves the APIs of one sandbox (Task, Sandbox) on a listener of its own,
// until the returned function is called, which also closes the listener.
type Server interface {
	Serve(namespace, sandboxID string, l net.Listener) (stop func())
}

// Controller implements containerd's core/sandbox.Controller. It is safe for
// concurrent use; calls on different sandboxes never wait for each other. Every
// call needs a namespace in its context.
type Controller struct {
	cfg    Config
	server Server
	wg     sync.WaitGroup // watchers of sandboxes
	closed chan struct{}

	mu    sync.Mutex // guards boxes
	boxes map[key]*box
}

var _ core.Controller = (*Controller)(nil)

// key names a sandbox: IDs are unique per namespace.
type key struct{ namespace, id string }

func (k key) String() string { return k.namespace + "/" + k.id }

// hash is the name of the sandbox's directory: IDs may be too long for sockets.
func (k key) hash() string {
	sum := sha256.Sum256([]byte(k.String()))
	return hex.EncodeToString(sum[:6])
}

// NewController returns a controller without sandboxes; Load fills it.
func NewController(cfg Config) *Controller {
	return &Controller{cfg: cfg, closed: make(chan struct{}), boxes: map[key]*box{}}
}

// Close lets go of all sandboxes; they go on running.
func (c *Controller) Close() error {
	close(c.closed)
	c.mu.Lock()
	boxes := make([]*box, 0, len(c.boxes))
	for _, b := range c.boxes {
		boxes = append(boxes, b)
	}
	c.mu.Unlock()
	var errs []error
	for _, b := range boxes {
		errs = append(errs, b.close())
	}
	c.wg.Wait()
	return errors.Join(errs...)
}

func (c *Controller) isolation(name string) (isolation.Isolation, error) {
	for _, i := range c.cfg.Isolations {
		if name == "" || i.Name == name {
			return i.Isolation, nil
		}
	}
	return nil, fmt.Errorf("isolation %q is unknown: %w", name, errdefs.ErrInvalidArgument)
}

// keyOf takes the namespace from the context.
func keyOf(ctx context.Context, id string) (key, error) {
	ns, err := namespaces.NamespaceRequired(ctx)
	if err != nil {
		return key{}, err
	}
	if err := identifiers.Validate(id); err != nil {
		return key{}, fmt.Errorf("sandbox ID %q: %w", id, err)
	}
	return key{ns, id}, nil
}

// find returns a sandbox's box. A reserved endpoint is no sandbox.
func (c *Controller) find(ctx context.Context, id string) (*box, error) {
	b, err := c.findAny(ctx, id)
	if err != nil {
		return nil, err
	}
	if b.snapshot().Kind != kindSandbox {
		return nil, fmt.Errorf("sandbox %q: %w", id, errdefs.ErrNotFound)
	}
	return b, nil
}

func (c *Controller) findAny(ctx context.Context, id string) (*box, error) {
	k, err := keyOf(ctx, id)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	b, ok := c.boxes[k]
	if !ok {
		return nil, fmt.Errorf("sandbox %q: %w", id, errdefs.ErrNotFound)
	}
	return b, nil
}

// add enters a new box, or returns the one that is there and false.
func (c *Controller) add(k key, kind kind, state State) (*box, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if b, ok := c.boxes[k]; ok {
		return b, false
	}
	b := c.newBox(boxRecord{Namespace: k.namespace, ID: k.id, Kind: kind, State: state, CreatedAt: time.Now()})
	c.boxes[k] = b
	return b, true
}

func (c *Controller) drop(b *box) {
	c.mu.Lock()
	if c.boxes[b.k] == b {
		delete(c.boxes, b.k)
	}
	c.mu.Unlock()
}

func (c *Controller) dir(k key) string { return filepath.Join(c.cfg.Dir, k.hash()) }
