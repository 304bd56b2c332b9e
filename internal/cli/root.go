package cli

import (
	"context"
	"io"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/spf13/cobra"

	"caisson/internal/version"
)

// System is what a command line takes from the process it runs in.
type System struct {
	Args []string
	// Env answers environment variables, "" for those not set.
	Env     func(string) string
	Getwd   func() (string, error)
	TempDir string
	// Executable is the program's own path, beside which caissond is looked for; "" if
	// nobody knows.
	Executable string
	Stdin      *os.File
	Stdout     io.Writer
	Stderr     io.Writer
}

// app is what all commands share: the system and the global flags.
type app struct {
	sys       System
	signals   *signals
	address   string
	namespace string
	root      string
	// startDaemon allows to start a daemon where none runs.
	startDaemon bool
}

const (
	defaultAddress   = "/run/caisson/caissond.sock"
	defaultNamespace = "default"
	defaultRoot      = "/var/lib/caisson"
)

// Main runs one command line and returns the exit code of the process.
func Main(ctx context.Context, sys System) int {
	// containerd's client logs what it also returns as an error.
	_ = log.SetLevel("fatal") // cannot fail: the level exists
	ctx, caught := catchSignals(ctx)
	defer caught.close()
	stdout := &outStream{ctx: ctx, w: sys.Stdout}
	sys.Stdout, sys.Stderr = stdout, &outStream{ctx: ctx, w: sys.Stderr}
	a := &app{sys: sys, signals: caught}
	root := a.command()
	root.SetArgs(sys.Args)
	cmd, err := root.ExecuteContextC(ctx)
	return a.finish(cmd, stdout.verdict(err))
}

// Command is the tree of commands as everybody finds it, for what describes it.
func Command() *cobra.Command {
	a := &app{sys: System{Env: func(string) string { return "" }}}
	root := a.command()
	root.InitDefaultCompletionCmd()
	return root
}

func (a *app) command() *cobra.Command {
	root := &cobra.Command{
		Use:   "caisson",
		Short: "Run containers in sandboxes",
		Long: "caisson runs containers in sandboxes: groups that share a network, IPC and host name.\nIt is a client of the daemon caissond.\n\n" +
			"The exit code is 0, or 1 if something failed; 130 if it was interrupted, when it takes back what it has\n" +
			"begun (a third Ctrl-C ends it at once); 141, without a word, if nobody reads its output any more. `run`\n" +
			"and `exec` have that of their process, or 125 to 127 if there is none.",
		Example:       "  caisson image import rootfs.tar demo:latest\n  caisson run --rm -it demo sh\n\n  caisson sandbox create pod1 && caisson sandbox start pod1\n  caisson run -d --name web --sandbox pod1 demo httpd -f -p 8080",
		Version:       version.Long(),
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          unknownSubcommand,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		if words := cmd.Flags().Args(); cmd.HasSubCommands() && len(words) > 0 {
			return unknownSubcommand(cmd, words) // whose flag it was, as in `caisson rmi -f x`
		}
		return advise(errdefs.ErrInvalidArgument, "%v; see `%s --help`", err, cmd.CommandPath())
	})
	root.SetIn(a.sys.Stdin)
	root.SetOut(lossy{a.sys.Stdout})
	root.SetErr(a.sys.Stderr)

	flags := root.PersistentFlags()
	flags.StringVar(&a.address, "address", a.envOr("CAISSON_ADDRESS", defaultAddress), "socket of caissond ($CAISSON_ADDRESS)")
	flags.StringVar(&a.namespace, "namespace", a.envOr("CAISSON_NAMESPACE", defaultNamespace), "containerd namespace ($CAISSON_NAMESPACE)")
	flags.StringVar(&a.root, "root", a.envOr("CAISSON_ROOT", defaultRoot), "directory that holds the logs of detached containers and the volumes of applied sandboxes ($CAISSON_ROOT)")

	flags.BoolVar(&a.startDaemon, "start-daemon", a.startsDaemon(), "start caissond if none runs at the default address, as root ($"+startEnv+")")

	root.AddCommand(
		a.runCommand(), a.execCommand(), a.psCommand(), a.logsCommand(),
		a.stopCommand(), a.killCommand(), a.removeCommand(),
		a.waitCommand(), a.pauseCommand(), a.unpauseCommand(), a.checkpointCommand(), a.restoreCommand(), a.inspectCommand(), a.statsCommand(), a.topCommand(),
		a.eventsCommand(), a.copyCommand(), a.attachCommand(), a.portForwardCommand(), a.pruneCommand(),
		a.sandboxCommand(), a.imageCommand(), a.systemCommand(), a.loginCommand(), a.logoutCommand(),
		a.versionCommand(), a.infoCommand(),
		a.configCommand(), a.doctorCommand(), a.debugCommand(),
	)
	a.completeNames(root)
	return root
}

func (a *app) envOr(name, otherwise string) string {
	if value := a.sys.Env(name); value != "" {
		return value
	}
	return otherwise
}

// logPath is where a detached container's output goes.
func (a *app) logPath(containerID string) (string, error) {
	return a.ourPath("logs", containerID+".log")
}

// volumesPath is where a sandbox's volumes are.
func (a *app) volumesPath(sandboxID string) (string, error) {
	return a.ourPath("volumes", sandboxID)
}

func (a *app) ourPath(kind, name string) (string, error) {
	root, err := filepath.Abs(a.root)
	return filepath.Join(root, kind, a.namespace, name), err
}

// fifoDir holds the FIFOs of foreground processes: beside the socket, so that
// the daemon sees them wherever it runs.
func (a *app) fifoDir() (string, error) {
	socket, err := filepath.Abs(a.socketPath())
	return filepath.Join(filepath.Dir(socket), "fifo"), err
}

// group is a command that only holds others.
func group(use, short, example string, subs ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{Use: use, Short: short, Example: example, Args: unknownSubcommand, RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	cmd.AddCommand(subs...)
	return cmd
}
