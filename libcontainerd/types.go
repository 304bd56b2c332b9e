package libcontainerd

import (
	"context"
	"syscall"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// EventType says what happened.
type EventType string

// The events of a container, its processes and sandboxes.
const (
	EventUnknown     EventType = "unknown"
	EventExit        EventType = "exit"
	EventOOM         EventType = "oom"
	EventCreate      EventType = "create"
	EventStart       EventType = "start"
	EventExecAdded   EventType = "exec-added"
	EventExecStarted EventType = "exec-started"
	EventPaused      EventType = "paused"
	EventResumed     EventType = "resumed"
)

// EventInfo says to whom it happened.
type EventInfo struct {
	// ContainerID is empty in the events of a sandbox.
	ContainerID string
	// ProcessID is the exec's id, or the container's, or the sandbox's, for its
	// first process.
	ProcessID string
	// Pid is in the host's PID namespace; 0 before an exec or a sandbox started, or
	// if the server does not say.
	Pid uint32
	// ExitCode is 128 plus the signal for a process that a signal ended.
	ExitCode uint32
	ExitedAt time.Time
	// Error says why an exit's code and time are not known.
	Error error
	// SandboxID is set in the events of a sandbox alone.
	SandboxID string
}

// Backend is told the events; the package comment says what it can rely on.
type Backend interface {
	// ProcessEvent takes an event; id is the container's, or the sandbox's. It is
	// called for one event of a container at a time, and for several containers at
	// once. It may call the client's methods, but not Close.
	ProcessEvent(id string, event EventType, ei EventInfo) error
}

// Process is a process of a container.
type Process interface {
	// Pid is the process's id on the host.
	Pid() uint32
	// Kill sends the signal. NotFound: the process has exited or never was.
	// Repeating it sends another signal.
	Kill(ctx context.Context, signal syscall.Signal) error
	// Resize sets the size of the process's terminal, in characters. NotFound: the
	// process is gone; other refusals, as of a process without a terminal, have the
	// server's class. It may be repeated.
	Resize(ctx context.Context, width, height uint32) error
	// Delete removes the process that has exited, and its FIFOs, and returns how it
	// exited; it waits until the output was read, see StdioCallback. FailedPrecondition:
	// it runs. It may be repeated after ErrUnavailable; NotFound then says that it is
	// done.
	Delete(ctx context.Context) (*containerd.ExitStatus, error)
}

// Client makes and finds containers and sandboxes. Its methods may be called at
// the same time. After Close all return ErrClosed, which is a FailedPrecondition, as
// do those of what the client made.
type Client interface {
	// Version is the server's. It may be repeated.
	Version(ctx context.Context) (containerd.Version, error)
	// LoadContainer returns a container that exists, and lets the backend know what
	// it missed of it. NotFound: there is none; what the backend was owed when the
	// container went is told all the same. DataLoss: what the backend was told is not
	// known, for the container's record in StateDir cannot be read. FailedPrecondition:
	// another version of this package wrote the record. InvalidArgument: there can be no
	// such id. It may be repeated.
	LoadContainer(ctx context.Context, containerID string) (Container, error)
	// NewContainer makes a container of the spec; shim is the runtime's name, such
	// as io.containerd.runc.v2, and runtimeOptions its options or nil.
	// AlreadyExists: the id is taken, perhaps by a first attempt that was
	// ErrUnavailable: LoadContainer finds it then. InvalidArgument: the id has
	// characters that containerd does not allow, or the spec is nil or has no Process.
	NewContainer(ctx context.Context, containerID string, spec *specs.Spec, shim string, runtimeOptions any, opts ...containerd.NewContainerOpts) (Container, error)
	// LoadSandbox returns a sandbox that exists, as LoadContainer does a container.
	LoadSandbox(ctx context.Context, sandboxID string) (Sandbox, error)
	// NewSandbox makes the sandbox and lets its sandboxer create it; if that
	// fails nothing is left, unless the server does not answer: then the id may be
	// taken, LoadSandbox finds the sandbox, and Shutdown removes it. AlreadyExists: the
	// id is taken, which is what a repetition after ErrUnavailable may find. NotFound:
	// there is no such sandboxer. InvalidArgument: the id has characters that containerd
	// does not allow, or no sandboxer is named.
	NewSandbox(ctx context.Context, sb sandbox.Sandbox, opts ...sandbox.CreateOpt) (Sandbox, error)
	// Close ends the client and waits for the events that are being told. Containers
	// run on. It may be repeated.
	Close() error
}

// Container is a container's metadata, and the way to its task. Once it was deleted its
// methods say NotFound, even if another has its id.
type Container interface {
	// NewTask creates the container's first process, which Start then lets run.
	// checkpointDir, if not empty, has what CreateCheckpoint left. A terminal is
	// made if the container's spec asks for one. AlreadyExists: the container has a
	// task. NotFound: the container, its runtime or its sandbox is not there.
	// ResourceExhausted: the backend is too far behind. InvalidArgument: checkpointDir is
	// no directory, the callback returned nothing, or the container's spec or options
	// cannot be read. It may be repeated after ErrUnavailable: what the first attempt
	// left is removed before, though one that the server comes to do late may still
	// have it say AlreadyExists, once.
	NewTask(ctx context.Context, checkpointDir string, withStdin bool, attachStdio StdioCallback) (Task, error)
	// Start is NewTask and the task's Start in one, with the errors of both; if that
	// fails no task is left, unless the server does not answer. It may be repeated as
	// NewTask.
	Start(ctx context.Context, checkpointDir string, withStdin bool, attachStdio StdioCallback) (Task, error)
	// Task returns the container's task. NotFound: it has none. It may be repeated.
	Task(ctx context.Context) (Task, error)
	// AttachTask is Task, and connects to the task's stdio again, after a restart of
	// the calling program. Only one reader may be connected to a task. NotFound: it has
	// none. What attachStdio returns as an error is returned, and nothing is connected.
	AttachTask(ctx context.Context, attachStdio StdioCallback) (Task, error)
	// Delete removes the container's metadata and its directory.
	// FailedPrecondition: it has a task. NotFound: it is gone, which is what a
	// repetition after ErrUnavailable may find.
	Delete(ctx context.Context) error
}

// Task is a container's first process, and through it the container that runs.
type Task interface {
	Process
	// Start lets the process run. It may be repeated after ErrUnavailable, and is
	// done if the first attempt was. NotFound: the task is gone; what keeps the process
	// from starting has the server's class.
	Start(ctx context.Context) error
	// Pause stops the container's processes until Resume. FailedPrecondition: they do
	// not run. It may be repeated after ErrUnavailable; FailedPrecondition then says
	// that it is paused. NotFound: the task is gone.
	Pause(ctx context.Context) error
	// Resume lets them go on. It may be repeated; the refusal of a container that is
	// not paused has the server's class. NotFound: the task is gone.
	Resume(ctx context.Context) error
	// Stats reads the container's cgroup. NotFound: the task is gone. It may be
	// repeated.
	Stats(ctx context.Context) (*Stats, error)
	// Pids lists the container's processes. NotFound: the task is gone. It may be
	// repeated.
	Pids(ctx context.Context) ([]containerd.ProcessInfo, error)
	// Summary is Pids with the execs that the processes belong to.
	Summary(ctx context.Context) ([]Summary, error)
	// ForceDelete kills what runs in the container, waits for it and deletes the
	// task. It may be repeated; a task that is gone is no error.
	ForceDelete(ctx context.Context) error
	// Status asks for the task's state. NotFound: it is gone. It may be repeated.
	Status(ctx context.Context) (containerd.Status, error)
	// Exec starts a further process in the container. AlreadyExists: the id is
	// taken. FailedPrecondition: the container does not run. NotFound: the task is gone.
	// ResourceExhausted: the backend is too far behind. InvalidArgument: the id has
	// characters that containerd does not allow or is the container's, the spec is nil,
	// or the callback returned nothing. It may be repeated after ErrUnavailable: what the
	// first attempt left is removed before, and if its process started the
	// repetition says AlreadyExists.
	Exec(ctx context.Context, processID string, spec *specs.Process, withStdin bool, attachStdio StdioCallback) (Process, error)
	// UpdateResources sets the limits of the container's cgroup; what is nil stays.
	// NotFound: the task is gone; what the kernel refuses has the server's class. It
	// may be repeated.
	UpdateResources(ctx context.Context, resources *Resources) error
	// CreateCheckpoint writes the state of the processes into the directory, which
	// it makes; with exit they end. It needs CRIU on the server, whose refusals have the
	// server's class. NotFound: the task is gone. After an error the directory may have
	// a part of it; the call may be repeated while the processes run.
	CreateCheckpoint(ctx context.Context, checkpointDir string, exit bool) error
}

// Sandbox is a group of containers that share a network, IPC and resources.
// Servers without a sandboxer for it answer NotFound or NotImplemented; NotFound is
// also what each method but Shutdown says of a sandbox that is gone.
type Sandbox interface {
	ID() string
	// Start lets the sandbox's containers be created. FailedPrecondition: it has
	// been started, which is what a repetition after ErrUnavailable may find. A
	// sandboxer may remove a sandbox that it cannot start.
	Start(ctx context.Context) error
	// Stop ends everything in the sandbox, gently for the time given. It may be
	// repeated.
	Stop(ctx context.Context, timeout time.Duration) error
	// Wait returns how the sandbox ended, once it has. It may be repeated.
	Wait(ctx context.Context) (*containerd.ExitStatus, error)
	// Status asks the sandboxer for the state, with details if verbose. It may be
	// repeated.
	Status(ctx context.Context, verbose bool) (sandbox.ControllerStatus, error)
	// Metrics reads the cgroup of the sandbox. It may be repeated.
	Metrics(ctx context.Context) (*Stats, error)
	// Update changes the fields of the record named by the paths, such as
	// "labels.tier" or "extensions", and lets the sandboxer follow. InvalidArgument:
	// the path of a field that cannot change. It may be repeated.
	Update(ctx context.Context, sb sandbox.Sandbox, fields ...string) error
	// Shutdown removes the sandbox, whatever its state, and its record. It may be
	// repeated, and a sandbox that is gone is no error.
	Shutdown(ctx context.Context) error
	// NewContainer is the client's, for a container that runs in the sandbox.
	NewContainer(ctx context.Context, containerID string, spec *specs.Spec, shim string, runtimeOptions any, opts ...containerd.NewContainerOpts) (Container, error)
}

// StdioCallback connects the stdio of a process; it gets the engine's ends of the
// FIFOs and returns what owns them from then on. Its Wait must return only when the
// output was read to its end, which Delete waits for before it removes the FIFOs; that
// of the DirectIO itself returns at once, which suits those who do not want the
// output. Closing Stdin closes the process's; it may be repeated if that fails.
type StdioCallback func(io *cio.DirectIO) (cio.IO, error)

// Stats are the metrics of a cgroup.
type Stats struct {
	Read time.Time
	// Metrics is a *stats.Metrics of github.com/containerd/cgroups/v3/cgroup1/stats
	// or cgroup2/stats.
	Metrics any
}

// Summary is a process of a container.
type Summary struct {
	Pid uint32
	// ExecID is empty for the container's first process and for what processes
	// started themselves.
	ExecID string
}

// Resources are the limits of a container's cgroup.
type Resources = specs.LinuxResources
