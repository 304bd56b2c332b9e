package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/images/archive"
	"github.com/containerd/containerd/v2/pkg/archive/compression"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/cobra"

	"caisson/internal/progress"
)

func (a *app) imageImportCommand() *cobra.Command {
	var plan importPlan
	var quiet bool
	cmd := &cobra.Command{
		Use:        "import FILE|- [NAME]",
		SuggestFor: []string{"load"},
		Short:      "Import an image from an archive, or make one of a root filesystem",
		Long: "Import an OCI or Docker archive, or make an image of a tar of a root filesystem, which needs\n" +
			"a NAME. The tar may be compressed with gzip or zstd. An archive that names no image needs a\n" +
			"NAME too.",
		Example: "  caisson image import saved.tar\n  caisson image import --cmd /bin/sh rootfs.tar.gz demo:latest\n" +
			"  tar -C rootfs -c . | caisson image import - demo:latest",
		Args: func(cmd *cobra.Command, args []string) error {
			return countArgs(cmd, len(args), 1, 2, "a file, and a name for the image")
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 2 {
				name, err := imageName(args[1])
				if err != nil {
					return err
				}
				plan.name = name
			}
			return a.importImage(cmd.Context(), args[0], plan, quiet)
		},
	}
	flags := cmd.Flags()
	flags.BoolVarP(&quiet, "quiet", "q", false, "show only the names of the images")
	flags.StringArrayVar(&plan.config.Entrypoint, "entrypoint", nil, "entrypoint of the image made of a root filesystem, once for each word")
	flags.StringArrayVar(&plan.config.Cmd, "cmd", nil, "command of the image made of a root filesystem, once for each word")
	flags.StringArrayVarP(&plan.config.Env, "env", "e", nil, "environment of the image made of a root filesystem, NAME=value")
	flags.StringVarP(&plan.config.WorkingDir, "workdir", "w", "", "working directory of the image made of a root filesystem")
	flags.StringVarP(&plan.config.User, "user", "u", "", "user of the image made of a root filesystem")
	return cmd
}

// importPlan is what an image is made of besides the archive.
type importPlan struct {
	name   string // "" to take the archive's own names
	config ocispec.ImageConfig
}

func (p importPlan) configures() bool {
	c := p.config
	return len(c.Entrypoint)+len(c.Cmd)+len(c.Env)+len(c.WorkingDir)+len(c.User) > 0
}

func (a *app) importImage(ctx context.Context, path string, plan importPlan, quiet bool) error {
	d := a.display(quiet)
	imported, err := a.importAll(ctx, path, plan, d)
	d.Close() // before anything else is written to the terminal
	for _, image := range imported {
		if _, err := fmt.Fprintln(a.sys.Stdout, image.Name); err != nil {
			return err
		}
	}
	return err
}

// importAll answers the images that have been imported, also beside an error.
func (a *app) importAll(ctx context.Context, path string, plan importPlan, d *progress.Display) ([]images.Image, error) {
	file, err := a.openArchive(ctx, path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	found, err := survey(ctx, showReads(file, d, "checking"), defaultBounds)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if found.kind == rootfsTar && plan.name == "" {
		return nil, advise(errdefs.ErrInvalidArgument, "%s is a root filesystem, not an image archive, so the image needs a name: caisson image import %s demo:latest", path, path)
	}
	if found.kind != rootfsTar && plan.configures() {
		return nil, advise(errdefs.ErrInvalidArgument, "%s is an %s, which has a configuration of its own: leave out --cmd, --entrypoint, --env, --workdir and --user", path, found.kind)
	}
	if _, err := file.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	ctx, c, err := a.connect(ctx)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	// The lease keeps the content from the garbage collector until images name it.
	ctx, done, err := c.WithLease(ctx)
	if err != nil {
		return nil, fmt.Errorf("lease: %w", err)
	}
	defer func() { _ = detached(ctx, done) }() // it expires by itself

	var all []images.Image
	archive := showReads(file, d, "importing")
	if found.kind == rootfsTar {
		all, err = importRootfs(ctx, c.ContentStore(), archive, found, plan)
	} else {
		all, err = importArchive(ctx, c.ContentStore(), archive, plan)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: import: %w", path, err)
	}
	archive.ended()
	for i, image := range all {
		if err := c.storeImage(ctx, image, d); err != nil {
			return all[:i], err
		}
	}
	return all, nil
}

// shownReader shows how much of an archive was read.
type shownReader struct {
	io.Reader
	display *progress.Display
	state   progress.State
}

func showReads(file *os.File, d *progress.Display, step string) *shownReader {
	r := &shownReader{Reader: file, display: d, state: progress.State{Step: step}}
	if info, err := file.Stat(); err == nil {
		r.state.Total = info.Size()
	}
	r.show()
	return r
}

func (r *shownReader) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	r.state.Done += int64(n)
	r.show()
	return n, err
}

func (r *shownReader) ended() {
	r.state.Step, r.state.Ended = "imported", true
	r.show()
}

func (r *shownReader) show() { r.display.Set("archive", "archive", r.state) }

