package cli

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/spf13/cobra"

	"caisson/internal/config"
)

// verdict of one check.
type verdict string

const (
	ok   verdict = "ok"   // as it should be
	warn verdict = "warn" // something does not work, the rest does
	fail verdict = "fail" // Caisson does not work
)

// finding is one thing the doctor looked at.
type finding struct {
	Check  string  `json:"check"`
	Status verdict `json:"status"`
	Found  string  `json:"found"`
	// Mend says how to mend it; empty if nothing is wrong.
	Mend string `json:"mend,omitempty"`
}

// doctor collects findings about this host.
type doctor struct {
	app      *app
	cfg      config.Config
	findings []finding
}

func (d *doctor) ok(check, format string, args ...any) {
	d.findings = append(d.findings, finding{check, ok, fmt.Sprintf(format, args...), ""})
}

func (d *doctor) warn(check, mend, format string, args ...any) {
	d.findings = append(d.findings, finding{check, warn, fmt.Sprintf(format, args...), mend})
}

func (d *doctor) fail(check, mend, format string, args ...any) {
	d.findings = append(d.findings, finding{check, fail, fmt.Sprintf(format, args...), mend})
}

// doctorLimit is how long the whole examination may take: it asks servers that
// may hang.
const doctorLimit = 30 * time.Second

func (a *app) doctorCommand() *cobra.Command {
	var (
		o                       output
		file, state, containerd string
	)
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Check whether this host can run Caisson, and say how to mend it",
		Long: `Check what Caisson needs of this host: the kernel, cgroups, capabilities, OCI
runtimes, CNI, the daemon, and the containerd beside it, if there is one. Each
line is ok, warn (something does not work, the rest does) or fail, with what to
do about it. The exit code is 1 if a check fails. Nothing is changed.`,
		Example: "  caisson doctor\n  caisson doctor --format json | jq '.[] | select(.status != \"ok\")'",
		Args:    atMost(0, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := o.check(); err != nil {
				return err
			}
			cfg, err := doctorConfig(file, cmd.Flags().Changed("config"))
			if err != nil {
				return err
			}
			if state != "" {
				cfg.State = state
			}
			if containerd != "" {
				cfg.Containerd.Address = strings.TrimPrefix(containerd, "unix://")
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), doctorLimit)
			defer cancel()
			d := &doctor{app: a, cfg: cfg}
			d.examine(ctx)
			if err := cmd.Context().Err(); err != nil {
				return err
			}
			return d.report(o)
		},
	}
	o.addFormat(cmd, "table")
	cmd.Flags().StringVarP(&file, "config", "c", config.DefaultPath, "configuration file of caissond")
	cmd.Flags().StringVar(&state, "state", "", "state directory of caissond (default: as configured)")
	cmd.Flags().StringVar(&containerd, "containerd-address", "", "socket of the containerd beside caissond (default: as configured)")
	return cmd
}

// doctorConfig is the daemon's configuration: where the doctor looks.
func doctorConfig(path string, named bool) (config.Config, error) {
	cfg, err := config.Load(path)
	switch {
	case errdefs.IsNotFound(err) && !named:
		cfg = config.Default()
	case err != nil:
		return cfg, advise(err, "%v", err)
	}
	if err := cfg.Complete(); err != nil {
		return cfg, advise(err, "%v", err)
	}
	return cfg, nil
}

func (d *doctor) examine(ctx context.Context) {
	d.checkKernel()
	d.checkCgroups()
	d.checkCapabilities()
	d.checkRuntimes(ctx)
	d.checkCNI()
	d.checkDaemon(ctx)
	d.checkContainerd(ctx)
}

// report shows the findings; the result is an exit status if one of them is bad.
func (d *doctor) report(o output) error {
	failed := 0
	for _, f := range d.findings {
		if f.Status == fail {
			failed++
		}
	}
	if err := d.write(o); err != nil {
		return err
	}
	if failed > 0 {
		return exitStatus(exitFailure)
	}
	return nil
}

func (d *doctor) write(o output) error {
	switch {
	case o.format == "json":
		return writeJSON(d.app.sys.Stdout, d.findings)
	case isTemplate(o.format):
		return writeEach(d.app.sys.Stdout, o.format, d.findings)
	}
	for _, f := range d.findings {
		text := fmt.Sprintf("%-5s %-20s %s\n", f.Status, f.Check, printable(f.Found))
		if f.Mend != "" {
			text += fmt.Sprintf("%26s -> %s\n", "", printable(f.Mend))
		}
		if _, err := fmt.Fprint(d.app.sys.Stdout, text); err != nil {
			return err
		}
	}
	return nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
