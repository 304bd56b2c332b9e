package cli

import (
	"context"
	"fmt"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/errdefs"
	"github.com/spf13/cobra"
)

func (a *app) pauseCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "pause CONTAINER...",
		Short:   "Freeze the processes of containers",
		Example: "  caisson pause web\n  caisson pause $(caisson ps -q)",
		Args:    atLeast(1, "a container"),
		RunE: a.forEach(func(ctx context.Context, c *client, id string) error {
			_, task, err := c.running(ctx, id)
			if err != nil {
				return err
			}
			if err := task.Pause(ctx); err != nil {
				return fmt.Errorf("container %q: pause: %w", id, err)
			}
			return nil
		}),
	}
}

func (a *app) unpauseCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "unpause CONTAINER...",
		Short:   "Let paused containers go on",
		Example: "  caisson unpause web",
		Args:    atLeast(1, "a container"),
		RunE: a.forEach(func(ctx context.Context, c *client, id string) error {
			_, task, err := c.running(ctx, id)
			if err != nil {
				return err
			}
			st, err := task.Status(ctx)
			if err != nil {
				return fmt.Errorf("container %q: state: %w", id, err)
			}
			if st.Status == containerd.Running {
				return advise(errdefs.ErrFailedPrecondition, "container %q is not paused: `caisson ps` shows which are", id)
			}
			if err := task.Resume(ctx); err != nil {
				return fmt.Errorf("container %q: unpause: %w", id, err)
			}
			return nil
		}),
	}
}
