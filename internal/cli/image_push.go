package cli

import (
	"context"
	"fmt"
	"time"

	"github.com/containerd/containerd/v2/core/images"
	transferimage "github.com/containerd/containerd/v2/core/transfer/image"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/cobra"
)

func (a *app) imagePushCommand() *cobra.Command {
	var f transferFlags
	cmd := &cobra.Command{
		Use:   "push IMAGE",
		Short: "Push an image to the registry that its name tells",
		Long: "Push an image, with all its platforms that are here. Give it the name of a registry first, with\n" +
			"`caisson image tag`. Credentials come from Docker's configuration (`caisson login`).",
		Example: "  caisson image tag demo registry.example/team/demo:1.0 && caisson image push registry.example/team/demo:1.0\n" +
			"  caisson image push --platform linux/amd64 127.0.0.1:5000/demo",
		Args: exactly(1, "the name of one image"),
		RunE: func(cmd *cobra.Command, args []string) error {
			name, err := imageName(args[0])
			if err != nil {
				return err
			}
			if err := f.platform.check(); err != nil {
				return err
			}
			return a.withClient(cmd.Context(), func(ctx context.Context, c *client) error {
				pushed, err := c.push(ctx, args[0], name, f)
				if err != nil {
					return err
				}
				_, err = fmt.Fprintf(a.sys.Stdout, "%s@%s\n", name, pushed)
				return err
			})
		},
	}
	f.add(a, cmd, "those that are here", "the name and the digest")
	return cmd
}

// push sends an image to its registry and answers the digest that it has there.
func (c *client) push(ctx context.Context, ref, name string, f transferFlags) (digest.Digest, error) {
	image, err := c.findImage(ctx, ref)
	if errdefs.IsNotFound(err) {
		return "", noImage(err, ref)
	}
	if err != nil {
		return "", fmt.Errorf("image %q: %w", ref, err)
	}
	ctx, done, err := c.WithLease(ctx)
	if err != nil {
		return "", fmt.Errorf("lease: %w", err)
	}
	defer func() { _ = detached(ctx, done) }() // it expires by itself

	target, err := pushTarget(ctx, c.ContentStore(), image.Name(), image.Target(), f.platform)
	if err != nil {
		return "", err
	}
	source := image.Name()
	if target.Digest != image.Target().Digest {
		remove, err := c.lend(ctx, target)
		if err != nil {
			return "", fmt.Errorf("image %q: %w", ref, err)
		}
		defer remove()
		source = lentName(target)
		if !f.quiet {
			fmt.Fprintf(c.app.sys.Stderr, "caisson: not all platforms of %s are pushed, so it has another digest there\n", familiar(name))
		}
	}
	err = c.talk(ctx, name, f.registry, f.quiet, func(ctx context.Context, t talk) error {
		return c.transfer(ctx, transferimage.NewStore(source), t.registry, t.display)
	})
	if err != nil {
		return "", f.registry.explain(ctx, err, name, "pushed")
	}
	return target.Digest, nil
}

// The transfer service pushes what has a name. What is a part of an image gets one for
// as long as it is pushed; the label is for a caisson that does not come to remove it.
func lentName(target ocispec.Descriptor) string { return "caisson/push@" + target.Digest.String() }

func (c *client) lend(ctx context.Context, target ocispec.Descriptor) (remove func(), err error) {
	name := lentName(target)
	_, err = c.ImageService().Create(ctx, images.Image{Name: name, Target: target, Labels: map[string]string{
		"containerd.io/gc.expire": time.Now().Add(24 * time.Hour).Format(time.RFC3339),
	}})
	if err != nil && !errdefs.IsAlreadyExists(err) { // another push of the same
		return nil, fmt.Errorf("write record: %w", err)
	}
	return func() {
		_ = detached(ctx, func(ctx context.Context) error { return c.ImageService().Delete(ctx, name) }) // it expires
	}, nil
}
