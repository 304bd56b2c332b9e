package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"golang.org/x/sys/unix"

	"caisson/internal/cgroup"
	"caisson/internal/fault"
	"caisson/internal/isolation"
	"caisson/internal/network"
	"caisson/internal/oci"
	"caisson/internal/statefile"
	"caisson/internal/task"
)

// State of a sandbox:
//
//	Reserved ──► Creating ──► Created ──► Starting ──► Ready ──► Stopping ──► Stopped
//	    │                        │           ▲  │         │                      ▲
//	    └────────────────────────┼───────────┘  └─────────┴──────────────────────┤
//	                             └───────────────────────────────────────────────┘
//
// Reserved is an endpoint that waits to learn what it is for: a sandbox, or a
// single container, which goes straight to Starting.
type State string

// The states of a sandbox.
const (
	Reserved State = "reserved"
	Creating State = "creating"
	Created  State = "created"
	Starting State = "starting"
	Ready    State = "ready"
	Stopping State = "stopping"
	Stopped  State = "stopped"
)

var allowed = map[State][]State{
	Reserved: {Creating, Starting},
	Creating: {Created, Reserved},
	Created:  {Starting, Stopped},
	Starting: {Ready, Stopped, Reserved},
	Ready:    {Stopping, Stopped},
	Stopping: {Stopped},
	Stopped:  {},
}

// kind of a box.
type kind string

const (
	kindSandbox kind = "sandbox" // made by Create
	kindSingle  kind = "single"  // made for one container that has no sandbox
	kindOpen    kind = "open"    // not known yet: Reserved
)

// recordName is the file of a sandbox's record in its directory.
const recordName = "sandbox.json"

// boxRecord is what the run-time directory says of a sandbox.
type boxRecord struct {
	// Schema of all records in the directory; see readBox.
	Schema        int `json:",omitempty"`
	Namespace, ID string
	Kind          kind
	State         State
	Settings      settings
	// NetNSPath is the sandbox's network namespace, the client's or our own.
	NetNSPath string
	Network   *network.Result `json:",omitempty"`
	Rootfs    []mount.Mount
	// Cgroup of the sandbox; OwnCgroup if it is ours to remove.
	Cgroup    string
	OwnCgroup bool
	// RuntimeName is the OCI runtime of the sandbox's containers.
	RuntimeName string
	// ByShim is set if the sandbox was made at a reserved endpoint, by containerd's
	// own sandboxer: it gives up on a sandbox as it does on a task, with Cleanup.
	ByShim bool `json:",omitempty"`
	// Bundle is what the endpoint was reserved for, a directory of containerd's.
	Bundle string `json:",omitempty"`
	// ClientsRecord is set if the client wrote the record in the store itself, and
	// so deletes it itself.
	ClientsRecord bool `json:",omitempty"`
	// Unclaimed is set until CRI shows that it knows of the sandbox's start: by
	// asking for it.
	Unclaimed bool `json:",omitempty"`
	// Removing is set once the sandbox is being removed: what is left of it then is
	// nobody's any more.
	Removing bool `json:",omitempty"`
	// NoFiles is set for a record that outlived its directory: the host restarted.
	NoFiles bool

	CreatedAt, StartedAt, ExitedAt time.Time
	// StopBy is until when the containers of a sandbox that is Stopping may take.
	StopBy     time.Time `json:",omitzero"`
	ExitStatus uint32
	// Reason says why a sandbox stopped that nobody asked to stop.
	Reason string
}

// box is one sandbox. The verbs that change it hold op one at a time.
type box struct {
	c     *Controller
	k     key
	dir   string
	tasks *task.Set
	files filesInUse

	op   chan struct{}
	done chan struct{} // closed when Stopped

	mu       sync.Mutex // guards the fields below
	rec      boxRecord
	inst     isolation.Instance // nil unless Ready or Stopping
	endpoint Endpoint           // nil if there is none
	// group is the sandbox's cgroup, nil until somebody asked for it.
	group *cgroup.Group
}

func (c *Controller) newBox(rec boxRecord) *box {
	b := &box{
		c:    c,
		k:    key{rec.Namespace, rec.ID},
		dir:  c.dir(key{rec.Namespace, rec.ID}),
		op:   make(chan struct{}, 1),
		done: make(chan struct{}),
		rec:  rec,
	}
	b.tasks = task.NewSet(task.Config{
		Namespace:     rec.Namespace,
		SandboxID:     rec.ID,
		Dir:           b.dir,
		RuntimeName:   b.runtimeName,
		RuntimeRoot:   c.cfg.Runtime.Root,
		SystemdCgroup: c.cfg.Runtime.SystemdCgroup,
		Membership:    b.membership,
		UseFiles:      b.useFiles,
		StdinStays:    func() bool { return b.snapshot().Settings.CRI },
		KeepsDeleted:  func() bool { return b.snapshot().Kind == kindSingle },
		Events:        c.cfg.Events,
		Owes:          func(request string) bool { return c.server.Owes(request) },
	})
	return b
}

func (b *box) runtimeName() string {
	if name := b.snapshot().RuntimeName; name != "" {
		return name
	}
	return b.c.cfg.Runtime.Name
}