// storeImage names what was imported, in place of what had the name, and unpacks it.
func (c *client) storeImage(ctx context.Context, image images.Image, d *progress.Display) error {
	store := c.ImageService()
	_, err := store.Create(ctx, image)
	if errdefs.IsAlreadyExists(err) {
		_, err = store.Update(ctx, image, "target")
	}
	if err != nil {
		return fmt.Errorf("image %q: write record: %w", image.Name, err)
	}
	return c.unpack(ctx, containerd.NewImage(c.Client, image), d)
}

// openArchive opens a file that can be read twice: standard input, and what
// cannot seek, is put into a file without a name first.
func (a *app) openArchive(ctx context.Context, path string) (*os.File, error) {
	source := a.sys.Stdin
	if path != "-" {
		f, err := openWaiting(path)
		if err != nil {
			return nil, err
		}
		info, err := f.Stat()
		switch {
		case err != nil:
		case info.IsDir():
			err = advise(errdefs.ErrInvalidArgument, "%s is a directory: pack it first, as in `tar -C %s -c . | caisson image import - NAME`", path, path)
		case info.Mode().IsRegular():
			return f, nil
		}
		if err != nil {
			f.Close()
			return nil, err
		}
		defer f.Close()
		source = f
	} else if isTerminal(source) {
		return nil, advise(errdefs.ErrInvalidArgument, "standard input is a terminal: send an archive, or name a file")
	}
	temp, err := os.CreateTemp(a.sys.TempDir, "caisson-import-")
	if err != nil {
		return nil, err
	}
	if err := os.Remove(temp.Name()); err != nil {
		temp.Close()
		return nil, err
	}
	n, err := io.Copy(temp, io.LimitReader(inStream{ctx, source}, defaultBounds.total+1))
	if err == nil && n > defaultBounds.total {
		err = fmt.Errorf("more than %d bytes: %w", defaultBounds.total, errdefs.ErrResourceExhausted)
	}
	if err == nil {
		_, err = temp.Seek(0, io.SeekStart)
	}
	if err != nil {
		temp.Close()
		return nil, fmt.Errorf("%s: read: %w", path, err)
	}
	return temp, nil
}

// importArchive stores the content of an OCI or Docker archive and answers the
// images it names. Survey has bounded it and checked the digests of its blobs.
func importArchive(ctx context.Context, store content.Store, r io.Reader, plan importPlan) ([]images.Image, error) {
	stream, err := compression.DecompressStream(r)
	if err != nil {
		return nil, err
	}
	defer stream.Close()
	index, err := archive.ImportIndex(ctx, store, stream)
	if err != nil {
		return nil, err
	}
	// containerd takes any tar entry for a blob and any digest for a child, so a
	// child may be missing, and a manifest of any size.
	children := images.FilterPlatforms(boundedChildren(store), platforms.Only(platforms.DefaultSpec()))
	if err := images.WalkNotEmpty(ctx, images.SetChildrenLabels(store, children), index); err != nil {
		return nil, err
	}
	blob, err := content.ReadBlob(ctx, store, index)
	if err != nil {
		return nil, err
	}
	var idx ocispec.Index
	if err := json.Unmarshal(blob, &idx); err != nil {
		return nil, fmt.Errorf("index: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	all, err := namedImages(idx, plan.name)
	if err != nil {
		return nil, err
	}
	for _, image := range all {
		// The manifests of other platforms were not looked at: one that is not there must
		// not get a name.
		if _, err := store.Info(ctx, image.Target.Digest); err != nil {
			return nil, fmt.Errorf("manifest of %q: %w", image.Name, err)
		}
	}
	return all, nil
}

// namedImages are the images of an index: under their own names, or the one
// there is under the given name.
func namedImages(idx ocispec.Index, name string) ([]images.Image, error) {
	if name != "" {
		digests := map[string]ocispec.Descriptor{}
		for _, d := range idx.Manifests {
			digests[d.Digest.String()] = d
		}
		if len(digests) != 1 {
			return nil, advise(errdefs.ErrInvalidArgument, "the archive holds %d images: leave the name out to import them under their own", len(digests))
		}
		return []images.Image{{Name: name, Target: idx.Manifests[0]}}, nil
	}
	var all []images.Image
	for _, d := range idx.Manifests {
		ref := d.Annotations[images.AnnotationImageName]
		if ref == "" {
			ref = d.Annotations[ocispec.AnnotationRefName]
		}
		if ref == "" {
			continue
		}
		full, err := imageName(ref)
		if err != nil {
			return nil, err
		}
		all = append(all, images.Image{Name: full, Target: d})
	}
	if len(all) == 0 {
		return nil, advise(errdefs.ErrInvalidArgument, "the archive names no image: give a name after the file")
	}
	return all, nil
}

// boundedChildren reads manifests, but none that is larger than one may be.
func boundedChildren(store content.Store) images.HandlerFunc {
	return func(ctx context.Context, desc ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		if images.IsManifestType(desc.MediaType) || images.IsIndexType(desc.MediaType) {
			info, err := store.Info(ctx, desc.Digest)
			if err != nil {
				return nil, fmt.Errorf("manifest %s: %w", desc.Digest, err)
			}
			if info.Size > maxManifest {
				return nil, fmt.Errorf("manifest %s: %d bytes, limit %d: %w", desc.Digest, info.Size, int64(maxManifest), errdefs.ErrResourceExhausted)
			}
		}
		return images.Children(ctx, store, desc)
	}
}
