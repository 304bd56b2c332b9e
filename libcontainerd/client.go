package libcontainerd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/identifiers"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// Options of a client; Namespace, StateDir and Backend are required.
type Options struct {
	// Namespace is containerd's, of everything that the client does.
	Namespace string
	// StateDir keeps FIFOs, and what the backend has been told, for the next client
	// with the same directory; it is locked, for only one at a time may use it. Let
	// it be on tmpfs: it need not outlive the machine's processes.
	StateDir string
	Backend  Backend
	// Logger is the standard one if nil.
	Logger *log.Entry
}

// New makes a client of the server that cli is connected to; cli must stay open
// until the client is closed. The server need not be there yet. ctx is used for its
// values alone. InvalidArgument: an option is missing or wrong. FailedPrecondition:
// another client uses the StateDir.
func New(ctx context.Context, cli *containerd.Client, opts Options) (Client, error) {
	if err := identifiers.Validate(opts.Namespace); err != nil {
		return nil, fmt.Errorf("libcontainerd: namespace: %w", err)
	}
	if !filepath.IsAbs(opts.StateDir) {
		return nil, fmt.Errorf("libcontainerd: StateDir %q is no absolute path: %w", opts.StateDir, errdefs.ErrInvalidArgument)
	}
	if cli == nil || opts.Backend == nil {
		return nil, fmt.Errorf("libcontainerd: a containerd client and a Backend are needed: %w", errdefs.ErrInvalidArgument)
	}
	if err := os.MkdirAll(opts.StateDir, 0o700); err != nil {
		return nil, local(err, "libcontainerd: StateDir")
	}
	dir, err := lockDir(opts.StateDir)
	if err != nil {
		return nil, local(err, "libcontainerd")
	}
	if opts.Logger == nil {
		opts.Logger = log.G(ctx)
	}
	c := &client{
		server:  cli,
		ns:      opts.Namespace,
		dir:     opts.StateDir,
		backend: opts.Backend,
		log:     opts.Logger.WithField("module", "libcontainerd").WithField("namespace", opts.Namespace),
		ledgers: map[key]*ledger{},
		unlock:  sync.OnceValue(func() error { return unlockDir(dir) }),
	}
	c.ctx, c.cancel = context.WithCancel(c.with(context.WithoutCancel(ctx)))
	c.spawn(c.listen)
	return c, nil
}

var _ Client = (*client)(nil)

type client struct {
	server  *containerd.Client
	ns, dir string
	backend Backend
	log     *log.Entry
	ctx     context.Context // of the goroutines, until Close
	cancel  context.CancelFunc

	// ids has a lock for each id that something of is made, found or forgotten, so
	// that the server's answer still holds when the ledger is touched; before mu.
	ids     locks
	hears   atomic.Bool // the event stream is there
	mu      sync.Mutex  // guards ledgers; before the ledgers' own
	ledgers map[key]*ledger

	life    sync.Mutex // guards closed; last of all
	closed  bool
	running sync.WaitGroup
	unlock  func() error // the directory, once
}

type key struct {
	kind kind
	id   string
}

// with puts the client's namespace into the context of a call.
func (c *client) with(ctx context.Context) context.Context {
	return namespaces.WithNamespace(ctx, c.ns)
}

// begin starts a call of the engine's; end must be called after it. The context has
// the client's namespace and ends with the client, so that nothing of a closed
// client is under way when the next one loads what it left.
func (c *client) begin(ctx context.Context) (_ context.Context, end func(), err error) {
	c.life.Lock()
	defer c.life.Unlock()
	if c.closed {
		return nil, nil, ErrClosed
	}
	c.running.Add(1)
	ctx, cancel := context.WithCancelCause(c.with(ctx))
	stop := context.AfterFunc(c.ctx, func() { cancel(ErrClosed) })
	return ctx, func() {
		stop()
		cancel(nil)
		c.running.Done()
	}, nil
}

// ErrClosed is what calls to a closed client return.
var ErrClosed = fmt.Errorf("libcontainerd: the client is closed: %w", errdefs.ErrFailedPrecondition)

// spawn runs f until it returns, which it does soon after its context ends. False:
// the client is closed.
func (c *client) spawn(f func(context.Context)) bool {
	c.life.Lock()
	defer c.life.Unlock()
	if c.closed {
		return false
	}
	c.running.Go(func() { f(c.ctx) })
	return true
}

// undoing is the context of what takes back a call that failed, perhaps because its
// own context ended.
func undoing(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
}

func (c *client) Close() error {
	c.life.Lock()
	c.closed = true
	c.life.Unlock()
	c.cancel()
	c.running.Wait()
	for _, l := range c.all() {
		c.forget(l) // if a call learned too late for a teller that its container is gone
	}
	return c.unlock()
}