// membership is what a container takes over from its sandbox.
func (b *box) membership(containerID string) oci.Membership {
	rec := b.snapshot()
	m := oci.Membership{DefaultCgroup: "/" + rec.Namespace + "/" + containerID}
	if rec.Kind != kindSandbox {
		return m
	}
	m.Namespaces, m.Files = b.namespaces(), b.memberFiles()
	m.UIDs, m.GIDs = rec.Settings.UIDs, rec.Settings.GIDs
	if rec.OwnCgroup {
		m.Cgroup = filepath.Join(rec.Cgroup, containerID)
	}
	return m
}

func (b *box) path(name string) string { return filepath.Join(b.dir, name) }

func (b *box) context() context.Context { return b.k.context() }

func (b *box) lock(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("sandbox %q: %w", b.k.id, err)
	}
	select {
	case b.op <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("sandbox %q: another call is under way: %w", b.k.id, ctx.Err())
	}
}

func (b *box) unlock() { <-b.op }

func (b *box) snapshot() boxRecord {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.rec
}

func (b *box) instance() isolation.Instance {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.inst
}

// move takes the sandbox to another state and writes that down. The caller
// holds op; on an error the state is as before.
func (b *box) move(to State, change func(*boxRecord)) error {
	rec := b.snapshot()
	if !slices.Contains(allowed[rec.State], to) {
		return fmt.Errorf("sandbox %q is %s: %w", rec.ID, rec.State, errdefs.ErrFailedPrecondition)
	}
	rec.State = to
	if change != nil {
		change(&rec)
	}
	if err := b.save(rec); err != nil {
		return err
	}
	log.G(b.context()).WithField("state", to).Debug("sandbox changed state")
	return nil
}

// note is move for what is a fact. One that cannot be written is logged and kept in
// memory: a full file system must not keep what fills it from being removed. The
// next daemon would find it out anew.
func (b *box) note(to State, change func(*boxRecord)) error {
	err := b.move(to, change)
	if err == nil || errdefs.IsFailedPrecondition(err) {
		return err
	}
	log.G(b.context()).WithError(err).Error("record the state of a sandbox")
	b.mu.Lock()
	defer b.mu.Unlock()
	b.rec.State = to
	change(&b.rec)
	return nil
}

// save replaces the record, on disk and in memory.
func (b *box) save(rec boxRecord) error {
	if !rec.NoFiles {
		err := fault.Fail("sandbox:dir", unix.ENOSPC)
		if err == nil {
			err = os.MkdirAll(b.dir, 0o700)
		}
		if err != nil {
			return fmt.Errorf("sandbox %q: %w", rec.ID, err)
		}
		rec.Schema = schemaOf(runMigrations)
		if err := statefile.Write(b.path(recordName), rec); err != nil {
			return fmt.Errorf("sandbox %q: %w", rec.ID, err)
		}
	}
	b.mu.Lock()
	b.rec = rec
	b.mu.Unlock()
	return nil
}

// Address is where the sandbox's Task API is served: it never changes.
func (b *box) address() string { return "unix://" + b.path(socketName) }

const socketName = "task.sock"

// maxSocketPath is the longest path of a unix socket.
const maxSocketPath = 107

// listen serves the sandbox's APIs; it does nothing if they are served already.
func (b *box) listen() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.endpoint != nil {
		return nil
	}
	path := b.path(socketName)
	if len(path) > maxSocketPath {
		return fmt.Errorf("sandbox %q: the socket path %s is longer than %d characters; choose a shorter state directory: %w", b.k.id, path, maxSocketPath, errdefs.ErrInvalidArgument)
	}
	if err := fault.Fail("sandbox:listen", unix.EMFILE, unix.ENOSPC); err != nil {
		return fmt.Errorf("sandbox %q: %w", b.k.id, err)
	}
	ep, err := b.c.server.Serve(b.k.namespace, b.k.id, path)
	if err != nil {
		return fmt.Errorf("sandbox %q: %w", b.k.id, err)
	}
	b.endpoint = ep
	return nil
}

// unlisten ends the sandbox's endpoint, for good or for this daemon.
func (b *box) unlisten(end func(Endpoint) error) error {
	b.mu.Lock()
	ep := b.endpoint
	b.endpoint = nil
	b.mu.Unlock()
	if ep == nil {
		return nil
	}
	if err := end(ep); err != nil {
		return fmt.Errorf("sandbox %q: close endpoint: %w", b.k.id, err)
	}
	return nil
}

// close lets go of the sandbox without touching it.
func (b *box) close() error {
	b.files.mu.Lock()
	b.files.stay()
	b.files.mu.Unlock()
	err := b.unlisten(Endpoint.Close)
	if inst := b.instance(); inst != nil {
		err = errors.Join(err, inst.Close())
	}
	b.tasks.Close()
	return err
}

// attach makes a running instance the sandbox's, and watches over it.
func (b *box) attach(inst isolation.Instance) {
	b.mu.Lock()
	b.inst = inst
	b.mu.Unlock()
	b.files.mu.Lock()
	b.filesIdle()
	b.files.mu.Unlock()
	b.tasks.Attach(inst.Host())
	inst.Watch(isolation.Watcher{
		Exited: b.tasks.Exited,
		Gone:   b.tasks.Gone,
		Fallen: func() { b.c.background(func() { b.fallen(inst) }) },
	})
}

// finish wakes those who wait for the sandbox's end.
func (b *box) finish() {
	select {
	case <-b.done:
	default:
		close(b.done)
	}
}
