// Package oci drives OCI runtimes (runc, crun) and joins a container's
// specification to its sandbox.
//
// What starts a process (create, exec, restore) is only described here, as a
// command line: it is the sandbox's monitor that runs it, so that the container
// becomes the monitor's child. Everything else is run by the daemon itself,
// through containerd's go-runc.
package oci

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/errdefs"
	runc "github.com/containerd/go-runc"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/opencontainers/runtime-spec/specs-go/features"
	"golang.org/x/sys/unix"

	"caisson/internal/fault"
)

// Runtime is an OCI runtime with the settings of one container.
type Runtime struct {
	// Binary is the runtime's absolute path.
	Binary string
	// Root is where the runtime keeps its containers' state; one per namespace.
	Root string
	// SystemdCgroup lets systemd make the cgroups.
	SystemdCgroup bool
	// NoPivotRoot and NoNewKeyring are passed to create and restore.
	NoPivotRoot, NoNewKeyring bool
}

// Find returns the absolute path of the OCI runtime called name, which may be a
// path. NotFound: there is none.
func Find(name string) (string, error) {
	path, err := exec.LookPath(name)
	if err != nil {
		return "", fmt.Errorf("OCI runtime %q: not installed, or not in caissond's PATH: %w", name, errdefs.ErrNotFound)
	}
	return filepath.Abs(path)
}

// Files are the paths a runtime is given for one call.
type Files struct {
	Log     string // the runtime's log, JSON lines
	Pid     string // where it writes the pid of the process it started
	Console string // socket that receives the terminal; no terminal if empty
}

func (r Runtime) global(log string) []string {
	args := []string{r.Binary, "--root", r.Root, "--log", log, "--log-format", "json"}
	if r.SystemdCgroup {
		args = append(args, "--systemd-cgroup")
	}
	return args
}

func (f Files) args() []string {
	args := []string{"--pid-file", f.Pid}
	if f.Console != "" {
		args = append(args, "--console-socket", f.Console)
	}
	return args
}

func (r Runtime) startFlags() []string {
	var args []string
	if r.NoPivotRoot {
		args = append(args, "--no-pivot")
	}
	if r.NoNewKeyring {
		args = append(args, "--no-new-keyring")
	}
	return args
}

// CreateArgs is the command line that creates container id from bundle.
func (r Runtime) CreateArgs(id, bundle string, f Files) []string {
	args := append(r.global(f.Log), "create", "--bundle", bundle)
	args = append(args, f.args()...)
	args = append(args, r.startFlags()...)
	return append(args, id)
}

// oldest is a version of the specification that every runtime takes.
const oldest = "1.0.2"

// Accept edits a specification for the sake of runtimes that refuse versions of
// it that came after them (crun), and says whether anything changed. The version
// is a claim only: no runtime leaves a feature out because of an older one.
func (r Runtime) Accept(spec *specs.Spec) bool {
	if filepath.Base(r.Binary) == "runc" || spec.Version == oldest {
		return false
	}
	spec.Version = oldest
	return true
}

// Restore says where a checkpoint is.
type Restore struct {
	ImagePath  string
	ParentPath string
	WorkPath   string
}

// RestoreArgs is the command line that restores container id from a checkpoint.
func (r Runtime) RestoreArgs(id, bundle string, f Files, from Restore) []string {
	args := append(r.global(f.Log), "restore", "--detach", "--bundle", bundle, "--image-path", from.ImagePath, "--work-path", from.WorkPath)
	if from.ParentPath != "" {
		args = append(args, "--parent-path", from.ParentPath)
	}
	args = append(args, f.args()...)
	if r.NoPivotRoot {
		args = append(args, "--no-pivot")
	}
	return append(args, id)
}

// ExecArgs is the command line that starts one more process, described in the
// file process, in container id.
func (r Runtime) ExecArgs(id, process string, f Files) []string {
	args := append(r.global(f.Log), "exec", "--detach", "--process", process)
	args = append(args, f.args()...)
	return append(args, id)
}

