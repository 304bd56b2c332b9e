package cli

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/errdefs"
	"github.com/spf13/cobra"

	"caisson/internal/volumes"
)

// stopOpts is the grace a sandbox's processes get; below zero it is the daemon's choice,
// for which the API takes 0, too, so that a second is the least.
func stopOpts(seconds int) []sandbox.StopOpt {
	if seconds < 0 {
		return nil
	}
	return []sandbox.StopOpt{sandbox.WithTimeout(time.Duration(max(seconds, 1)) * time.Second)}
}

func (a *app) sandboxStopCommand() *cobra.Command {
	seconds := -1
	cmd := &cobra.Command{
		Use:     "stop ID...",
		Short:   "Stop sandboxes and everything in them",
		Example: "  caisson sandbox stop pod1\n  caisson sandbox stop -t 30 pod1",
		Args:    atLeast(1, "the ID of a sandbox"),
		RunE: a.forEach(func(ctx context.Context, c *client, id string) error {
			if _, err := c.sandboxRecord(ctx, id); err != nil {
				return err
			}
			// Unknown to the controller is as stopped as it can be.
			if err := ignoreNotFound(c.controller().Stop(ctx, id, stopOpts(seconds)...)); err != nil {
				return fmt.Errorf("sandbox %q: stop: %w", id, err)
			}
			return nil
		}),
	}
	cmd.Flags().IntVarP(&seconds, "time", "t", -1, "seconds between TERM and KILL, at least one (default: the daemon's)")
	return cmd
}

func (a *app) sandboxRemoveCommand() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:     "rm ID...",
		Aliases: []string{"delete"},
		Short:   "Remove sandboxes, with the volumes made for them",
		Long:    "Remove sandboxes that are stopped and hold no containers.\nWith --force, running sandboxes are stopped and their containers are removed.",
		Example: "  caisson sandbox rm pod1\n  caisson sandbox rm -f pod1",
		Args:    atLeast(1, "the ID of a sandbox"),
		RunE: a.forEach(func(ctx context.Context, c *client, id string) error {
			return c.removeSandboxAndContainers(ctx, id, force)
		}),
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "stop it and remove its containers too")
	return cmd
}

func (c *client) removeSandboxAndContainers(ctx context.Context, id string, force bool) error {
	record, err := c.sandboxRecord(ctx, id)
	if err != nil {
		if force && errdefs.IsNotFound(err) {
			return nil
		}
		return err
	}
	members, err := c.containersIn(ctx, id)
	if err != nil {
		return err
	}
	if !force {
		if len(members) > 0 {
			return advise(errdefs.ErrFailedPrecondition, "sandbox %q holds containers; remove them first: caisson rm %s, or all at once: caisson sandbox rm -f %s", id, strings.Join(members, " "), id)
		}
		st, err := c.controller().Status(ctx, id, false)
		if ignoreNotFound(err) != nil {
			return fmt.Errorf("sandbox %q: status: %w", id, err)
		}
		if err == nil && sandboxState(st.State) == stateReady {
			return advise(errdefs.ErrFailedPrecondition, "sandbox %q is running; stop it first: caisson sandbox stop %s", id, id)
		}
	}
	for _, name := range members {
		if err := c.removeContainer(ctx, name, removal{force: true, keepSandbox: true}); ignoreNotFound(err) != nil {
			return err
		}
	}
	// Before the record, so that a failure can be tried again.
	if err := removeVolumes(record.Labels[labelVolumes], c.app.namespace, id); err != nil {
		return fmt.Errorf("sandbox %q: remove volumes: %w", id, err)
	}
	return c.removeSandbox(ctx, id)
}

// removeVolumes removes a sandbox's volumes, but nothing that only a label claims to be
// their directory.
func removeVolumes(dir, namespace, sandboxID string) error {
	if dir == "" {
		return nil
	}
	if !isOurs(dir, "volumes", namespace, sandboxID) {
		return fmt.Errorf("%q is not the directory of this sandbox's volumes: %w", dir, errdefs.ErrFailedPrecondition)
	}
	return volumes.At(dir).Remove()
}

// containersIn names the containers of a sandbox.
func (c *client) containersIn(ctx context.Context, id string) ([]string, error) {
	records, err := c.ContainerService().List(ctx)
	if err != nil {
		return nil, fmt.Errorf("list containers: %w", err)
	}
	var names []string
	for _, r := range records {
		if r.SandboxID == id || r.Labels[labelSandbox] == id {
			names = append(names, r.ID)
		}
	}
	return names, nil
}

func (a *app) sandboxWaitCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "wait ID",
		Short:   "Wait until a sandbox has stopped, and print its exit status",
		Example: "  caisson sandbox wait pod1",
		Args:    exactly(1, "the ID of one sandbox"),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, c, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			defer c.Close()
			if _, err := c.sandboxRecord(ctx, args[0]); err != nil {
				return err
			}
			st, err := c.controller().Wait(ctx, args[0])
			if err != nil {
				return fmt.Errorf("sandbox %q: wait: %w", args[0], err)
			}
			_, err = fmt.Fprintln(a.sys.Stdout, st.ExitStatus)
			return err
		},
	}
}