func (c *client) Version(ctx context.Context) (containerd.Version, error) {
	ctx, end, err := c.begin(ctx)
	if err != nil {
		return containerd.Version{}, err
	}
	defer end()
	v, err := c.server.Version(ctx)
	return v, failed(err, "server version")
}

func (c *client) NewContainer(ctx context.Context, id string, spec *specs.Spec, shim string, runtimeOptions any, opts ...containerd.NewContainerOpts) (Container, error) {
	if err := identifiers.Validate(id); err != nil {
		return nil, fmt.Errorf("container: %w", err)
	}
	if spec == nil || spec.Process == nil {
		return nil, fmt.Errorf("container %q: a spec with a process is needed: %w", id, errdefs.ErrInvalidArgument)
	}
	ctx, end, err := c.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	opts = append([]containerd.NewContainerOpts{containerd.WithSpec(spec), containerd.WithRuntime(shim, runtimeOptions)}, opts...)
	unlock, err := c.ids.lock(ctx, key{containers, id})
	if err != nil {
		return nil, fmt.Errorf("container: create: %w", err)
	}
	defer unlock()
	ctr, err := c.server.NewContainer(ctx, id, opts...)
	if err != nil {
		return nil, failed(err, "container %q: create", id)
	}
	// What an earlier container of the id left is told before the new one's events.
	l, err := c.open(containers, id, func(l *ledger) {
		l.containerGone()
		l.made()
	})
	if err != nil {
		ctx, cancel := undoing(ctx)
		defer cancel()
		return nil, errors.Join(err, failed(ctr.Delete(ctx), "container %q: undo", id))
	}
	return newContainer(l, ctr), nil
}

func (c *client) LoadContainer(ctx context.Context, id string) (Container, error) {
	if err := identifiers.Validate(id); err != nil {
		return nil, fmt.Errorf("container: %w", err)
	}
	ctx, end, err := c.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	ctr, l, err := c.find(ctx, id)
	if err != nil {
		return nil, err
	}
	if err := c.reconcile(ctx, l); err != nil {
		return nil, fmt.Errorf("container %q: load: %w", id, err)
	}
	return newContainer(l, ctr), nil
}

func (c *client) find(ctx context.Context, id string) (containerd.Container, *ledger, error) {
	unlock, err := c.ids.lock(ctx, key{containers, id})
	if err != nil {
		return nil, nil, fmt.Errorf("container: load: %w", err)
	}
	defer unlock()
	ctr, err := c.server.LoadContainer(ctx, id)
	if err = failed(err, "container %q: load", id); errdefs.IsNotFound(err) {
		_, lerr := c.open(containers, id, (*ledger).containerGone)
		return nil, nil, errors.Join(err, lerr)
	}
	if err != nil {
		return nil, nil, err
	}
	l, err := c.open(containers, id, (*ledger).exists)
	return ctr, l, err
}

// open returns the ledger of the id; a new one has what an earlier program wrote
// down. prepare is called for it before anything is told. The id is locked.
func (c *client) open(k kind, id string, prepare func(*ledger)) (*ledger, error) {
	l := c.ledger(k, id)
	if l == nil {
		l = &ledger{client: c, kind: k, id: id, dir: filepath.Join(c.dir, string(k), id)}
		if err := l.load(); err != nil {
			return nil, err
		}
		c.mu.Lock()
		c.ledgers[key{k, id}] = l
		c.mu.Unlock()
	}
	if prepare != nil {
		prepare(l)
	}
	l.update(func() {})
	return l, nil
}

func (c *client) ledger(k kind, id string) *ledger {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.ledgers[key{k, id}]
}

func (c *client) all() []*ledger {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := make([]*ledger, 0, len(c.ledgers))
	for _, l := range c.ledgers {
		all = append(all, l)
	}
	return all
}

// forget drops the ledger of a container that is gone, and its directory, unless
// the id was taken again meanwhile.
func (c *client) forget(l *ledger) {
	unlock, err := c.ids.lock(context.WithoutCancel(c.ctx), key{l.kind, l.id})
	if err != nil {
		return // never: the context does not end, and the calls that Close waits for do
	}
	defer unlock()
	l.saving.Lock()
	defer l.saving.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.deleted || len(l.untold) > 0 || l.telling || c.ledgers[key{l.kind, l.id}] != l {
		return
	}
	delete(c.ledgers, key{l.kind, l.id})
	if err := os.RemoveAll(l.dir); err != nil {
		c.log.WithError(err).WithField("container", l.id).Error("directory stays behind")
	}
}
