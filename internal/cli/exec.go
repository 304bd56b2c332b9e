package cli

import (
	"context"
	"errors"
	"fmt"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/spf13/cobra"
)

func (a *app) execCommand() *cobra.Command {
	var f processFlags
	cmd := &cobra.Command{
		Use:         "exec [flags] CONTAINER COMMAND...",
		Short:       "Run one more process in a container",
		Long:        "Run one more process in a container that runs. The exit code is that of the process; 125, 126\nand 127 mean what they mean for `caisson run`.",
		Example:     "  caisson exec web ps\n  caisson exec -it web sh\n  caisson exec -e DEBUG=1 -w /srv -u 1000 web env",
		Args:        atLeast(2, "a container and a command"),
		Annotations: map[string]string{runsProcess: "yes"},
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := f.check(a); err != nil {
				return err
			}
			return a.exec(cmd.Context(), f, args[0], args[1:])
		},
	}
	f.add(cmd)
	return cmd
}

func (a *app) exec(ctx context.Context, f processFlags, id string, command []string) error {
	ctx, c, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	ctr, task, err := c.running(ctx, id)
	if err != nil {
		return err
	}
	spec, err := c.execSpec(ctx, ctr, f, command)
	if err != nil {
		return err
	}
	create, streams := cio.Creator(cio.NullIO), (*stdio)(nil)
	if !f.detach {
		if streams, err = a.foreground(f); err != nil {
			return err
		}
		create = streams.create
	}
	execID := "exec-" + newID()
	p, err := task.Exec(ctx, execID, spec, create)
	if err != nil {
		return newStartError(fmt.Errorf("container %q: exec: %w", id, err))
	}
	start := func(ctx context.Context) error { return explainPaused(ctx, task, p.Start(ctx)) }
	if f.detach {
		if err := start(ctx); err != nil {
			return joinUndo(newStartError(fmt.Errorf("container %q: exec: %w", id, err)), deleteExec(ctx, p))
		}
		_, err := fmt.Fprintln(a.sys.Stdout, execID)
		return err
	}
	err = a.runProcess(ctx, p, streams, f, start)
	if undone := deleteExec(ctx, p); undone != nil {
		var ran exitStatus
		if err != nil && !errors.As(err, &ran) {
			return joinUndo(err, undone)
		}
		a.warn(undone)
	}
	return err
}

// explainPaused adds the way out to the error of a process that a frozen container refused.
func explainPaused(ctx context.Context, task containerd.Task, err error) error {
	if !errdefs.IsFailedPrecondition(err) {
		return err
	}
	if st, serr := task.Status(ctx); serr != nil || st.Status != containerd.Paused {
		return err
	}
	return advise(err, "container %q is paused: let it go on first, with `caisson unpause %s`", task.ID(), task.ID())
}

// deleteExec forgets a process that has ended or never started.
func deleteExec(ctx context.Context, p containerd.Process) error {
	return detached(ctx, func(ctx context.Context) error {
		if _, err := p.Delete(ctx); ignoreNotFound(err) != nil {
			return fmt.Errorf("forget process: %w", err)
		}
		return nil
	})
}

// execSpec is the container's own process with another command.
func (c *client) execSpec(ctx context.Context, ctr containerd.Container, f processFlags, command []string) (*specs.Process, error) {
	record, err := ctr.Info(ctx)
	if err != nil {
		return nil, fmt.Errorf("container %q: %w", ctr.ID(), err)
	}
	spec, err := ctr.Spec(ctx)
	if err != nil {
		return nil, fmt.Errorf("container %q: specification: %w", ctr.ID(), err)
	}
	if spec.Process == nil {
		spec.Process = &specs.Process{Cwd: "/"}
	}
	spec.Process.Terminal, spec.Process.ConsoleSize = false, nil
	opts := []oci.SpecOpts{oci.WithProcessArgs(command...)}
	if f.tty {
		opts = append(opts, oci.WithTTY)
	}
	if f.user != "" {
		opts = append(opts, withUser(f.user))
	}
	if f.workdir != "" {
		opts = append(opts, oci.WithProcessCwd(f.workdir))
	}
	if len(f.env) > 0 {
		opts = append(opts, oci.WithEnv(f.env))
	}
	if err := oci.ApplyOpts(ctx, c.Client, &record, spec, opts...); err != nil {
		return nil, err
	}
	return spec.Process, nil
}
