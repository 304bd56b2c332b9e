package cli

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"slices"

	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/defaults"
	"github.com/containerd/errdefs"
	"github.com/docker/go-units"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// diskUse is what a namespace takes on disk.
type diskUse struct {
	Images     []imageUse     `json:"images"`
	Snapshots  []snapshotUse  `json:"snapshots"`
	Containers []containerUse `json:"containers"`

	content, used int64 // bytes of all content, and of what images of containers need
}

// imageUse is an image's content, which it may share with others.
type imageUse struct {
	Name       string `json:"name"`
	Digest     string `json:"digest"`
	Size       int64  `json:"size"`
	Containers int    `json:"containers"`
}

// snapshotUse is a layer that was unpacked.
type snapshotUse struct {
	Key         string `json:"key"`
	Snapshotter string `json:"snapshotter"`
	Size        int64  `json:"size"`
	Used        bool   `json:"used"` // below a container
}

// containerUse is what a container has written, to its root filesystem and its log.
type containerUse struct {
	ID       string `json:"id"`
	Image    string `json:"image"`
	Status   string `json:"status"`
	Size     int64  `json:"size"`
	Log      string `json:"log"`
	LogSize  int64  `json:"logSize"`
	Prunable bool   `json:"prunable"` // `caisson prune` removes it

	alive bool
}

func (c *client) diskUse(ctx context.Context) (diskUse, error) {
	records, err := c.ContainerService().List(ctx)
	if err != nil {
		return diskUse{}, fmt.Errorf("list containers: %w", err)
	}
	var d diskUse
	if d.Containers, err = c.containerUses(ctx, records); err != nil {
		return d, err
	}
	if d.Snapshots, err = c.snapshotUses(ctx, records); err != nil {
		return d, err
	}
	return d, c.imageUses(ctx, records, &d)
}

// containerUses are in the order of `ps`.
func (c *client) containerUses(ctx context.Context, records []containers.Container) ([]containerUse, error) {
	rows, err := c.containerRows(ctx, true)
	if err != nil {
		return nil, err
	}
	uses := []containerUse{}
	for _, row := range rows {
		i := slices.IndexFunc(records, func(r containers.Container) bool { return r.ID == row.ID })
		if i < 0 {
			continue // made since
		}
		use := containerUse{ID: row.ID, Image: row.Image, Status: row.Status, Log: row.Log, Prunable: row.prunable(), alive: row.alive()}
		if use.Size, err = c.rootfsSize(ctx, records[i]); err != nil {
			return nil, err
		}
		if info, err := os.Lstat(row.Log); err == nil && info.Mode().IsRegular() {
			use.LogSize = info.Size()
		}
		uses = append(uses, use)
	}
	return uses, nil
}

// rootfsSize is what a container's root filesystem has besides its image.
func (c *client) rootfsSize(ctx context.Context, r containers.Container) (int64, error) {
	if r.SnapshotKey == "" {
		return 0, nil
	}
	usage, err := c.SnapshotService(r.Snapshotter).Usage(ctx, r.SnapshotKey)
	if ignoreNotFound(err) != nil {
		return 0, fmt.Errorf("container %q: size: %w", r.ID, err)
	}
	return usage.Size, nil
}

// snapshotUses are those of the snapshotters that images and containers have.
func (c *client) snapshotUses(ctx context.Context, records []containers.Container) ([]snapshotUse, error) {
	own, err := c.ownSnapshotter(ctx)
	if err != nil {
		return nil, err
	}
	names := []string{cmp.Or(own, defaults.DefaultSnapshotter)}
	for _, r := range records {
		if r.Snapshotter != "" && !slices.Contains(names, r.Snapshotter) {
			names = append(names, r.Snapshotter)
		}
	}
	uses := []snapshotUse{}
	for _, name := range names {
		found, err := layerUses(ctx, c.SnapshotService(name), name)
		if err != nil {
			return nil, fmt.Errorf("snapshots of %s: %w", name, err)
		}
		uses = append(uses, found...)
	}
	return uses, nil
}

