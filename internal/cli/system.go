package cli

import (
	"fmt"
	"strconv"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"
)

func (a *app) systemCommand() *cobra.Command {
	return group("system", "See what there is as a whole", "  caisson system df", a.systemDFCommand())
}

func (a *app) systemDFCommand() *cobra.Command {
	var o output
	var verbose bool
	cmd := &cobra.Command{
		Use:   "df",
		Short: "Show what images, containers and logs take on disk",
		Long: "Show what the namespace takes on disk. Images are the content that was pulled or imported, snapshots\n" +
			"their layers as they were unpacked; both are reclaimable if no container needs them, by `caisson image\n" +
			"rm`. Containers are what they have written to their root filesystem, logs the output of detached ones;\n" +
			"reclaimable is what `caisson prune` removes.",
		Example: "  caisson system df\n  caisson system df -v\n  caisson system df --format '{{.type}} {{.size}}'",
		Args:    atMost(0, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := o.check(); err != nil {
				return err
			}
			ctx, c, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			defer c.Close()
			d, err := c.diskUse(ctx)
			switch {
			case err != nil:
				return err
			case !verbose:
				return list(a.sys.Stdout, o, []string{"TYPE", "TOTAL", "ACTIVE", "SIZE", "RECLAIMABLE"}, d.rows())
			case o.format == "json":
				return writeJSON(a.sys.Stdout, d)
			case isTemplate(o.format):
				return writeEach(a.sys.Stdout, o.format, []diskUse{d})
			}
			return a.writeDiskUse(d)
		},
	}
	cmd.Flags().BoolVarP(&verbose, "verbose", "v", false, "show each image, snapshot and container")
	o.addFormat(cmd, "table")
	return cmd
}

// writeDiskUse shows each thing, in one table for each kind.
func (a *app) writeDiskUse(d diskUse) error {
	size := func(n int64) string { return units.BytesSize(float64(n)) }
	images := [][]string{{"IMAGE", "DIGEST", "SIZE", "CONTAINERS"}}
	for _, i := range d.Images {
		images = append(images, []string{familiar(i.Name), i.Digest[:min(len(i.Digest), 19)], size(i.Size), strconv.Itoa(i.Containers)})
	}
	snapshots := [][]string{{"SNAPSHOT", "SNAPSHOTTER", "SIZE", "USED"}}
	for _, s := range d.Snapshots {
		snapshots = append(snapshots, []string{s.Key[:min(len(s.Key), 19)], s.Snapshotter, size(s.Size), strconv.FormatBool(s.Used)})
	}
	containers := [][]string{{"CONTAINER", "IMAGE", "STATUS", "SIZE", "LOG"}}
	for _, c := range d.Containers {
		containers = append(containers, []string{c.ID, familiar(c.Image), c.Status, size(c.Size), size(c.LogSize)})
	}
	for i, table := range [][][]string{images, snapshots, containers} {
		if i > 0 {
			if _, err := fmt.Fprintln(a.sys.Stdout); err != nil {
				return err
			}
		}
		if err := writeTable(a.sys.Stdout, table); err != nil {
			return err
		}
	}
	return nil
}
