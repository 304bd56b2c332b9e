package cli

import (
	"context"
	"fmt"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/errdefs"
	"github.com/spf13/cobra"
)

func (a *app) waitCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "wait CONTAINER...",
		Short:   "Wait until containers have ended, and print their exit codes",
		Example: "  caisson wait web\n  code=$(caisson wait job)",
		Args:    atLeast(1, "a container"),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, c, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			defer c.Close()
			return c.wait(ctx, args)
		},
	}
}

// wait prints the exit codes in the order of the containers. It waits for all of
// them from the beginning, so that one that is removed meanwhile is not missed.
func (c *client) wait(ctx context.Context, ids []string) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	waits := make([]func() (uint32, error), len(ids))
	for i, id := range ids {
		end, err := c.endOf(ctx, id)
		if err != nil {
			end = func() (uint32, error) { return 0, err }
		}
		waits[i] = end
	}
	var failed failures
	for _, end := range waits {
		code, err := end()
		if err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			failed = append(failed, err)
			continue
		}
		if _, err := fmt.Fprintln(c.app.sys.Stdout, code); err != nil {
			return err
		}
	}
	if len(failed) > 0 {
		return failed
	}
	return nil
}

// endOf begins to wait for a container; the answer blocks until it has ended.
func (c *client) endOf(ctx context.Context, id string) (func() (uint32, error), error) {
	ctr, err := c.load(ctx, id)
	if err != nil {
		return nil, err
	}
	task, st, err := taskOf(ctx, ctr)
	if err != nil {
		return nil, err
	}
	if task == nil {
		return nil, advise(errdefs.ErrFailedPrecondition, "container %q has no process to wait for: `caisson rm %s` removes it", id, id)
	}
	if st.Status == containerd.Stopped {
		return func() (uint32, error) { return st.ExitStatus, nil }, nil
	}
	exited, err := task.Wait(ctx)
	if err != nil {
		return nil, fmt.Errorf("container %q: wait: %w", id, err)
	}
	return func() (uint32, error) {
		code, err := awaitExit(ctx, task, exited)
		if err != nil {
			return 0, fmt.Errorf("container %q: wait: %w", id, err)
		}
		return code, nil
	}, nil
}
