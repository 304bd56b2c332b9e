package cli

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/docker/go-units"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/cobra"
)

// imageDetails is an image as `image inspect` shows it. Manifest and config are those
// for this platform, null if they are not here.
type imageDetails struct {
	imageRow
	UpdatedAt *time.Time        `json:"updatedAt"`
	Platforms []string          `json:"platforms"`
	Manifest  *ocispec.Manifest `json:"manifest"`
	Config    *ocispec.Image    `json:"config"`
}

func (d imageDetails) lines() [][]string {
	lines := [][]string{
		{"image", familiar(d.Name)},
		{"digest", d.Digest},
		{"size", units.BytesSize(float64(max(d.Size, 0)))},
		{"platforms", strings.Join(d.Platforms, ",")},
		{"created", d.created},
	}
	if d.Config != nil {
		lines = append(lines,
			[]string{"entrypoint", strings.Join(d.Config.Config.Entrypoint, " ")},
			[]string{"command", strings.Join(d.Config.Config.Cmd, " ")})
	}
	return append(lines, labelLines(d.Labels)...)
}

func (a *app) imageInspectCommand() *cobra.Command {
	return inspects(a, &cobra.Command{
		Use:     "inspect IMAGE...",
		Short:   "Show all that is known of images",
		Example: "  caisson image inspect demo\n  caisson image inspect -f '{{.digest}} {{json .config.config.Cmd}}' demo:latest",
		Args:    atLeast(1, "the name of an image"),
	}, func(ctx context.Context, c *client, ref string) (imageDetails, error) {
		return c.imageDetails(ctx, ref)
	})
}

// noImage is the error of an image that is not there.
func noImage(class error, ref string) error {
	return advise(class, "no image %q: `caisson image ls` shows those there are", ref)
}

func (c *client) imageDetails(ctx context.Context, ref string) (imageDetails, error) {
	image, err := c.findImage(ctx, ref)
	if errdefs.IsNotFound(err) {
		return imageDetails{}, noImage(err, ref)
	}
	if err != nil {
		return imageDetails{}, fmt.Errorf("image %q: %w", ref, err)
	}
	size, err := image.Size(ctx)
	if err != nil {
		size = -1
	}
	d := imageDetails{
		imageRow:  newImageRow(time.Now(), image.Metadata(), size),
		UpdatedAt: stamp(image.Metadata().UpdatedAt),
		Platforms: []string{},
	}
	// What is not here of an image is no reason to show nothing of it.
	if all, err := images.Platforms(ctx, image.ContentStore(), image.Target()); err == nil {
		for _, p := range all {
			d.Platforms = append(d.Platforms, platforms.Format(p))
		}
	}
	if manifest, err := images.Manifest(ctx, image.ContentStore(), image.Target(), image.Platform()); err == nil {
		d.Manifest = &manifest
		if config, err := image.Spec(ctx); err == nil {
			d.Config = &config
		}
	}
	return d, nil
}
