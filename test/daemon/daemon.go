// Package daemon runs the real caissond in a directory of its own, for the
// integration tests and the demo. Everything the daemon makes carries the name
// of that directory (the token), and Close says what of it is left.
//
// A Daemon is used by one goroutine, but for its clients and AddCgroup. New
// touches the disk only; Start, Kill and Stop may alternate any number of times;
// Close comes last.
package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"caisson/test/leak"
)

// Time limits, generous because tests also run on slow emulated machines.
const (
	startLimit = 2 * time.Minute
	stopLimit  = time.Minute
	goneLimit  = 10 * time.Second
)

// The engines.
const (
	EngineEmbedded = "embedded"
	EngineStock    = "stock"
	// EngineNone is for tests that talk to the sandboxer themselves, and take its
	// events at EventSocket.
	EngineNone = "none"
)

// Options describe a daemon; the zero value is one as users run it.
type Options struct {
	// Engine is EngineStock for an unmodified containerd beside caissond; if
	// empty, CAISSON_TEST_ENGINE says it, and EngineEmbedded otherwise.
	Engine string
	// Runtime is the OCI runtime; if empty, CAISSON_TEST_RUNTIME says it, and runc
	// otherwise.
	Runtime string
	// Program is the daemon's name, caissond if empty.
	Program string
	// Containerd is the binary of that containerd, containerd in build/ if empty.
	Containerd string
	// Under is a command line that is put before that containerd's.
	Under []string
	// BinDir has the binaries; bin/ of the module if empty.
	BinDir string
	// Config is added to the configuration file.
	Config string
	// EngineConfig is added to the configuration of the containerd that serves,
	// embedded or beside caissond.
	EngineConfig string
	// SystemdCgroup lets systemd make the cgroups of containers.
	SystemdCgroup bool
	// LogLevel is that of the servers, debug if empty.
	LogLevel string
	// Args are added to the command line.
	Args []string
	// Env is added to the environment.
	Env []string
	// NRI switches NRI on, at nri.sock in State.
	NRI bool
	// HostPorts lets the network serve the host ports of pods, and the world
	// beyond be reached. Rules of iptables stay: want a network namespace.
	HostPorts bool
	// Space, if not 0, is the size in bytes of a file system that Root has, and of
	// another that State has.
	Space int64
	// Volatile lets what servers and runtimes keep at run time be on a tmpfs, as /run
	// is on most hosts.
	Volatile bool
}

// Daemon is one caissond and what it works on.
type Daemon struct {
	// Token is in the name of everything that belongs to the daemon. It is also
	// the containerd namespace to use, and the name of the CNI bridge.
	Token string
	// Dir holds all the following.
	Dir, Root, State, Address, ConfigFile, LogFile string

	bin        string
	opts       Options
	before     *leak.Snapshot
	caissond   server
	containerd server // the one beside caissond

	mu      sync.Mutex // guards cgroups
	cgroups []string   // made by AddCgroup
}

// New makes the directory and the configuration of a daemon.
func New(opts Options) (_ *Daemon, err error) {
	bin := opts.BinDir
	if bin == "" {
		if bin, err = BinDir(); err != nil {
			return nil, err
		}
	}
	opts.Engine = cmp.Or(opts.Engine, os.Getenv("CAISSON_TEST_ENGINE"), EngineEmbedded)
	// Not the TMPDIR, which may be long: unix sockets have short paths.
	dir, err := os.MkdirTemp("/tmp", leak.TokenPrefix)
	if err != nil {
		return nil, err
	}
	// The root of a container with a user namespace is another user, and must get through.
	if err := os.Chmod(dir, 0o711); err != nil {
		return nil, errors.Join(err, os.Remove(dir))
	}
	d := &Daemon{
		Token: filepath.Base(dir), Dir: dir,
		Root: dir + "/root", State: dir + "/run", Address: dir + "/run/c.sock",
		ConfigFile: dir + "/config.toml", LogFile: dir + "/log",
		bin: bin, opts: opts,
	}
	switch opts.Engine {
	case EngineStock:
		d.Address = d.stockDir() + "/c.sock"
	case EngineNone:
		d.Address = dir + "/c.sock"
	}
	d.caissond = server{name: "caissond", log: d.LogFile}
	d.containerd = server{name: "containerd", log: dir + "/containerd.log"}
	err = d.mountSpace()
	if err == nil {
		d.before, err = leak.Take()
	}
	if err = errors.Join(err, d.writeConfig(), d.AddCgroup("/"+d.Token), d.AddCgroup(d.cgroupParent())); err != nil {
		return nil, errors.Join(err, d.removeCgroups(), d.unmountSpace(), os.RemoveAll(dir))
	}
	return d, nil
}

