package cli

import (
	"context"
	"fmt"
	"syscall"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/errdefs"
	"github.com/moby/sys/signal"
	"github.com/spf13/cobra"
)

func (a *app) stopCommand() *cobra.Command {
	var seconds int
	cmd := &cobra.Command{
		Use:     "stop CONTAINER...",
		Short:   "Ask containers to end, and kill them if they do not",
		Example: "  caisson stop web\n  caisson stop -t 30 db",
		Args:    atLeast(1, "a container"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if seconds < 0 {
				return advise(errdefs.ErrInvalidArgument, "--time %d is below zero: give the seconds to wait", seconds)
			}
			return a.forEach(func(ctx context.Context, c *client, id string) error {
				return c.stopContainer(ctx, id, time.Duration(seconds)*time.Second)
			})(cmd, args)
		},
	}
	cmd.Flags().IntVarP(&seconds, "time", "t", 10, "seconds to wait before it is killed")
	return cmd
}

func (c *client) stopContainer(ctx context.Context, id string, grace time.Duration) error {
	ctr, err := c.load(ctx, id)
	if err != nil {
		return err
	}
	task, st, err := taskOf(ctx, ctr)
	if err != nil || task == nil || st.Status == containerd.Stopped {
		return err // stopped already
	}
	sig, err := containerd.GetStopSignal(ctx, ctr, syscall.SIGTERM)
	if err != nil {
		sig = syscall.SIGTERM // the image names a signal that does not exist
	}
	exited, err := task.Wait(ctx)
	if err != nil {
		return fmt.Errorf("container %q: wait: %w", id, err)
	}
	if grace > 0 {
		if err := task.Kill(ctx, sig); ignoreNotFound(err) != nil {
			return fmt.Errorf("container %q: send %s: %w", id, signalName(sig), err)
		}
		// A frozen process takes no signal but KILL until it is thawed.
		if st.Status == containerd.Paused {
			if err := task.Resume(ctx); ignoreNotFound(err) != nil {
				return fmt.Errorf("container %q: resume: %w", id, err)
			}
		}
		timer := time.NewTimer(grace)
		defer timer.Stop()
		select {
		case status := <-exited:
			return waitError(id, status)
		case <-timer.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if err := task.Kill(ctx, syscall.SIGKILL); ignoreNotFound(err) != nil {
		return fmt.Errorf("container %q: kill: %w", id, err)
	}
	return waitError(id, <-exited)
}

func waitError(id string, status containerd.ExitStatus) error {
	if err := status.Error(); ignoreNotFound(err) != nil {
		return fmt.Errorf("container %q: wait: %w", id, err)
	}
	return nil
}

func signalName(sig syscall.Signal) string {
	for name, s := range signal.SignalMap {
		if s == sig {
			return "SIG" + name
		}
	}
	return fmt.Sprintf("signal %d", int(sig))
}

func (a *app) killCommand() *cobra.Command {
	var name string
	cmd := &cobra.Command{
		Use:     "kill CONTAINER...",
		Short:   "Send containers a signal",
		Example: "  caisson kill web\n  caisson kill -s HUP web",
		Args:    atLeast(1, "a container"),
		RunE: func(cmd *cobra.Command, args []string) error {
			sig, err := signal.ParseSignal(name)
			if err != nil {
				return advise(errdefs.ErrInvalidArgument, "%q is not a signal: write it like HUP, SIGHUP or 1", name)
			}
			return a.forEach(func(ctx context.Context, c *client, id string) error {
				_, task, err := c.running(ctx, id)
				if err != nil {
					return err
				}
				if err := task.Kill(ctx, sig); err != nil {
					return fmt.Errorf("container %q: send %s: %w", id, signalName(sig), err)
				}
				return nil
			})(cmd, args)
		},
	}
	cmd.Flags().StringVarP(&name, "signal", "s", "KILL", "signal, by name or number")
	return cmd
}

func (a *app) removeCommand() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:     "rm CONTAINER...",
		Short:   "Remove containers, with their logs and the sandboxes made for them",
		Example: "  caisson rm web\n  caisson rm -f web db",
		Args:    atLeast(1, "a container"),
		RunE: a.forEach(func(ctx context.Context, c *client, id string) error {
			err := c.removeContainer(ctx, id, removal{force: force})
			if force {
				return ignoreNotFound(err)
			}
			return err
		}),
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "kill it first; a container that is not there is no error")
	return cmd
}
