package cli

import (
	"fmt"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/plugins"
	"github.com/spf13/cobra"

	"caisson/internal/version"
)

// versionReport is what `version` shows; Server is nil if there is none.
type versionReport struct {
	Client clientVersion  `json:"client"`
	Server *serverVersion `json:"server"`
}

type clientVersion struct {
	Version string `json:"version"`
	Commit  string `json:"commit"`
	Date    string `json:"date"` // of the commit
	Go      string `json:"go"`
	OS      string `json:"os"`
	Arch    string `json:"arch"`
}

type serverVersion struct {
	Address  string `json:"address"`
	Engine   string `json:"engine"`
	Revision string `json:"revision"`
}

func (a *app) versionCommand() *cobra.Command {
	var o output
	cmd := &cobra.Command{
		Use:     "version",
		Short:   "Show the versions of caisson and of the daemon's engine",
		Example: "  caisson version\n  caisson version --format '{{.client.version}}'",
		Args:    atMost(0, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := o.check(); err != nil {
				return err
			}
			report := versionReport{Client: thisVersion()}
			ctx, c, err := a.connectOnly(cmd.Context())
			if err == nil {
				defer c.Close()
				v, verr := c.Version(ctx)
				if err = verr; err == nil {
					report.Server = &serverVersion{a.address, v.Version, v.Revision}
				}
			}
			if werr := a.writeVersion(o, report); werr != nil {
				return werr
			}
			return err // the client's own version was worth showing first
		},
	}
	o.addFormat(cmd, "table")
	return cmd
}

func thisVersion() clientVersion {
	b := version.Build()
	return clientVersion{b.Version, b.Commit, b.Date, b.Go, runtime.GOOS, runtime.GOARCH}
}

func (a *app) writeVersion(o output, report versionReport) error {
	c := report.Client
	table := [][]string{{"caisson", c.Version}, {"commit", c.Commit}, {"date", c.Date}, {"go", c.Go}, {"platform", c.OS + "/" + c.Arch}}
	if s := report.Server; s != nil {
		table = append(table, []string{"daemon", s.Address}, []string{"engine", "containerd " + s.Engine})
	}
	return showOne(a.sys.Stdout, o, report, table)
}

// infoReport is what `info` shows.
type infoReport struct {
	Address    string   `json:"address"`
	Namespace  string   `json:"namespace"`
	ServerID   string   `json:"serverId"`
	PID        uint64   `json:"pid"`
	Sandboxers []string `json:"sandboxers"`
	Sandboxes  int      `json:"sandboxes"`
	Containers int      `json:"containers"`
	Running    int      `json:"running"`
	Images     int      `json:"images"`
}

func (a *app) infoCommand() *cobra.Command {
	var o output
	cmd := &cobra.Command{
		Use:     "info",
		Short:   "Show what the daemon is and how much it holds",
		Long:    "Show what the daemon is and how much it holds. The exit code is 0 if the daemon answers all of it,\nand 1 if there is none, or one that cannot.",
		Example: "  caisson info\n  caisson info --format json\n  caisson info >/dev/null || systemctl restart caissond",
		Args:    atMost(0, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := o.check(); err != nil {
				return err
			}
			r, err := a.info(cmd)
			if err != nil {
				return err
			}
			return showOne(a.sys.Stdout, o, r, [][]string{
				{"address", r.Address}, {"namespace", r.Namespace}, {"server", r.ServerID},
				{"pid", strconv.FormatUint(r.PID, 10)}, {"sandboxers", strings.Join(r.Sandboxers, ",")},
				{"sandboxes", strconv.Itoa(r.Sandboxes)},
				{"containers", fmt.Sprintf("%d (%d running)", r.Containers, r.Running)},
				{"images", strconv.Itoa(r.Images)},
			})
		},
	}
	o.addFormat(cmd, "table")
	return cmd
}

func (a *app) info(cmd *cobra.Command) (infoReport, error) {
	r := infoReport{Address: a.address, Namespace: a.namespace, Sandboxers: []string{}}
	ctx, c, err := a.connect(cmd.Context())
	if err != nil {
		return r, err
	}
	defer c.Close()
	server, err := c.IntrospectionService().Server(ctx)
	if err != nil {
		return r, fmt.Errorf("server: %w", err)
	}
	r.ServerID, r.PID = server.GetUUID(), server.GetPid()
	found, err := c.IntrospectionService().Plugins(ctx, "type=="+plugins.SandboxControllerPlugin.String())
	if err != nil {
		return r, fmt.Errorf("plugins: %w", err)
	}
	for _, p := range found.GetPlugins() {
		if p.GetInitErr() == nil {
			r.Sandboxers = append(r.Sandboxers, p.GetID())
		}
	}
	slices.Sort(r.Sandboxers)
	sandboxes, err := c.SandboxStore().List(ctx)
	if err != nil {
		return r, fmt.Errorf("list sandboxes: %w", err)
	}
	containers, err := c.containerRows(ctx, true)
	if err != nil {
		return r, err
	}
	for _, row := range containers {
		if row.alive() {
			r.Running++
		}
	}
	images, err := c.ImageService().List(ctx)
	if err != nil {
		return r, fmt.Errorf("list images: %w", err)
	}
	r.Sandboxes, r.Containers, r.Images = len(sandboxes), len(containers), len(images)
	return r, nil
}
