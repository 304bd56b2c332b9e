package cli

import (
	"context"
	"fmt"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/spf13/cobra"
)

func (a *app) imageTagCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "tag IMAGE NAME",
		Short:   "Give an image another name, in place of what has it",
		Example: "  caisson image tag demo:latest registry.example/team/demo:1.0",
		Args:    exactly(2, "the name of an image, and another for it"),
		RunE: func(cmd *cobra.Command, args []string) error {
			name, err := imageName(args[1])
			if err != nil {
				return err
			}
			ctx, c, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			defer c.Close()
			if err := c.tag(ctx, args[0], name); err != nil {
				return err
			}
			_, err = fmt.Fprintln(a.sys.Stdout, name)
			return err
		},
	}
}

func (c *client) tag(ctx context.Context, ref, name string) error {
	image, err := c.findImage(ctx, ref)
	if errdefs.IsNotFound(err) {
		return noImage(err, ref)
	}
	if err != nil {
		return fmt.Errorf("image %q: %w", ref, err)
	}
	record := images.Image{Name: name, Target: image.Target(), Labels: image.Labels()}
	_, err = c.ImageService().Create(ctx, record)
	if errdefs.IsAlreadyExists(err) {
		_, err = c.ImageService().Update(ctx, record, "target", "labels")
	}
	if err != nil {
		return fmt.Errorf("image %q: write record: %w", name, err)
	}
	return nil
}
