package daemon

import (
	"context"
	"fmt"
	"io"
	"path/filepath"

	"github.com/containerd/errdefs"
	"github.com/spf13/cobra"

	"caisson/internal/config"
	"caisson/internal/version"
)

// System is what a command line needs of the process.
type System struct {
	Args           []string // without the program's name
	Dir            string   // relative paths are relative to it
	Stdout, Stderr io.Writer
}

// Main runs caissond until ctx ends and returns its exit code.
func Main(ctx context.Context, sys System) int {
	cmd := command(sys)
	cmd.SetArgs(sys.Args)
	cmd.SetOut(sys.Stdout)
	cmd.SetErr(sys.Stderr)
	if err := cmd.ExecuteContext(ctx); err != nil {
		fmt.Fprintf(sys.Stderr, "caissond: %v\n", err)
		if errdefs.IsInvalidArgument(err) {
			return exitConfig
		}
		return 1
	}
	return 0
}

// Command is the command line, for what describes it.
func Command() *cobra.Command { return command(System{}) }

// exitConfig, EX_CONFIG of sysexits.h, tells systemd that a restart would not help.
const exitConfig = 78

func command(sys System) *cobra.Command {
	var f flags
	cmd := &cobra.Command{
		Use:   "caissond",
		Short: "Run sandboxes of containers, with containerd inside or beside",
		Long: `caissond runs sandboxes: groups of containers that share a network, IPC and UTS
namespace, files and resources. With --engine embedded, the default, it serves
containerd's whole API and CRI at its address. With --engine none it is a
sandboxer for a containerd that runs beside it. Stopping it, in any way, leaves
the sandboxes running; the next start takes them over.`,
		Args:          cobra.NoArgs,
		Version:       version.Long(),
		SilenceErrors: true,
		SilenceUsage:  true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := f.config(cmd, sys.Dir)
			if err != nil {
				return err
			}
			return Run(cmd.Context(), cfg)
		},
	}
	cmd.CompletionOptions.DisableDefaultCmd = true
	f.add(cmd)
	return cmd
}

// KeyAnnotation is what a flag has that goes over a key of the configuration file: its
// dotted name.
const KeyAnnotation = "caisson_key"

// flags go over what the configuration file says.
type flags struct {
	file, root, state, address, engine, containerd, logLevel, logFormat string
	keepConnections                                                     bool
}

func (f *flags) add(cmd *cobra.Command) {
	d := config.Default()
	set := cmd.Flags()
	set.StringVarP(&f.file, "config", "c", "", "configuration `file` (default "+config.DefaultPath+", if it exists)")
	set.StringVar(&f.root, "root", "", "`directory` of persistent data (default "+d.Root+")")
	set.StringVar(&f.state, "state", "", "`directory` of run-time data, on tmpfs (default "+d.State+")")
	set.StringVarP(&f.address, "address", "a", "", "`socket` of containerd's API and CRI (default caissond.sock in the state directory)")
	set.StringVar(&f.engine, "engine", "", "where containerd's core runs: embedded or none (default "+string(d.Engine)+")")
	set.StringVar(&f.containerd, "containerd-address", "", "with --engine none, `socket` of the containerd beside, which gets the events (default "+d.Containerd.Address+")")
	set.BoolVar(&f.keepConnections, "keep-connections", d.Containerd.KeepConnections, "with --engine none, let containerd's connections outlive the daemon")
	set.StringVarP(&f.logLevel, "log-level", "l", "", "trace, debug, info, warn, error, fatal or panic (default "+d.Log.Level+")")
	set.StringVar(&f.logFormat, "log-format", "", "text or json (default "+d.Log.Format+")")
	for name, key := range map[string]string{
		"root": "root", "state": "state", "address": "address", "engine": "engine",
		"containerd-address": "containerd.address", "keep-connections": "containerd.keep_connections",
		"log-level": "log.level", "log-format": "log.format",
	} {
		set.Lookup(name).Annotations = map[string][]string{KeyAnnotation: {key}}
	}
}

// config is the file's configuration with the flags over it, completed.
func (f *flags) config(cmd *cobra.Command, dir string) (config.Config, error) {
	path, named := config.DefaultPath, cmd.Flags().Changed("config")
	if named {
		path = absolute(dir, f.file)
	}
	cfg, err := config.Load(path)
	if errdefs.IsNotFound(err) && !named {
		cfg, err = config.Default(), nil
	}
	if err != nil {
		return cfg, err
	}
	for _, o := range []struct {
		name  string
		value *string
		to    *string
		path  bool
	}{
		{"root", &f.root, &cfg.Root, true},
		{"state", &f.state, &cfg.State, true},
		{"address", &f.address, &cfg.Address, true},
		{"engine", &f.engine, (*string)(&cfg.Engine), false},
		{"containerd-address", &f.containerd, &cfg.Containerd.Address, true},
		{"log-level", &f.logLevel, &cfg.Log.Level, false},
		{"log-format", &f.logFormat, &cfg.Log.Format, false},
	} {
		if !cmd.Flags().Changed(o.name) {
			continue
		}
		*o.to = *o.value
		if o.path && *o.value != "" {
			*o.to = absolute(dir, *o.value)
		}
	}
	if cmd.Flags().Changed("keep-connections") {
		cfg.Containerd.KeepConnections = f.keepConnections
	}
	return cfg, cfg.Complete()
}

func absolute(dir, path string) string {
	if filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(dir, path)
}