func layerUses(ctx context.Context, store snapshots.Snapshotter, name string) ([]snapshotUse, error) {
	all := map[string]snapshots.Info{}
	err := store.Walk(ctx, func(_ context.Context, info snapshots.Info) error {
		all[info.Name] = info
		return nil
	})
	if errdefs.IsNotFound(err) {
		return nil, nil // this daemon has no such snapshotter
	}
	if err != nil {
		return nil, err
	}
	used := map[string]bool{}
	for _, info := range all {
		if info.Kind == snapshots.KindCommitted {
			continue
		}
		for key := info.Parent; key != "" && !used[key]; key = all[key].Parent {
			used[key] = true
		}
	}
	var uses []snapshotUse
	for key, info := range all {
		if info.Kind != snapshots.KindCommitted {
			continue
		}
		usage, err := store.Usage(ctx, key)
		if ignoreNotFound(err) != nil { // it may be gone
			return nil, err
		}
		uses = append(uses, snapshotUse{Key: key, Snapshotter: name, Size: usage.Size, Used: used[key]})
	}
	slices.SortFunc(uses, func(a, b snapshotUse) int { return cmp.Compare(a.Key, b.Key) })
	return uses, nil
}

// imageUses adds the images, and what all content takes.
func (c *client) imageUses(ctx context.Context, records []containers.Container, d *diskUse) error {
	all, err := c.ImageService().List(ctx)
	if err != nil {
		return fmt.Errorf("list images: %w", err)
	}
	store, blobs := c.ContentStore(), map[digest.Digest]int64{}
	err = store.Walk(ctx, func(info content.Info) error {
		blobs[info.Digest] = info.Size
		d.content += info.Size
		return nil
	})
	if err != nil {
		return fmt.Errorf("list content: %w", err)
	}
	d.Images = []imageUse{}
	needed := map[digest.Digest]bool{}
	for _, image := range all {
		use := imageUse{Name: image.Name, Digest: image.Target.Digest.String()}
		for _, r := range records {
			if r.Image == image.Name {
				use.Containers++
			}
		}
		for sum := range contentOf(ctx, store, image.Target, blobs) {
			use.Size += blobs[sum]
			if use.Containers > 0 && !needed[sum] {
				needed[sum] = true
				d.used += blobs[sum]
			}
		}
		d.Images = append(d.Images, use)
	}
	slices.SortFunc(d.Images, func(a, b imageUse) int { return cmp.Compare(a.Name, b.Name) })
	return nil
}

// contentOf is what is here of the content below a descriptor.
func contentOf(ctx context.Context, store content.Store, target ocispec.Descriptor, blobs map[digest.Digest]int64) map[digest.Digest]bool {
	found := map[digest.Digest]bool{}
	children := boundedChildren(store)
	// What cannot be read has no children to count.
	_ = images.Walk(ctx, images.HandlerFunc(func(ctx context.Context, desc ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		if _, here := blobs[desc.Digest]; !here || found[desc.Digest] {
			return nil, images.ErrSkipDesc
		}
		found[desc.Digest] = true
		below, err := children(ctx, desc)
		if err != nil {
			return nil, images.ErrSkipDesc
		}
		return below, nil
	}), target)
	return found
}

// useRow is a line of `system df`.
type useRow struct {
	Type        string `json:"type"`
	Total       int    `json:"total"`
	Active      int    `json:"active"`
	Size        int64  `json:"size"`
	Reclaimable int64  `json:"reclaimable"`
}

func (r useRow) key() string { return r.Type }
func (r useRow) columns() []string {
	reclaimable := units.BytesSize(float64(r.Reclaimable))
	if r.Size > 0 {
		reclaimable += fmt.Sprintf(" (%d%%)", 100*r.Reclaimable/r.Size)
	}
	return []string{r.Type, fmt.Sprint(r.Total), fmt.Sprint(r.Active), units.BytesSize(float64(r.Size)), reclaimable}
}

func (r *useRow) add(active, reclaimable bool, size int64) {
	r.Total++
	r.Size += size
	if active {
		r.Active++
	}
	if reclaimable {
		r.Reclaimable += size
	}
}

// rows sum it up.
func (d diskUse) rows() []useRow {
	ims := useRow{Type: "Images"}
	active := map[string]bool{} // by digest: one image may have several names
	for _, i := range d.Images {
		active[i.Digest] = active[i.Digest] || i.Containers > 0
	}
	for _, used := range active {
		ims.add(used, false, 0)
	}
	ims.Size, ims.Reclaimable = d.content, d.content-d.used
	layers, ctrs, logs := useRow{Type: "Snapshots"}, useRow{Type: "Containers"}, useRow{Type: "Logs"}
	for _, s := range d.Snapshots {
		layers.add(s.Used, !s.Used, s.Size)
	}
	for _, c := range d.Containers {
		ctrs.add(c.alive, c.Prunable, c.Size)
		if c.Log != "" {
			logs.add(c.alive, c.Prunable, c.LogSize)
		}
	}
	return []useRow{ims, layers, ctrs, logs}
}
