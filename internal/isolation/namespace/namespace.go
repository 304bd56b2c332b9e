// Package namespace walls off sandboxes with Linux namespaces.
//
// A sandbox is two small processes: the monitor in the host's namespaces, and
// the holder, its child, in the sandbox's. As long as the holder lives, the
// namespaces can be joined through /proc/<pid>/ns. Neither needs the daemon.
package namespace

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"caisson/internal/fault"
	"caisson/internal/isolation"
	"caisson/internal/monitor"
	"caisson/internal/undo"
)

// Name is what clients call this isolation.
const Name = "namespace"

// Isolation starts and finds monitors and holders.
type Isolation struct {
	binary string
	pool   *Pool
}

var _ isolation.Isolation = (*Isolation)(nil)

// New returns an isolation whose monitors run the given program, or come from a pool if
// it has one that waits; pool may be nil, and stays the caller's.
func New(monitorBinary string, pool *Pool) *Isolation {
	return &Isolation{binary: monitorBinary, pool: pool}
}

// Start starts a monitor and, where there are walls, a holder.
func (i *Isolation) Start(ctx context.Context, cfg isolation.Config) (_ isolation.Instance, err error) {
	var holder monitor.Process
	begin := func(ctx context.Context, conn *monitor.Conn) (err error) {
		holder, err = putUp(ctx, conn, cfg)
		return err
	}
	conn := i.pool.take(ctx, cfg.Dir, cfg.Name)
	if conn == nil {
		if conn, err = monitor.Start(ctx, monitor.Config{Binary: i.binary, Dir: cfg.Dir, Name: cfg.Name, First: begin}); err != nil {
			return nil, fmt.Errorf("start monitor: %w", err)
		}
	} else {
		defer i.pool.settled()
		if err = begin(ctx, conn); err != nil {
			var steps undo.Stack
			steps.Add("monitor", func(ctx context.Context) error { return errors.Join(end(ctx, conn), conn.Close()) })
			return nil, errors.Join(err, steps.Run(ctx))
		}
	}
	return &instance{conn: conn, holder: holder, namespaces: madeNamespaces(holder, cfg)}, nil
}

// putUp asks a monitor for a holder, where there are walls, and for the exits of processes.
// It does one after the other; to ask for both at once spares waiting twice.
func putUp(ctx context.Context, conn *monitor.Conn, cfg isolation.Config) (holder monitor.Process, err error) {
	if err := conn.EndWithProcess(); err != nil {
		return holder, err
	}
	var subscribed error
	var work sync.WaitGroup
	work.Go(func() { subscribed = subscribe(ctx, conn) })
	if cfg.Walls {
		holder, err = hold(ctx, conn, cfg)
	}
	work.Wait()
	return holder, errors.Join(err, subscribed)
}

// Load connects to the monitor in dir.
func (i *Isolation) Load(ctx context.Context, dir string) (_ isolation.Instance, err error) {
	conn, err := monitor.Dial(ctx, dir)
	if err != nil {
		return nil, fmt.Errorf("find monitor: %w", err)
	}
	defer func() {
		if err != nil {
			conn.Close()
		}
	}()
	records, err := conn.List(ctx)
	if err != nil {
		return nil, fmt.Errorf("find holder: %w", err)
	}
	var holder monitor.Process
	for _, r := range records {
		if r.Kind == monitor.Holder {
			holder = r.Process
		}
	}
	if err := conn.EndWithProcess(); err != nil {
		return nil, err
	}
	// Its answer says that it lives, so the pid is still its own.
	if err := subscribe(ctx, conn); err != nil {
		return nil, err
	}
	return &instance{conn: conn, holder: holder, namespaces: foundNamespaces(holder, slices.Collect(maps.Keys(files))...)}, nil
}

func subscribe(ctx context.Context, conn *monitor.Conn) error {
	if err := conn.Subscribe(ctx); err != nil {
		return fmt.Errorf("subscribe to exits: %w", err)
	}
	return nil
}

func hold(ctx context.Context, conn *monitor.Conn, cfg isolation.Config) (monitor.Process, error) {
	req := monitor.HoldRequest{
		User:   cfg.UserNS,
		NewIPC: cfg.NewIPC,
		NewUTS: cfg.NewUTS,
		NewPID: cfg.NewPID,
	}
	if cfg.NewUTS {
		req.Hostname = cfg.Hostname
	}
	for _, name := range slices.Sorted(maps.Keys(cfg.Sysctls)) {
		req.Sysctls = append(req.Sysctls, monitor.Sysctl{Key: sysctlPath(name), Value: cfg.Sysctls[name]})
	}
	if cfg.NetNS != "" {
		if err := fault.Fail("holder:netns", unix.EMFILE); err != nil {
			return monitor.Process{}, fmt.Errorf("network namespace %q: %w", cfg.NetNS, err)
		}
		f, err := os.Open(cfg.NetNS)
		if err != nil {
			return monitor.Process{}, fmt.Errorf("network namespace %q: %w: %w", cfg.NetNS, err, errdefs.ErrFailedPrecondition)
		}
		defer f.Close()
		req.Net = f
	}
	holder, err := conn.Hold(ctx, req)
	if err != nil {
		return monitor.Process{}, fmt.Errorf("start holder: %w", err)
	}
	return holder, nil
}

