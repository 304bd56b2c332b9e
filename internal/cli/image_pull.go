package cli

import (
	"context"
	"fmt"
	"slices"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/images"
	transferimage "github.com/containerd/containerd/v2/core/transfer/image"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/cobra"
)

func (a *app) imagePullCommand() *cobra.Command {
	var f transferFlags
	cmd := &cobra.Command{
		Use:   "pull IMAGE",
		Short: "Pull an image from its registry",
		Long: "Pull an image and unpack it. Credentials come from Docker's configuration (`caisson login`), mirrors\n" +
			"from hosts.toml. A pull that fails goes on where it was if it is repeated within an hour; one that\n" +
			"is interrupted leaves nothing.",
		Example: "  caisson image pull busybox\n  caisson image pull --platform linux/arm64 docker.io/library/busybox:latest\n" +
			"  caisson image pull -q 127.0.0.1:5000/demo@sha256:...",
		Args: exactly(1, "the name of one image"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if _, err := imageName(args[0]); err != nil {
				return err
			}
			return a.withClient(cmd.Context(), func(ctx context.Context, c *client) error {
				image, err := c.pull(ctx, args[0], f)
				if err != nil {
					return err
				}
				_, err = fmt.Fprintln(a.sys.Stdout, image.Name())
				return err
			})
		},
	}
	f.add(a, cmd, "this machine's", "the image's name")
	return cmd
}

// pull fetches an image and unpacks it.
func (c *client) pull(ctx context.Context, ref string, f transferFlags) (containerd.Image, error) {
	name, err := imageName(ref)
	if err != nil {
		return nil, err
	}
	if err := f.platform.check(); err != nil {
		return nil, err
	}
	stores, err := c.pullStores(ctx, name, f.platform)
	if err != nil {
		return nil, err
	}
	var image containerd.Image
	err = c.resumable(ctx, name, func(ctx context.Context) error {
		for _, store := range stores {
			if err := c.fetch(ctx, name, store, f); err != nil {
				return err
			}
		}
		if image, err = c.GetImage(ctx, name); err != nil {
			return fmt.Errorf("image %q: %w", name, err)
		}
		if err := hasPlatforms(ctx, image, f.platform.want); err != nil {
			return err
		}
		if !f.platform.host() {
			return nil
		}
		d := c.app.display(f.quiet)
		defer d.Close()
		return c.unpack(ctx, image, d)
	})
	if err != nil {
		return nil, err
	}
	if !f.quiet {
		fmt.Fprintf(c.app.sys.Stderr, "digest: %s\n", image.Target().Digest) // the result is on standard output
	}
	return image, nil
}

// pullStores are what the image is pulled into, one after the other: one for each
// platform, since the best match for each is wanted and no more.
func (c *client) pullStores(ctx context.Context, name string, f platformFlags) ([]*transferimage.Store, error) {
	if f.all {
		return []*transferimage.Store{transferimage.NewStore(name)}, nil
	}
	snapshotter, err := c.ownSnapshotter(ctx)
	if err != nil {
		return nil, err
	}
	want := f.want
	if len(want) == 0 {
		want = []ocispec.Platform{platforms.DefaultSpec()}
	}
	var stores []*transferimage.Store
	for _, p := range want {
		opts := []transferimage.StoreOpt{transferimage.WithPlatforms(p), transferimage.WithManifestLimit(1)}
		// The daemon unpacks while it fetches; with the snapshotter of its configuration,
		// which for a namespace with another is the wrong one.
		if snapshotter == "" && p.OS == "linux" {
			opts = append(opts, transferimage.WithUnpack(p, ""))
		}
		stores = append(stores, transferimage.NewStore(name, opts...))
	}
	return stores, nil
}

// hasPlatforms looks for the platforms that were asked for: an image without an index
// has but one, and the daemon takes it whichever that is.
func hasPlatforms(ctx context.Context, image containerd.Image, want []ocispec.Platform) error {
	if len(want) == 0 || images.IsIndexType(image.Target().MediaType) {
		return nil
	}
	has, err := images.Platforms(ctx, image.ContentStore(), image.Target())
	if err != nil {
		return fmt.Errorf("image %q: %w", image.Name(), err)
	}
	for _, p := range want {
		if !slices.ContainsFunc(has, platforms.Only(p).Match) {
			return advise(errdefs.ErrNotFound, "image %q is not there for %s, only for %s, for which it is here now", image.Name(), platforms.Format(p), platforms.Format(has[0]))
		}
	}
	return nil
}

// fetch lets the daemon pull into a store.
func (c *client) fetch(ctx context.Context, name string, store *transferimage.Store, f transferFlags) error {
	err := c.talk(ctx, name, f.registry, f.quiet, func(ctx context.Context, t talk) error {
		return c.transfer(ctx, t.registry, store, t.display)
	})
	switch {
	case err == nil:
		return nil
	case errdefs.IsNotFound(err) && ctx.Err() == nil:
		return advise(err, "image %q is not in its registry, or there only for other platforms: %s; check the name, choose with --platform, or import an archive with `caisson image import`", name, clean(err.Error()))
	}
	return f.registry.explain(ctx, err, name, "pulled")
}
