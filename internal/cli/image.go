package cli

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/docker/go-units"
	"github.com/spf13/cobra"
)

func (a *app) imageCommand() *cobra.Command {
	return group("image", "Pull, push, import, save, inspect and remove images",
		"  caisson image import rootfs.tar demo:latest\n  caisson image pull docker.io/library/busybox:latest\n  caisson image ls",
		a.imagePullCommand(), a.imagePushCommand(), a.imageImportCommand(), a.imageListCommand(), a.imageRemoveCommand(),
		a.imageInspectCommand(), a.imageTagCommand(), a.imageSaveCommand())
}

// imageName gives a reference its full form: demo is docker.io/library/demo:latest.
func imageName(ref string) (string, error) {
	named, err := reference.ParseDockerRef(ref)
	if err != nil {
		return "", advise(errdefs.ErrInvalidArgument, "%q is not the name of an image (%v): write it like demo:latest or registry.example/team/demo:1.0", ref, err)
	}
	return named.String(), nil
}

// familiar is the short form of a name, for tables: what may be left out is.
func familiar(name string) string {
	named, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return name
	}
	return reference.FamiliarString(named)
}

// findImage looks an image up by the name it was given, then by its full form.
func (c *client) findImage(ctx context.Context, ref string) (containerd.Image, error) {
	image, err := c.GetImage(ctx, ref)
	if !errdefs.IsNotFound(err) {
		return image, err
	}
	full, err := imageName(ref)
	if err != nil {
		return nil, err
	}
	return c.GetImage(ctx, full)
}

// image finds an image, or pulls it, and makes it ready to run.
func (c *client) image(ctx context.Context, ref string, f registryFlags) (containerd.Image, error) {
	image, err := c.findImage(ctx, ref)
	if errdefs.IsNotFound(err) {
		fmt.Fprintf(c.app.sys.Stderr, "caisson: no image %q here, pulling it\n", ref)
		if image, err = c.pull(ctx, ref, transferFlags{registry: f}); err != nil {
			return nil, err
		}
	}
	if err != nil {
		return nil, fmt.Errorf("image %q: %w", ref, err)
	}
	if err := c.unpack(ctx, image, nil); err != nil {
		return nil, err
	}
	return image, nil
}

// imageRow is an image as `image ls` shows it.
type imageRow struct {
	Name      string            `json:"name"`
	Digest    string            `json:"digest"`
	MediaType string            `json:"mediaType"`
	Size      int64             `json:"size"` // bytes of content, -1 if some is missing
	Labels    map[string]string `json:"labels"`
	CreatedAt *time.Time        `json:"createdAt"`

	created string
}

func (r imageRow) key() string { return r.Name }
func (r imageRow) columns() []string {
	size := "incomplete"
	if r.Size >= 0 {
		size = units.BytesSize(float64(r.Size))
	}
	digest := r.Digest
	if len(digest) > 19 {
		digest = digest[:19] // sha256: and 12 digits
	}
	return []string{familiar(r.Name), digest, size, r.created}
}

func (a *app) imageListCommand() *cobra.Command {
	var o output
	cmd := &cobra.Command{
		Use:        "ls",
		Aliases:    []string{"list"},
		SuggestFor: []string{"images"},
		Short:      "List images",
		Example:    "  caisson image ls\n  caisson image ls -q",
		Args:       atMost(0, "no arguments"),
		RunE: lists(a, &o, []string{"IMAGE", "DIGEST", "SIZE", "CREATED"}, func(ctx context.Context, c *client, _ []string) ([]imageRow, error) {
			return c.imageRows(ctx)
		}),
	}
	o.addFormat(cmd, "table")
	o.addQuiet(cmd, "the names")
	return cmd
}

func (c *client) imageRows(ctx context.Context) ([]imageRow, error) {
	all, err := c.ListImages(ctx)
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	slices.SortFunc(all, func(a, b containerd.Image) int { return cmp.Compare(a.Name(), b.Name()) })
	rows := make([]imageRow, 0, len(all))
	for _, image := range all {
		size, err := image.Size(ctx)
		if err != nil {
			size = -1
		}
		rows = append(rows, newImageRow(time.Now(), image.Metadata(), size))
	}
	return rows, nil
}

func newImageRow(now time.Time, image images.Image, size int64) imageRow {
	row := imageRow{
		Name:      image.Name,
		Digest:    image.Target.Digest.String(),
		MediaType: image.Target.MediaType,
		Size:      size,
		Labels:    image.Labels,
		CreatedAt: stamp(image.CreatedAt),
		created:   ago(now, image.CreatedAt),
	}
	if row.Labels == nil {
		row.Labels = map[string]string{}
	}
	return row
}

func (a *app) imageRemoveCommand() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:        "rm IMAGE...",
		SuggestFor: []string{"rmi", "prune"},
		Short:      "Remove images",
		Example:    "  caisson image rm demo:latest",
		Args:       atLeast(1, "the name of an image"),
		RunE:       a.forEach(func(ctx context.Context, c *client, ref string) error { return c.removeImage(ctx, ref, force) }),
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "even if containers were made from it; an image that is not there is no error")
	return cmd
}

func (c *client) removeImage(ctx context.Context, ref string, force bool) error {
	image, err := c.findImage(ctx, ref)
	if errdefs.IsNotFound(err) {
		if force {
			return nil
		}
		return noImage(err, ref)
	}
	if err != nil {
		return fmt.Errorf("image %q: %w", ref, err)
	}
	if !force {
		records, err := c.ContainerService().List(ctx)
		if err != nil {
			return fmt.Errorf("list containers: %w", err)
		}
		for _, r := range records {
			if r.Image == image.Name() {
				return advise(errdefs.ErrFailedPrecondition, "image %q is used by container %q; remove that first: caisson rm %s, or remove the image all the same: caisson image rm -f %s", ref, r.ID, r.ID, ref)
			}
		}
	}
	// Synchronous, so that what the image took is free when the command ends.
	if err := c.ImageService().Delete(ctx, image.Name(), images.SynchronousDelete()); ignoreNotFound(err) != nil {
		return fmt.Errorf("image %q: remove: %w", ref, err)
	}
	return nil
}
