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
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	core "github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/containerd/v2/pkg/identifiers"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"

	"caisson/internal/isolation"
	"caisson/internal/network"
	"caisson/internal/subject"
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
	// Patience is how long a CRI that did not notice the end of an earlier daemon
	// may take to go on with a sandbox that it was about to run; after that it has
	// given up on it. 0: CRI ends with the daemon.
	Patience time.Duration
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

// Server serves the APIs of sandboxes (Task, Sandbox).
type Server interface {
	// Serve serves those of one sandbox at a socket of its own. With a server
	// whose sockets outlive the daemon it is the one of an earlier daemon, and
	// the requests that this one left unanswered are made again at once.
	Serve(namespace, sandboxID, path string) (Endpoint, error)
	// Connected tells whether a client of the sandbox is still connected to a
	// socket of an earlier daemon that Serve was not called for yet.
	Connected(namespace, sandboxID string) bool
	// Owes tells whether a request to an earlier daemon will be made again.
	Owes(request string) bool
}

// Endpoint is where a sandbox is served.
type Endpoint interface {
	// Close ends the serving; the socket may live on for the next daemon.
	Close() error
	// Remove ends it for good.
	Remove() error
}

// Controller implements containerd's core/sandbox.Controller. It is safe for
// concurrent use; calls on different sandboxes never wait for each other. Every
// call needs a namespace in its context.
type Controller struct {
	cfg     Config
	server  Server
	wg      sync.WaitGroup // watchers of sandboxes
	bundles *bundles       // nil before Load
	closed  chan struct{}
	close   func() error

	// Sandboxes that ended by themselves, see Deaths.
	deadMonitors, deadHolders atomic.Uint64

	mu    sync.Mutex // guards the fields below
	ended bool       // no new watchers
	boxes map[key]*box
	// unread are the directories, by name, of sandboxes that Load could not read;
	// true: for a reason that may pass.
	unread map[string]bool
}

var _ core.Controller = (*Controller)(nil)

// key names a sandbox: IDs are unique per namespace.
type key struct{ namespace, id string }

func (k key) String() string { return k.namespace + "/" + k.id }

// context returns a context for work on the sandbox that no caller waits for.
func (k key) context() context.Context {
	ctx := namespaces.WithNamespace(context.Background(), k.namespace)
	return subject.With(ctx, subject.Subject{Namespace: k.namespace, SandboxID: k.id})
}

// hash is the name of the sandbox's directory: IDs may be too long for sockets.
func (k key) hash() string {
	sum := sha256.Sum256([]byte(k.String()))
	return hex.EncodeToString(sum[:6])
}

// NewController returns a controller without sandboxes; Load fills it.
func NewController(cfg Config) *Controller {
	c := &Controller{cfg: cfg, closed: make(chan struct{}), boxes: map[key]*box{}, unread: map[string]bool{}}
	c.close = sync.OnceValue(c.letGo)
	return c
}

// Close lets go of all sandboxes; they go on running. It may be repeated.
func (c *Controller) Close() error { return c.close() }

func (c *Controller) letGo() error {
	close(c.closed)
	c.mu.Lock()
	c.ended = true
	boxes := make([]*box, 0, len(c.boxes))
	for _, b := range c.boxes {
		boxes = append(boxes, b)
	}
	c.mu.Unlock()
	var errs []error
	if c.bundles != nil {
		errs = append(errs, c.bundles.watch.Close())
	}
	for _, b := range boxes {
		errs = append(errs, b.close())
	}
	c.wg.Wait()
	return errors.Join(errs...)
}

// background runs what Close waits for; after Close, nothing.
func (c *Controller) background(f func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.ended {
		c.wg.Go(f)
	}
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
		return nil, c.missingLocked(k)
	}
	return b, nil
}

// missingLocked says why there is no box. That a sandbox does not exist is said only
// if it is certain: clients forget it then.
func (c *Controller) missingLocked(k key) error {
	if _, ok := c.unread[k.hash()]; ok {
		return fmt.Errorf("sandbox %q: its files cannot be read, see the log: %w", k.id, errdefs.ErrUnavailable)
	}
	return fmt.Errorf("sandbox %q: %w", k.id, errdefs.ErrNotFound)
}

func (c *Controller) missing(k key) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.missingLocked(k)
}

// acquire finds a box and holds its op. What it returns was not removed while it
// waited for that.
func (c *Controller) acquire(ctx context.Context, id string, find func(context.Context, string) (*box, error)) (*box, error) {
	b, err := find(ctx, id)
	if err != nil {
		return nil, err
	}
	if err := b.lock(ctx); err != nil {
		return nil, err
	}
	if !c.current(b) {
		b.unlock()
		return nil, fmt.Errorf("sandbox %q: %w", id, errdefs.ErrNotFound)
	}
	return b, nil
}

// acquireOrAdd is the same for a box that is made if there is none; fresh tells
// that it was.
func (c *Controller) acquireOrAdd(ctx context.Context, k key) (b *box, fresh bool, err error) {
	if err := c.missing(k); !errdefs.IsNotFound(err) {
		return nil, false, err
	}
	for {
		b, fresh = c.add(k, kindOpen, Reserved)
		if fresh {
			if c.clashes(b) {
				c.drop(b)
				b.unlock()
				return nil, false, fmt.Errorf("sandbox %q: choose another ID: its directory %s is another sandbox's: %w", k.id, b.dir, errdefs.ErrFailedPrecondition)
			}
			return b, true, nil
		}
		if err := b.lock(ctx); err != nil {
			return nil, false, err
		}
		if c.current(b) {
			return b, false, nil
		}
		b.unlock()
	}
}

// clashes tells whether another sandbox has the directory that a new one would
// get: the hash is short, and somebody may look for two IDs that have the same.
func (c *Controller) clashes(b *box) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, other := range c.boxes {
		if other != b && other.dir == b.dir {
			return true
		}
	}
	return false
}

func (c *Controller) current(b *box) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.boxes[b.k] == b
}

// add enters a new box, with op held, or returns the one that is there and false.
func (c *Controller) add(k key, kind kind, state State) (*box, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if b, ok := c.boxes[k]; ok {
		return b, false
	}
	b := c.newBox(boxRecord{Namespace: k.namespace, ID: k.id, Kind: kind, State: state, CreatedAt: time.Now()})
	b.op <- struct{}{}
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
