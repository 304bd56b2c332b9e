// Package isolation says how a sandbox is walled off from the host.
//
// An Isolation makes the walls and finds them again after a daemon restart; the
// Instance it returns is one sandbox's walls, and the place where the processes
// of its containers are run. The controller and the tasks know nothing else of
// it, so that another kind of wall (a virtual machine) is another
// implementation of these two interfaces and no change elsewhere.
package isolation

import (
	"context"
	"os"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"caisson/internal/monitor"
)

// Config is what a sandbox's walls are made from.
type Config struct {
	// Name is shown in process lists.
	Name string
	// Dir is the sandbox's run-time directory; the isolation keeps its sockets there.
	Dir string
	// Walls is false for the sandbox of a single container that brings its own
	// namespaces: processes are run and watched, nothing is shared.
	Walls bool
	// Hostname inside the sandbox.
	Hostname string
	// NetNS is the path of the network namespace to join; the host's if empty.
	NetNS string
	// UserNS is the user namespace that owns the sandbox's other namespaces; the
	// host's if nil. The file stays the caller's.
	UserNS *os.File
	// NewIPC, NewUTS and NewPID say which namespaces the sandbox has of its own.
	NewIPC, NewUTS, NewPID bool
	// Sysctls by dotted name, written from inside.
	Sysctls map[string]string
}

// Isolation makes and finds sandboxes' walls.
type Isolation interface {
	// Start puts up the walls. On error nothing is left. It must not be repeated
	// for a directory whose instance still lives.
	Start(context.Context, Config) (Instance, error)
	// Load finds the instance in dir after a restart of the daemon. NotFound or
	// Unavailable: it is gone and leaves nothing but files in dir.
	Load(ctx context.Context, dir string) (Instance, error)
}

// Instance is a sandbox's walls.
type Instance interface {
	// Host runs the sandbox's processes.
	Host() Host
	// Watch begins to tell what happens to the sandbox. It is called once.
	Watch(Watcher)
	// Pid is the process that stands for the sandbox, 0 without walls.
	Pid() int
	// Namespaces that members join; a type that is missing here is the host's.
	Namespaces() map[specs.LinuxNamespaceType]string
	// Exit tells how the walls have fallen, once Watcher.Fallen was called: nil if
	// nobody knows.
	Exit() *monitor.Exit
	// End takes the walls down, with every process that is still inside. It may
	// be repeated.
	End(context.Context) error
	// Close lets go of the instance without touching it. No call of its Watcher is
	// under way when it returns, and none comes any more.
	Close() error
}

// Watcher is told what happens to a sandbox, one call at a time. A call may be slow, and
// may use the Host, but must not close the Instance.
type Watcher struct {
	// Exited is called for every process of the sandbox that ended and was not
	// acknowledged, those that ended while no daemon was there first.
	Exited func(monitor.Exit)
	// Fallen is called when the walls have fallen: the process that stands for the
	// sandbox ended, or what watches over it did.
	Fallen func()
	// Gone is called when there is nothing more to tell: what watches over the sandbox
	// is gone, or the Instance was closed.
	Gone func()
}

// Host is where the processes of a sandbox run and are waited for. Its
// implementation is the connection to the sandbox's monitor.
type Host interface {
	// Pid of the process that is the parent of all others.
	Pid() int
	Spawn(context.Context, monitor.SpawnRequest) (monitor.Process, error)
	Signal(ctx context.Context, serial uint64, signal unix.Signal) error
	SignalOnce(ctx context.Context, serial uint64, signal unix.Signal, token uint64) error
	List(context.Context) ([]monitor.Record, error)
	Ack(ctx context.Context, serial uint64) error
	Keep(ctx context.Context, name string, files ...*os.File) error
	KeepFIFO(ctx context.Context, name string, path *os.File) (*os.File, error)
	Fetch(ctx context.Context, name string) ([]*os.File, error)
	Accept(ctx context.Context, listener, name string, files ...*os.File) (*os.File, error)
	Drop(ctx context.Context, name string) error
	DropPrefix(ctx context.Context, prefix string) error
}