// BinDir is where the binaries are: CAISSON_BIN, or bin/ of the module that the
// working directory belongs to.
func BinDir() (string, error) {
	if dir := os.Getenv("CAISSON_BIN"); dir != "" {
		return dir, nil
	}
	root, err := moduleRoot()
	if err != nil {
		return "", err
	}
	return filepath.Join(root, "bin"), nil
}

func moduleRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for ; dir != "/"; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
	}
	return "", errors.New("no go.mod above the working directory: set CAISSON_BIN to the directory of the binaries")
}

// Binary is the path of a program: of bin/, or of build/ for tools of the tests.
func (d *Daemon) Binary(name string) (string, error) {
	for _, dir := range []string{d.bin, filepath.Join(filepath.Dir(d.bin), "build")} {
		path := filepath.Join(dir, name)
		if _, err := os.Stat(path); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("no program %s in %s: run make build ctr registry", name, d.bin)
}

// Start starts the daemon, and the containerd beside it if there is to be one
// that does not run yet, and returns when CRI answers.
func (d *Daemon) Start(ctx context.Context) error {
	if err := d.Launch(); err != nil {
		return err
	}
	if d.opts.Engine == EngineEmbedded {
		if err := d.ready(ctx, &d.caissond); err != nil {
			return errors.Join(err, d.Kill())
		}
		return nil
	}
	if err := d.sandboxerReady(ctx); err != nil {
		return errors.Join(err, d.Kill())
	}
	if !d.Stock() || d.containerd.running != nil {
		return nil
	}
	if err := d.StartContainerd(ctx); err != nil {
		return errors.Join(err, d.Kill())
	}
	return nil
}

// Launch starts the daemon's process and does not wait for anything.
func (d *Daemon) Launch() error {
	path, err := d.Binary(cmp.Or(d.opts.Program, "caissond"))
	if err != nil {
		return err
	}
	args := []string{"--config", d.ConfigFile, "--log-level", d.logLevel()}
	if d.opts.Engine != EngineEmbedded {
		args = append(args, "--engine", "none", "--containerd-address", d.Address)
	} else {
		args = append(args, "--address", d.Address)
	}
	cmd := exec.Command(path, slices.Concat(args, d.opts.Args)...)
	cmd.Dir = d.Dir
	cmd.Env = slices.Concat(d.environ(), d.opts.Env)
	return d.caissond.launch(cmd)
}

func (d *Daemon) logLevel() string { return cmp.Or(d.opts.LogLevel, "debug") }

// Use lets the next Launch or Start run another program, as an upgrade does.
func (d *Daemon) Use(program string) { d.opts.Program = program }

// environ is the environment of a server: containerd finds
// containerd-shim-caisson-v2 beside itself or in PATH.
func (d *Daemon) environ() []string {
	return append(os.Environ(), "PATH="+d.bin+":"+os.Getenv("PATH"))
}

// EventSocket is where the daemon sends its events, over ttrpc.
func (d *Daemon) EventSocket() string { return d.Address + ".ttrpc" }

// Pid of the running daemon.
func (d *Daemon) Pid() int { return d.caissond.running.Process.Pid }

// Exited is closed when the launched daemon has ended; ExitError tells how then.
func (d *Daemon) Exited() <-chan struct{} { return d.caissond.exited }

// ExitError is the error of the daemon's process, once Exited is closed.
func (d *Daemon) ExitError() error { return d.caissond.exitErr }

// Kill ends the daemon with SIGKILL, as a crash does.
func (d *Daemon) Kill() error { return d.caissond.kill() }

// Stop ends the daemon with SIGTERM and expects a clean exit.
func (d *Daemon) Stop(ctx context.Context) error { return d.caissond.stop(ctx) }

// Close stops the daemon, removes its directory and lists what is left of it.
// What is left is cleared away too, so that it is reported once.
func (d *Daemon) Close(ctx context.Context) (left []string, err error) {
	// containerd first: it takes the daemon's end for that of its tasks.
	errs := []error{d.StopContainerd(ctx)}
	if d.caissond.running == nil {
		errs = append(errs, d.endKeeper(ctx))
	}
	errs = append(errs, d.Stop(ctx), d.stopStarted(ctx))
	for _, look := range []func(context.Context) ([]string, error){d.leftBehind, d.leftInState} {
		found, err := look(ctx)
		left, errs = append(left, found...), append(errs, err)
	}
	if len(left) > 0 {
		// Killed processes hold their cgroups and mounts for a moment.
		errs = append(errs, Poll(ctx, goneLimit, func() error {
			if err := d.before.Clean(d.Token); err != nil {
				return err
			}
			if rest, err := d.before.New(d.Token); err != nil || len(rest) > 0 {
				return errors.Join(err, fmt.Errorf("cannot remove %q", rest))
			}
			return nil
		}))
	}
	return left, errors.Join(append(errs, d.unmountSpace(), os.RemoveAll(d.Dir))...)
}

// End is Close at the end of a test program: what is left is an error. If a test
// failed and CAISSON_TEST_LOGS is set, it prints the logs.
func (d *Daemon) End(ctx context.Context, failed bool) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	if failed && os.Getenv("CAISSON_TEST_LOGS") != "" {
		fmt.Printf("log of caissond:\n%s\nlog of containerd:\n%s\n", d.LogTail(1<<20), d.ContainerdLogTail(1<<20))
	}
	left, err := d.Close(ctx)
	if len(left) > 0 {
		err = errors.Join(err, fmt.Errorf("left behind:\n  %s", strings.Join(left, "\n  ")))
	}
	return err
}