func (r Runtime) runc(log string) *runc.Runc {
	return &runc.Runc{
		Command:       r.Binary,
		Root:          r.Root,
		Log:           log,
		LogFormat:     runc.JSON,
		PdeathSignal:  syscall.SIGKILL,
		SystemdCgroup: r.SystemdCgroup,
	}
}

// StartArgs is the command line that runs the process that create prepared. The
// caller sees to it that it is not interrupted: between two of its steps, the
// process would end.
func (r Runtime) StartArgs(id, log string) []string { return append(r.global(log), "start", id) }

// ReleaseArgs is a command line that does the same without a runtime, in a fraction of
// its time, for a container without start hooks: program is that of the monitor. Its
// exit status is 0, or one up to ReleaseRefused if the container was left alone. nil:
// it is not known how the runtime's containers wait.
func (r Runtime) ReleaseArgs(program, id string, pid int) []string {
	var does string // what the container's process does
	switch filepath.Base(r.Binary) {
	case "runc":
		does = "writes"
	case "crun":
		does = "reads"
	default:
		return nil
	}
	return []string{program, "release", does, filepath.Join(r.Root, id, "exec.fifo"), strconv.Itoa(pid)}
}

// ReleaseRefused is UNTOUCHED in internal/monitor/c/release.c.
const ReleaseRefused = 3

// Delete removes what the runtime knows of a container that has ended, and its
// cgroup. With force it also ends it. A container that the runtime does not
// know is no error, so Delete may be repeated.
func (r Runtime) Delete(ctx context.Context, id, log string, force bool) error {
	err := fault.Fail("runtime:delete", unix.EAGAIN, unix.ENOMEM, unix.EMFILE)
	if err == nil {
		err = r.runc(log).Delete(ctx, id, &runc.DeleteOpts{Force: force})
	}
	if err == nil {
		return nil
	}
	// Both runtimes keep a directory per container; crun says nothing clearer.
	if _, e := os.Stat(filepath.Join(r.Root, id)); errors.Is(e, os.ErrNotExist) {
		return nil
	}
	return r.Explain("delete", log, err)
}

// LeavesLittle tells whether all that the runtime would remove of such a container after
// its end is a cgroup and what Forget removes: there is nothing to run, no systemd to ask,
// and it is known where the runtime's notes are.
func (r Runtime) LeavesLittle(spec *specs.Spec) bool {
	hooks := spec.Hooks != nil && len(spec.Hooks.Poststop) > 0
	return r.known() && !r.SystemdCgroup && !hooks && spec.Linux != nil && spec.Linux.IntelRdt == nil
}

// LeavesRootfs tells whether nobody looks for the root filesystem of such a container in
// its bundle once the container is made: neither the runtime nor a hook.
func (r Runtime) LeavesRootfs(spec *specs.Spec) bool {
	hooks := spec.Hooks != nil && len(spec.Hooks.Poststart)+len(spec.Hooks.Poststop) > 0
	return r.known() && !hooks
}

// known tells whether the runtime is one of those whose ways are known here.
func (r Runtime) known() bool {
	name := filepath.Base(r.Binary)
	return name == "runc" || name == "crun"
}

// Forget removes what the runtime has noted of a container that LeavesLittle. It may be
// repeated.
func (r Runtime) Forget(id string) error {
	if err := fault.Fail("runtime:forget", unix.EIO); err != nil {
		return err
	}
	return os.RemoveAll(filepath.Join(r.Root, id))
}

// Update changes the resources of a running container.
func (r Runtime) Update(ctx context.Context, id, log string, resources *specs.LinuxResources) error {
	err := fault.Fail("runtime:update", unix.EAGAIN, unix.ENOMEM, unix.EMFILE)
	if err == nil {
		err = r.runc(log).Update(ctx, id, resources)
	}
	fault.Point("runtime:updated")
	return r.Explain("update", log, err)
}

