// Package keeper keeps sockets open across the end of the daemon.
//
// A stock containerd takes a broken connection for the end of the task behind it.
// So the daemon's sockets are also in the hands of a small process that outlives
// it, the keeper: the program of the monitors (internal/monitor), whose service of
// keeping named descriptors is all that is needed. It has the listening sockets,
// each accepted connection of the sandboxes' own sockets, and with each
// connection a memory (journal) of the requests that were not answered. The next
// daemon takes all of it over, gives the unanswered requests to its server once
// more, and goes on. Handlers learn from package request which these are.
//
// The daemon reads and writes the connections itself; the keeper is only asked
// when one is accepted or closed. If the keeper dies, the daemon starts another.
package keeper

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/containerd/ttrpc"
	"golang.org/x/sys/unix"

	"caisson/internal/fault"
	"caisson/internal/monitor"
	"caisson/internal/request"
	"caisson/internal/undo"
)

// What the keeper keeps, by the beginning of its name. An owner is
// namespace/sandbox.
const (
	socketPrefix   = "s/" // a socket of the daemon's
	listenerPrefix = "l/" // owner: its socket
	connPrefix     = "c/" // owner/random: a connection and its journal
	greetedPrefix  = "g/" // number: a connection to the daemon's own that waits for one
)

// Config says which keeper to run. All fields are required.
type Config struct {
	Binary string // the monitor's program
	Dir    string // of its socket; made if need be
}

// name is what ps shows.
const name = "keeper"

const (
	callTimeout = 10 * time.Second
	// restartPause is between two attempts to start a keeper.
	restartPause = time.Second
	// drainLimit is how long calls under way may take when the daemon stops.
	drainLimit = 5 * time.Second
)

// Keeper is the daemon's side. It is safe for concurrent use.
type Keeper struct {
	cfg     Config
	closing chan struct{} // closed by Quiesce
	closed  chan struct{} // closed by Close
	quiesce func()
	wg      sync.WaitGroup // watch
	deaths  atomic.Uint64

	mu      sync.Mutex // guards the fields below
	conn    *monitor.Conn
	up      chan struct{} // closed while conn can be used
	files   map[string][]*os.File
	conns   map[string]*Conn
	left    map[string]*os.File                        // listeners that the last daemon left
	adopted map[string][]*Conn                         // connections that the last daemon left, by owner
	greet   func(context.Context, *monitor.Conn) error // nil: nobody is to be greeted
	frozen  bool
	calls   int           // under way, that come to an end
	drained chan struct{} // closed when there are none any more; nil until that is waited for
}

// Open finds the keeper, or starts one, and takes over what it has.
func Open(ctx context.Context, cfg Config) (_ *Keeper, err error) {
	k := &Keeper{
		cfg: cfg, closing: make(chan struct{}), closed: make(chan struct{}), up: make(chan struct{}),
		files: map[string][]*os.File{}, conns: map[string]*Conn{}, left: map[string]*os.File{}, adopted: map[string][]*Conn{},
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("keeper: %w", err)
	}
	k.conn, err = monitor.Dial(ctx, cfg.Dir)
	if errdefs.IsNotFound(err) || errdefs.IsUnavailable(err) {
		k.conn, err = k.start(ctx)
	}
	if err != nil {
		return nil, fmt.Errorf("keeper: %w", err)
	}
	if err := k.takeOver(ctx); err != nil {
		k.letGo()
		return nil, errors.Join(fmt.Errorf("keeper: %w", err), k.conn.Close())
	}
	close(k.up)
	k.quiesce = sync.OnceFunc(k.stopServing)
	k.wg.Go(k.watch)
	return k, nil
}

// Deaths is how often the keeper's process has ended since Open.
func (k *Keeper) Deaths() uint64 { return k.deaths.Load() }

func (k *Keeper) start(ctx context.Context) (*monitor.Conn, error) {
	return monitor.Start(ctx, monitor.Config{Binary: k.cfg.Binary, Dir: k.cfg.Dir, Name: name})
}

// takeOver fetches everything that the last daemon left.
func (k *Keeper) takeOver(ctx context.Context) error {
	names, err := k.conn.Kept(ctx)
	if err != nil {
		return err
	}
	for _, name := range names {
		if strings.HasPrefix(name, greetedPrefix) {
			continue // Greeted takes it when it can be served.
		}
		take := k.takeFile
		if strings.HasPrefix(name, connPrefix) {
			take = k.takeConn
		}
		err := undo.Try(ctx, func() error { return take(ctx, name) })
		if errdefs.IsDataLoss(err) {
			// One that cannot be understood must not keep the others from going on.
			log.G(ctx).WithError(err).WithField("connection", name).Error("connection not taken over")
			err = k.conn.Drop(ctx, name)
		}
		if err != nil {
			return err // It is still kept, for a daemon that starts later.
		}
	}
	return nil
}

