package task

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"caisson/internal/cgroup"
	"caisson/internal/fault"
	"caisson/internal/isolation"
	"caisson/internal/monitor"
	"caisson/internal/oci"
	"caisson/internal/tracing"
	"caisson/internal/undo"
)

// launch runs an OCI runtime that makes the init process, and takes note of it.
func (c *container) launch(ctx context.Context, p *process, to State, args commandLine) error {
	done, err := c.set.cfg.UseFiles(ctx)
	if err != nil {
		return fmt.Errorf("%v: %w", p, err)
	}
	defer done()
	started, err := p.spawn(ctx, args)
	if err != nil {
		return err
	}
	group, err := cgroup.OfProcess(started.Pid)
	if err != nil {
		err = fmt.Errorf("%v: cgroup: %w", p, err)
	} else {
		kills, _ := group.OOMKills() // none where nobody counts
		err = p.move(to, func(r *record) {
			r.Pid, r.Serial, r.CgroupPath, r.OOMKills = started.Pid, started.Serial, group.Path(), kills
		})
	}
	if err != nil {
		return errors.Join(err, p.dropStdio(context.WithoutCancel(ctx)))
	}
	c.watch(group)
	return nil
}

// commandLine is an OCI runtime's, once its files are known.
type commandLine func(oci.Files) []string

func (c *container) createArgs(f oci.Files) []string {
	return c.Runtime.CreateArgs(c.ID, c.Bundle, f)
}

func (c *container) restoreArgs(f oci.Files) []string {
	return c.Runtime.RestoreArgs(c.ID, c.Bundle, f, *c.Restore)
}

// spawn runs an OCI runtime through the monitor, with the process's stdio, and
// returns the process that it left behind. On error the runtime has ended and
// the stdio is released; what the runtime made is the caller's to undo.
func (p *process) spawn(ctx context.Context, args commandLine) (_ monitor.Process, err error) {
	host, err := p.c.set.attached()
	if err != nil {
		return monitor.Process{}, err
	}
	var steps undo.Stack
	defer func() {
		if err != nil {
			err = errors.Join(err, steps.Run(ctx))
		}
	}()
	steps.Add("stdio", p.dropStdio)
	io, err := p.openIO(ctx, host)
	if err != nil {
		return monitor.Process{}, err
	}
	defer io.close(ctx)
	var env []string
	if p.execID == "" && p.c.Restore != nil {
		if env, err = p.c.bringBack(io.files); err != nil {
			return monitor.Process{}, err
		}
	}
	files := oci.Files{Log: p.c.log(p.execID), Pid: p.path + ".pid", Console: io.consolePath()}
	started, err := p.run(ctx, host, files.Log, monitor.SpawnRequest{PidFile: files.Pid, Args: args(files), Files: io.files, Env: env})
	if err != nil {
		return monitor.Process{}, err
	}
	if io.console != nil {
		steps.Add("process", func(ctx context.Context) error { return kill(ctx, host, started.Serial) })
		if err := p.takeTerminal(ctx, host, io); err != nil {
			return monitor.Process{}, err
		}
	}
	return started, nil
}

// run spawns a runtime with a process's stdio, waits for its end, and returns what
// it left behind.
func (p *process) run(ctx context.Context, host isolation.Host, logFile string, req monitor.SpawnRequest) (monitor.Process, error) {
	exit, err := p.execute(ctx, host, logFile, req)
	switch {
	case err != nil:
		return monitor.Process{}, err
	case exitStatus(exit.Status) != 0:
		return monitor.Process{}, p.c.Runtime.Explain(verb(p), logFile, failed(exit))
	case exit.Adopted == nil:
		return monitor.Process{}, fmt.Errorf("%v: the OCI runtime left no process behind: %w", p, errdefs.ErrUnknown)
	}
	return *exit.Adopted, nil
}

func failed(exit monitor.Exit) error { return fmt.Errorf("exit status %d", exitStatus(exit.Status)) }

// execute runs an OCI runtime, which logs to logFile, through the monitor, so that the
// daemon's end does not interrupt it, and returns how it ended. What the request has of an
// environment comes before the daemon's.
func (p *process) execute(ctx context.Context, host isolation.Host, logFile string, req monitor.SpawnRequest) (exit monitor.Exit, err error) {
	ctx, done := tracing.Child(ctx, "runtime")
	defer func() { done(err) }()
	set := p.c.set
	req.Tag, req.Dir, req.Env = cmp.Or(req.Tag, p.tag()), p.c.Bundle, append(req.Env, environment()...)
	end, err := set.expect(req.Tag)
	if err != nil {
		return exit, err
	}
	defer set.unexpect(req.Tag)
	// A caller that gives up must not leave a runtime of which nobody knows.
	sctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), killTimeout)
	defer cancel()
	runtime, err := host.Spawn(sctx, req)
	if err != nil {
		if errdefs.IsUnavailable(err) { // It may have been started all the same.
			endOrphans(ctx, logFile)
		}
		return exit, fmt.Errorf("%v: start OCI runtime: %w", p, err)
	}
	var ok bool
	select {
	case exit, ok = <-end:
	case <-ctx.Done():
		exit, err := stopRuntime(ctx, host, runtime.Serial, end)
		if err == nil {
			set.ack(runtime.Serial)
		}
		return exit, errors.Join(fmt.Errorf("%v: OCI runtime: %w", p, context.Cause(ctx)), err)
	}
	fault.Point("runtime:ended")
	if !ok {
		endOrphans(ctx, logFile)
		return exit, fmt.Errorf("%v: %w", p, ErrMonitorGone)
	}
	return exit, nil
}

// environment of OCI runtimes: the daemon's, without where it says that it is ready
// itself. A runtime takes that for a wish to hear it of the container.
func environment() []string {
	return slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "NOTIFY_SOCKET=") })
}

// runtimePatience is how long a runtime that nobody needs any more may go on:
// killed half way, it can leave something behind that nobody knows. A runtime on a
// machine that is short of everything takes seconds.
const runtimePatience = 10 * time.Second

// stopRuntime ends a runtime whose caller gave up, and the process it made: it
// might still make what the caller undoes.
func stopRuntime(ctx context.Context, host isolation.Host, serial uint64, end <-chan monitor.Exit) (exit monitor.Exit, err error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), runtimePatience+killTimeout)
	defer cancel()
	patience := time.After(runtimePatience)
	for {
		select {
		case exit = <-end:
			if exit.Adopted != nil {
				err = kill(ctx, host, exit.Adopted.Serial)
			}
			return exit, err
		case <-patience:
			if err := kill(ctx, host, serial); err != nil {
				return exit, err
			}
		case <-ctx.Done():
			return exit, fmt.Errorf("stop OCI runtime: %w", ctx.Err())
		}
	}
}

// kill ends a process of the monitor's that nobody was told of.
func kill(ctx context.Context, host isolation.Host, serial uint64) error {
	if err := host.Signal(ctx, serial, unix.SIGKILL); err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("end what the OCI runtime has made: %w", err)
	}
	return nil
}
