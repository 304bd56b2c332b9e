package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/images/archive"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/spf13/cobra"
)

func (a *app) imageSaveCommand() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "save IMAGE...",
		Short: "Write images to an archive",
		Long: "Write images, with what is for this platform, to one OCI archive, which Docker can load and\n" +
			"`caisson image import` can import. A file is replaced only when all of it is written.",
		Example: "  caisson image save -o demo.tar demo:latest\n  caisson image save demo | ssh host caisson image import -",
		Args:    atLeast(1, "the name of an image"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if file == "-" {
				file = "" // as elsewhere
			}
			if file == "" && isTerminal(fileOf(a.sys.Stdout)) {
				return advise(errdefs.ErrInvalidArgument, "standard output is a terminal: name a file with --output, or send it somewhere")
			}
			ctx, c, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			defer c.Close()
			var all []images.Image
			for _, ref := range args {
				image, err := c.findImage(ctx, ref)
				if errdefs.IsNotFound(err) {
					return noImage(err, ref)
				}
				if err != nil {
					return fmt.Errorf("image %q: %w", ref, err)
				}
				all = append(all, image.Metadata())
			}
			save := func(w io.Writer) error { return c.save(ctx, w, all) }
			if file == "" {
				return save(a.sys.Stdout)
			}
			return replaceFile(file, save)
		},
	}
	cmd.Flags().StringVarP(&file, "output", "o", "", "the file to write, instead of standard output, which is also -")
	return cmd
}

func (c *client) save(ctx context.Context, w io.Writer, all []images.Image) error {
	err := c.Export(ctx, w, archive.WithImages(all), archive.WithPlatform(platforms.DefaultStrict()))
	if errdefs.IsNotFound(err) {
		return advise(err, "some content of the images is not here: %s; pull or import them again", clean(err.Error()))
	}
	if err != nil {
		return fmt.Errorf("save: %w", err)
	}
	return nil
}

// replaceFile puts a file in place of another once it is whole. What is no regular
// file, such as /dev/null, is written to.
func replaceFile(path string, write func(io.Writer) error) (err error) {
	if info, err := os.Stat(path); err == nil && !info.Mode().IsRegular() {
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		return errors.Join(write(f), f.Close())
	}
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-")
	if err != nil {
		if failed := (*fs.PathError)(nil); errors.As(err, &failed) {
			failed.Path = path // that somebody has named
		}
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	if err := errors.Join(write(f), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