// leftBehind looks at the kernel and the shared directories, a while for what
// ends by itself after the daemon.
func (d *Daemon) leftBehind(ctx context.Context) ([]string, error) {
	if err := errors.Join(d.removeBridge(), d.removeCgroups()); err != nil {
		return nil, err
	}
	var left []string
	err := Poll(ctx, goneLimit, func() (err error) {
		if left, err = d.before.New(d.Token); err == nil && len(left) > 0 {
			err = errors.New("something is left")
		}
		return err
	})
	if len(left) > 0 {
		return left, nil
	}
	return nil, err
}

// leftInState lists the files of sandboxes in the state directory: each has a
// directory, the name of its network namespace, and the OCI runtime's state.
func (d *Daemon) leftInState(context.Context) ([]string, error) {
	var left []string
	var errs []error
	for _, name := range []string{"s", "netns", "runtime"} {
		files, err := leak.Left(filepath.Join(d.State, name))
		left, errs = append(left, files...), append(errs, err)
	}
	return left, errors.Join(errs...)
}

// Poll calls f until it returns no error, and returns its last error when the
// limit is over. It is for things of others that give no notice when they
// change; everything else is waited for by its events.
func Poll(ctx context.Context, limit time.Duration, f func() error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	for {
		err := f()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-ticker.C:
		}
	}
}