// takeFile takes over a socket.
func (k *Keeper) takeFile(ctx context.Context, name string) error {
	files, err := k.conn.Fetch(ctx, name)
	if err == nil && len(files) != 1 {
		err = corrupt("descriptors", len(files))
	}
	if err != nil {
		return err
	}
	k.files[name] = files
	k.left[name] = files[0]
	return nil
}

// takeConn adopts a connection; one that has no client any more is dropped.
func (k *Keeper) takeConn(ctx context.Context, name string) (err error) {
	files, err := k.conn.Fetch(ctx, name)
	if err != nil {
		return err
	}
	defer func() {
		for _, f := range files {
			f.Close() // a duplicate of what is kept or was taken over
		}
	}()
	if len(files) != 2 {
		return corrupt("descriptors", len(files))
	}
	j := newJournal(files[1])
	if err := fault.Fail("keeper:adopt", unix.EMFILE); err != nil {
		return err
	}
	c, err := newConn(k, name, files[0], j)
	if err != nil {
		return err
	}
	files = files[:1]
	gone, err := c.adopt()
	if errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET) {
		gone, err = true, nil // just now
	}
	if err == nil && !gone {
		k.conns[name] = c
		k.adopted[c.owner()] = append(k.adopted[c.owner()], c)
		return nil
	}
	err = errors.Join(err, c.UnixConn.Close(), j.f.Close())
	if gone {
		return errors.Join(err, k.conn.Drop(ctx, name))
	}
	return err
}

// owner of the connection.
func (c *Conn) owner() string {
	owner := strings.TrimPrefix(c.name, connPrefix)
	return owner[:max(0, strings.LastIndexByte(owner, '/'))]
}

// watch starts another keeper when this one dies, and gives it everything.
func (k *Keeper) watch() {
	for {
		select {
		case <-k.conn.Done():
		case <-k.closed:
			return
		}
		k.mu.Lock()
		k.up = make(chan struct{})
		old := k.conn
		k.mu.Unlock()
		k.deaths.Add(1)
		log.L.WithError(old.Err()).Error("the keeper of connections died")
		for {
			err := k.restart()
			if err == nil {
				break
			}
			log.L.WithError(err).Error("start another keeper of connections")
			select {
			case <-time.After(restartPause):
			case <-k.closed:
				return
			}
		}
		_ = old.Close() // it is gone
	}
}

func (k *Keeper) restart() error {
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	conn, err := k.start(ctx)
	if err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	for name, files := range k.files {
		if err := conn.Keep(ctx, name, files...); err != nil {
			return errors.Join(err, conn.End(ctx, true), conn.Close())
		}
	}
	for name, c := range k.conns {
		if err := c.keep(ctx, conn); err != nil {
			return errors.Join(fmt.Errorf("connection %s: %w", name, err), conn.End(ctx, true), conn.Close())
		}
	}
	if k.greet != nil {
		if err := k.greet(ctx, conn); err != nil {
			return errors.Join(err, conn.End(ctx, true), conn.Close())
		}
	}
	k.conn = conn
	close(k.up)
	return nil
}

// keep hands the connection to a new keeper.
func (c *Conn) keep(ctx context.Context, to *monitor.Conn) error {
	sock, err := c.UnixConn.File()
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	if err != nil {
		return err
	}
	defer sock.Close()
	return to.Keep(ctx, c.name, sock, c.journal.f)
}

// use calls the keeper; while another one is being started, that takes a moment.
func (k *Keeper) use(ctx context.Context, f func(context.Context, *monitor.Conn) error) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	for {
		k.mu.Lock()
		up, conn := k.up, k.conn
		k.mu.Unlock()
		select {
		case <-up:
		case <-ctx.Done():
			return fmt.Errorf("the keeper of connections is away: %w", errdefs.ErrUnavailable)
		case <-k.closed:
			return fmt.Errorf("the daemon ends: %w", errdefs.ErrUnavailable)
		}
		err := f(ctx, conn)
		if conn.Err() == nil || ctx.Err() != nil {
			return err
		}
		select { // until watch has seen it, too
		case <-time.After(time.Millisecond):
		case <-k.closed:
			return err
		}
	}
}

func (k *Keeper) keep(ctx context.Context, name string, files ...*os.File) error {
	err := k.use(ctx, func(ctx context.Context, conn *monitor.Conn) error { return conn.Keep(ctx, name, files...) })
	if err == nil {
		k.mu.Lock()
		k.files[name] = files
		k.mu.Unlock()
	}
	return err
}

// forget lets the keeper close something.
func (k *Keeper) forget(name string) error {
	k.mu.Lock()
	delete(k.files, name)
	delete(k.conns, name)
	k.mu.Unlock()
	return k.use(context.Background(), func(ctx context.Context, conn *monitor.Conn) error { return conn.Drop(ctx, name) })
}