// CheckpointArgs is the command line that writes the container's state to the directory
// image, through CRIU, whose logs go to work. The caller sees to it that it is not
// interrupted: it may end the container.
func (r Runtime) CheckpointArgs(id, log, image, work string, o *options.CheckpointOptions) []string {
	args := append(r.global(log), "checkpoint", "--image-path", image, "--work-path", work)
	for _, flag := range []struct{ name, value string }{{"--parent-path", o.GetParentPath()}, {"--manage-cgroups-mode", o.GetCgroupsMode()}} {
		if flag.value != "" {
			args = append(args, flag.name, flag.value)
		}
	}
	for _, flag := range []struct {
		name string
		on   bool
	}{
		{"--tcp-established", o.GetOpenTcp()}, {"--ext-unix-sk", o.GetExternalUnixSockets()}, {"--shell-job", o.GetTerminal()},
		{"--file-locks", o.GetFileLocks()}, {"--leave-running", !o.GetExit()},
	} {
		if flag.on {
			args = append(args, flag.name)
		}
	}
	for _, ns := range o.GetEmptyNamespaces() {
		args = append(args, "--empty-ns", ns)
	}
	return append(args, id)
}

// Error is a failure of a runtime, told in the runtime's own last words.
type Error struct {
	Runtime string // name of the binary
	Verb    string
	Message string // what the runtime logged last, if anything
	Err     error
}

func (e *Error) Error() string {
	if e.Message != "" {
		return fmt.Sprintf("%s %s: %s", e.Runtime, e.Verb, e.Message)
	}
	return fmt.Sprintf("%s %s: %v", e.Runtime, e.Verb, e.Err)
}

func (e *Error) Unwrap() error { return e.Err }

// Explain turns a runtime's failure into one with the message it logged and the
// class that the message shows. A nil error stays nil.
func (r Runtime) Explain(verb, log string, err error) error {
	if err == nil {
		return nil
	}
	e := &Error{Runtime: filepath.Base(r.Binary), Verb: verb, Err: err}
	e.Message, _ = lastError(log)
	if class := classify(e.Message + " " + err.Error()); class != nil {
		e.Err = errors.Join(err, class)
	}
	return e
}

// classify finds the class of a failure in the words of runc or crun, the only
// place where they tell it.
func classify(text string) error {
	has := func(phrase string) bool { return strings.Contains(text, phrase) }
	switch {
	case has("container does not exist"), has("container") && has("does not exist"):
		return errdefs.ErrNotFound
	case has("container not running"), has("cannot exec in a stopped container"), has("is not running"):
		return errdefs.ErrFailedPrecondition
	case has("executable file"), has(`exec: "`) && has("no such file or directory"):
		return errdefs.ErrNotFound // the program, in the image
	case has(`exec: "`) && has("permission denied"):
		return errdefs.ErrInvalidArgument
	case has("no such file or directory"), has("not a directory"):
		return errdefs.ErrFailedPrecondition // what the specification names is missing
	case has("already exists"):
		return errdefs.ErrAlreadyExists
	}
	return nil
}

// maxLog bounds what is read of a runtime's log: its end.
const maxLog = 64 << 10

// lastError returns the last message of level error or above in a log of JSON lines.
func lastError(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	if info, err := f.Stat(); err == nil && info.Size() > maxLog {
		if _, err := f.Seek(-maxLog, io.SeekEnd); err != nil {
			return "", err
		}
	}
	var last string
	lines := bufio.NewScanner(io.LimitReader(f, maxLog))
	lines.Buffer(make([]byte, 0, 4<<10), maxLog)
	for lines.Scan() {
		var line struct {
			Level string `json:"level"`
			Msg   string `json:"msg"`
		}
		if json.Unmarshal(lines.Bytes(), &line) != nil || line.Msg == "" {
			continue
		}
		switch line.Level {
		case "error", "fatal", "panic":
			last = strings.TrimSpace(line.Msg)
		}
	}
	return last, lines.Err()
}

// Waiting tells whether a created container still waits to be started.
func (r Runtime) Waiting(ctx context.Context, id, log string) bool {
	c, err := r.runc(log).State(ctx, id)
	return err == nil && c.Status == "created"
}

// Features tells what the OCI runtime at path can do. NotImplemented: it has no
// such command.
func Features(ctx context.Context, path string) (*features.Features, error) {
	f, err := (&runc.Runc{Command: path}).Features(ctx)
	if err != nil {
		return nil, fmt.Errorf("%s features: %w: %w", filepath.Base(path), err, errdefs.ErrNotImplemented)
	}
	return f, nil
}