// sysctlPath turns a sysctl's name into its path below /proc/sys. As in
// sysctl(8), the separator that comes first is the separator, so that a dot in
// an interface's name can be written: net/ipv4/conf/eth0.100/forwarding.
func sysctlPath(name string) string {
	if i := strings.IndexAny(name, "./"); i < 0 || name[i] == '/' {
		return name
	}
	return strings.Map(func(r rune) rune {
		switch r {
		case '.':
			return '/'
		case '/':
			return '.'
		}
		return r
	}, name)
}

// end stops a monitor and everything below it. One that is gone already is no error.
func end(ctx context.Context, conn *monitor.Conn) error {
	if err := conn.End(ctx, true); err != nil && !errdefs.IsUnavailable(err) {
		return fmt.Errorf("end monitor: %w", err)
	}
	return nil
}

// instance is a running monitor, with or without a holder.
type instance struct {
	conn   *monitor.Conn
	holder monitor.Process

	namespaces map[specs.LinuxNamespaceType]string // the sandbox's own

	mu     sync.Mutex // guards what follows
	exit   *monitor.Exit
	closed bool
}

// Watch passes on the exits of members and keeps the holder's for itself. Close is not
// the end of the walls.
func (in *instance) Watch(w isolation.Watcher) {
	fallen := sync.OnceFunc(w.Fallen)
	in.conn.Deliver(func(e monitor.Exit) {
		if e.Kind != monitor.Holder {
			w.Exited(e)
			return
		}
		in.mu.Lock()
		in.exit = &e
		in.mu.Unlock()
		fallen()
	}, func() {
		w.Gone()
		in.mu.Lock()
		closed := in.closed
		in.mu.Unlock()
		if !closed {
			fallen()
		}
	})
}

func (in *instance) Host() isolation.Host { return in.conn }
func (in *instance) Pid() int             { return in.holder.Pid }

func (in *instance) Close() error {
	in.mu.Lock()
	in.closed = true
	in.mu.Unlock()
	return in.conn.Close()
}

func (in *instance) End(ctx context.Context) error { return end(ctx, in.conn) }

func (in *instance) Exit() *monitor.Exit {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.exit
}

// files are the names of the namespaces in /proc/<pid>/ns.
var files = map[specs.LinuxNamespaceType]string{
	specs.NetworkNamespace: "net",
	specs.IPCNamespace:     "ipc",
	specs.UTSNamespace:     "uts",
	specs.PIDNamespace:     "pid",
	specs.UserNamespace:    "user",
}

// Namespaces are the sandbox's own, by path.
func (in *instance) Namespaces() map[specs.LinuxNamespaceType]string {
	return maps.Clone(in.namespaces)
}

// madeNamespaces are those of a holder that was just started: what was made for it is its
// own, and what it joined if it is not the daemon's as well.
func madeNamespaces(holder monitor.Process, cfg isolation.Config) map[specs.LinuxNamespaceType]string {
	own := map[specs.LinuxNamespaceType]string{}
	if !cfg.Walls {
		return own
	}
	if cfg.NetNS != "" {
		own = foundNamespaces(holder, specs.NetworkNamespace)
	}
	for kind, made := range map[specs.LinuxNamespaceType]bool{
		specs.IPCNamespace:  cfg.NewIPC,
		specs.UTSNamespace:  cfg.NewUTS,
		specs.PIDNamespace:  cfg.NewPID,
		specs.UserNamespace: cfg.UserNS != nil,
	} {
		if made {
			own[kind] = namespacePath(holder, kind)
		}
	}
	return own
}

// foundNamespaces compares a holder's namespaces of these kinds with the daemon's: what
// differs is the sandbox's. Nothing has to be remembered for that.
func foundNamespaces(holder monitor.Process, kinds ...specs.LinuxNamespaceType) map[specs.LinuxNamespaceType]string {
	own := map[specs.LinuxNamespaceType]string{}
	if holder.Pid == 0 {
		return own
	}
	for _, kind := range kinds {
		path := namespacePath(holder, kind)
		theirs, err := os.Readlink(path)
		if err != nil {
			continue // The holder is gone; its exit says so.
		}
		if ours, err := os.Readlink("/proc/self/ns/" + files[kind]); err == nil && ours != theirs {
			own[kind] = path
		}
	}
	return own
}

func namespacePath(holder monitor.Process, kind specs.LinuxNamespaceType) string {
	return "/proc/" + strconv.Itoa(holder.Pid) + "/ns/" + files[kind]
}