func (k *Keeper) accept(listener, name string, journal *os.File) (sock *os.File, err error) {
	err = k.use(context.Background(), func(ctx context.Context, conn *monitor.Conn) (err error) {
		sock, err = conn.Accept(ctx, listener, name, journal)
		return err
	})
	return sock, err
}

// add enters a connection; false: the daemon is about to end.
func (k *Keeper) add(c *Conn) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.frozen {
		c.freeze()
		return false
	}
	k.conns[c.name] = c
	return true
}

func (k *Keeper) takeListener(name string) *os.File {
	k.mu.Lock()
	defer k.mu.Unlock()
	sock := k.left[name]
	delete(k.left, name)
	return sock
}

func (k *Keeper) takeConns(owner string) []*Conn {
	k.mu.Lock()
	defer k.mu.Unlock()
	conns := k.adopted[owner]
	delete(k.adopted, owner)
	return conns
}

// Connected tells whether a client of the owner's is connected since before the
// daemon started.
func (k *Keeper) Connected(owner string) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.adopted[owner]) > 0
}

// Owes tells whether a request that an earlier daemon had still waits for its
// answer, and so will come again.
func (k *Keeper) Owes(id string) bool {
	k.mu.Lock()
	c := k.conns[connOf(id)]
	k.mu.Unlock()
	return c != nil && c.owes(id)
}

func connOf(id string) string { return id[:max(0, strings.LastIndexByte(id, '/'))] }

func (c *Conn) owes(id string) bool {
	c.journal.mu.Lock()
	defer c.journal.mu.Unlock()
	for stream, s := range c.journal.slots {
		if c.id(stream) == id {
			return s.again && s.state == received
		}
	}
	return false
}

// Request finds out which request a ttrpc call belongs to.
func (k *Keeper) Request(ctx context.Context) request.Request {
	md, _ := ttrpc.GetMetadata(ctx)
	id := idOf(md)
	if id == "" {
		return request.Request{}
	}
	k.mu.Lock()
	c := k.conns[connOf(id)]
	k.mu.Unlock()
	var stream uint32
	if _, err := fmt.Sscan(id[len(connOf(id))+1:], &stream); err != nil || c == nil {
		return request.Request{}
	}
	return c.request(stream)
}

// Serving notes that a call is under way, until the returned function is called:
// one that a daemon which stops should finish.
func (k *Keeper) Serving() (done func()) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.calls++
	return func() {
		k.mu.Lock()
		defer k.mu.Unlock()
		if k.calls--; k.calls == 0 && k.drained != nil {
			close(k.drained)
			k.drained = nil
		}
	}
}

// Rest are the connections, by their owners, and forgets the sockets, that nobody
// has asked for: they belong to what has been removed since.
func (k *Keeper) Rest() (map[string][]*Conn, error) {
	k.mu.Lock()
	conns := k.adopted
	k.adopted = map[string][]*Conn{}
	var unused []string
	for name := range k.left {
		if strings.HasPrefix(name, listenerPrefix) {
			unused = append(unused, name)
		}
	}
	k.mu.Unlock()
	var errs []error
	for _, name := range unused {
		errs = append(errs, k.takeListener(name).Close(), k.forget(name))
	}
	return conns, errors.Join(errs...)
}

// Quiesce is the first step of a stop: no request is read any more, those under
// way are finished, and from then on none is answered. All other errors of a
// daemon that takes itself apart stay its own.
func (k *Keeper) Quiesce() { k.quiesce() }

func (k *Keeper) stopServing() {
	close(k.closing)
	drained := make(chan struct{})
	k.mu.Lock()
	if k.calls == 0 {
		close(drained)
	} else {
		k.drained = drained
	}
	k.mu.Unlock()
	select {
	case <-drained:
	case <-time.After(drainLimit):
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.frozen = true
	for _, c := range k.conns {
		c.freeze()
	}
}

// Close lets go of everything. The keeper lives on unless all that is left are the
// daemon's own sockets.
func (k *Keeper) Close(ctx context.Context) error {
	k.Quiesce()
	k.mu.Lock()
	conns := make([]*Conn, 0, len(k.conns))
	for _, c := range k.conns {
		conns = append(conns, c)
	}
	k.mu.Unlock()
	var errs []error
	for _, c := range conns {
		errs = append(errs, c.Close())
	}
	close(k.closed)
	k.wg.Wait()
	k.letGo()
	names, err := k.conn.Kept(ctx)
	needed := false
	for _, name := range names {
		needed = needed || strings.HasPrefix(name, listenerPrefix) || strings.HasPrefix(name, connPrefix)
	}
	if err == nil && !needed {
		err = k.conn.End(ctx, true)
	}
	return errors.Join(append(errs, err, k.conn.Close())...)
}

// letGo closes the daemon's own files.
func (k *Keeper) letGo() {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, files := range k.files {
		for _, f := range files {
			f.Close() // others have it too
		}
	}
	for _, c := range k.conns {
		c.UnixConn.Close()
		c.journal.f.Close()
	}
}
