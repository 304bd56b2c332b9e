package cli

import (
	"context"
	"errors"
	"fmt"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/errdefs"
	"github.com/spf13/cobra"

	"caisson/internal/undo"
)

// runFlags are those of `run`.
type runFlags struct {
	process processFlags
	sandbox sandboxFlags // of the container's own sandbox
	limits  limitFlags

	registry registryFlags // to pull a missing image from

	remove                          bool
	name, joins, runtime, logDriver string
	entrypoint                      string
	volumes, labels                 []string
	hasEntrypoint, describesSandbox bool
}

func (a *app) runCommand() *cobra.Command {
	var f runFlags
	cmd := &cobra.Command{
		Use:        "run [flags] IMAGE [COMMAND...]",
		SuggestFor: []string{"create", "start", "restart"}, // a container runs once
		Short:      "Run a container, in a sandbox of its own or an existing one",
		Long: "Run a container. Without --sandbox it gets a sandbox of its own, which is removed with it.\n" +
			"The exit code is that of the process; 125 if caisson or the daemon failed, 126 if the\n" +
			"command cannot be executed, 127 if it is not in the image.",
		Example: "  caisson run --rm demo echo hello\n  caisson run --rm -it --net host demo sh\n" +
			"  caisson run -d --net cni -p 8080:80 demo httpd -f -p 80\n" +
			"  caisson run -d --name web --sandbox pod1 -m 64m -v /srv/www:/www:ro demo httpd -f -h /www",
		Args:        atLeast(1, "an image"),
		Annotations: map[string]string{runsProcess: "yes"},
		RunE: func(cmd *cobra.Command, args []string) error {
			f.hasEntrypoint = cmd.Flags().Changed("entrypoint")
			f.describesSandbox = cmd.Flags().Changed("net") || cmd.Flags().Changed("hostname") || cmd.Flags().Changed("publish")
			return a.run(cmd.Context(), f, args[0], args[1:])
		},
	}
	f.process.add(cmd)
	f.registry.add(a, cmd)
	flags := cmd.Flags()
	flags.StringVar(&f.process.detachKeys, "detach-keys", defaultDetachKeys, detachKeysHelp)
	flags.BoolVar(&f.remove, "rm", false, "remove the container when it has ended")
	flags.StringVar(&f.name, "name", "", "ID of the container (default: 12 random hex digits)")
	flags.StringVar(&f.joins, "sandbox", "", "join this sandbox, which must be running")
	flags.StringVar(&f.sandbox.network, "net", "", "network of its own sandbox: none (loopback only), host, or cni; the daemon's default if not given")
	flags.StringVar(&f.sandbox.hostname, "hostname", "", "host name of its own sandbox (default: the container's ID)")
	flags.StringArrayVarP(&f.sandbox.ports, "publish", "p", nil, "port of the host that leads into its own sandbox, host:container (with --net cni)")
	flags.StringArrayVarP(&f.volumes, "volume", "v", nil, "directory or file of the host, source:destination[:ro]")
	flags.StringVarP(&f.limits.memory, "memory", "m", "", "memory, such as 64m")
	flags.StringVar(&f.limits.cpus, "cpus", "", "CPUs, such as 0.5")
	flags.Int64Var(&f.limits.pids, "pids-limit", 0, "number of processes")
	flags.StringVar(&f.logDriver, "log-driver", logFile, "what becomes of the output of a detached container: file, for `caisson logs`, or none")
	flags.StringVar(&f.entrypoint, "entrypoint", "", "what to run instead of the image's entrypoint")
	flags.StringArrayVarP(&f.labels, "label", "l", nil, "label of the container, name=value")
	flags.StringVar(&f.runtime, "runtime", runtimeName, "runtime; any but Caisson's runs without a sandbox")
	_ = flags.MarkHidden("runtime") // cannot fail: the flag is there
	return cmd
}

// The log drivers.
const (
	logFile = "file"
	logNone = "none"
)

func (f *runFlags) check(a *app) error {
	if f.name == "" {
		f.name = newID()
	}
	if err := checkID("container", f.name); err != nil {
		return err
	}
	if err := f.process.check(a); err != nil {
		return err
	}
	switch {
	case f.logDriver != logFile && f.logDriver != logNone:
		return advise(errdefs.ErrInvalidArgument, "unknown log driver %q: use file, or none to throw the output away", f.logDriver)
	case f.logDriver == logNone && (!f.process.detach || f.process.tty):
		return advise(errdefs.ErrInvalidArgument, "--log-driver none is for --detach without --tty: else there is somebody to show the output to")
	case f.remove && f.process.detach:
		return advise(errdefs.ErrInvalidArgument, "--rm and --detach exclude each other: nobody would be there to remove the container; use `caisson rm` later")
	case f.joins != "" && f.describesSandbox:
		return advise(errdefs.ErrInvalidArgument, "--net, --hostname and --publish belong to the sandbox, and %q has its own already: leave them out, or leave out --sandbox", f.joins)
	case f.joins != "" && f.runtime != runtimeName:
		return advise(errdefs.ErrInvalidArgument, "the runtime %q knows no sandboxes: leave out --sandbox", f.runtime)
	}
	return nil
}

// run makes the sandbox if it needs one, the container and its task, and waits
// for the process unless it is detached.
func (a *app) run(ctx context.Context, f runFlags, image string, command []string) (err error) {
	if err := f.check(a); err != nil {
		return err
	}
	n := newContainer{id: f.name, command: command, process: f.process, runtime: f.runtime, sandbox: f.joins, noLog: f.logDriver == logNone}
	if f.hasEntrypoint {
		n.entrypoint = &f.entrypoint
	}
	if n.limits, err = f.limits.parse(); err != nil {
		return err
	}
	if n.labels, err = parsePairs("label", f.labels); err != nil {
		return err
	}
	if n.volumes, err = parseVolumes(f.volumes, a.sys.Getwd); err != nil {
		return err
	}
	f.sandbox.runtime = runtimeName
	own, err := f.sandbox.newSandbox(n.id)
	if err != nil {
		return err
	}
	ctx, c, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer c.Close()

	var steps undo.Stack
	defer func() {
		if err != nil {
			err = joinUndo(err, steps.Run(ctx))
		}
	}()
	if n.image, err = c.image(ctx, image, f.registry); err != nil {
		return err
	}
	endpoint, err := c.prepareSandbox(ctx, &n, own, &steps)
	if err != nil {
		return err
	}
	task, streams, err := c.createTask(ctx, n, endpoint, &steps)
	if err != nil {
		return err
	}
	if n.process.detach {
		if err := task.Start(ctx); err != nil {
			return newStartError(err)
		}
		steps = undo.Stack{} // it runs: it stays
		_, err = fmt.Fprintln(a.sys.Stdout, n.id)
		return err
	}
	err = a.runProcess(ctx, task, streams, n.process, task.Start)
	if errors.Is(err, errDetached) {
		steps = undo.Stack{} // it runs: it stays
		if f.remove {
			a.warn(fmt.Errorf("container %q will not be removed when it ends: remove it with `caisson rm %s`", n.id, n.id))
		}
		return a.detachedFrom(n.id)
	}
	var ran exitStatus
	if err == nil || errors.As(err, &ran) {
		steps = undo.Stack{}
		if f.remove {
			if gone := detached(ctx, func(ctx context.Context) error {
				return ignoreNotFound(c.removeContainer(ctx, n.id, removal{force: true}))
			}); gone != nil {
				a.warn(gone) // the exit code stays that of the process
			}
		}
	}
	return err
}

// prepareSandbox finds the sandbox to join, or makes and starts the container's own.
func (c *client) prepareSandbox(ctx context.Context, n *newContainer, own newSandbox, steps *undo.Stack) (taskEndpoint, error) {
	if _, err := c.ContainerService().Get(ctx, n.id); err == nil {
		return taskEndpoint{}, alreadyExists(errdefs.ErrAlreadyExists, n.id)
	} else if !errdefs.IsNotFound(err) {
		return taskEndpoint{}, fmt.Errorf("container %q: %w", n.id, err)
	}
	if n.runtime != runtimeName {
		return taskEndpoint{}, nil
	}
	if n.sandbox != "" {
		return c.readySandbox(ctx, n.sandbox)
	}
	own.labels = map[string]string{labelOwned: n.id}
	if err := c.createSandbox(ctx, own); err != nil {
		return taskEndpoint{}, err
	}
	n.sandbox, n.own = own.id, true
	steps.Add("sandbox", func(ctx context.Context) error { return c.removeSandbox(ctx, own.id, stopOpts(0)...) })
	if err := c.startSandbox(ctx, own.id); err != nil {
		return taskEndpoint{}, err
	}
	return c.endpoint(ctx, own.id)
}

// createTask makes the container and its task, connected to caisson's own
// streams or to a log.
func (c *client) createTask(ctx context.Context, n newContainer, at taskEndpoint, steps *undo.Stack) (containerd.Task, *stdio, error) {
	var create cio.Creator
	var streams *stdio
	switch {
	case n.noLog:
		create = cio.NullIO
	case n.process.detach:
		path, err := c.app.logPath(n.id)
		if err != nil {
			return nil, nil, err
		}
		if err := makeLog(path); err != nil {
			return nil, nil, fmt.Errorf("container %q: log: %w", n.id, err)
		}
		steps.Add("log", func(context.Context) error { return removeLog(path, c.app.namespace, n.id) })
		n.logFile = path
		if create, err = toLog(path, n.process.tty); err != nil {
			return nil, nil, err
		}
	default:
		var err error
		if streams, err = c.app.foreground(n.process); err != nil {
			return nil, nil, err
		}
		create = streams.create
	}
	ctr, err := c.createContainer(ctx, n, steps)
	if err != nil {
		return nil, nil, err
	}
	var opts []containerd.NewTaskOpts
	if at.address != "" {
		opts = append(opts, containerd.WithTaskAPIEndpoint(at.address, at.version))
	}
	task, err := ctr.NewTask(ctx, create, opts...)
	if err != nil {
		return nil, nil, newStartError(fmt.Errorf("container %q: %w", n.id, err))
	}
	steps.Add("task", func(ctx context.Context) error {
		_, err := task.Delete(ctx, containerd.WithProcessKill)
		return ignoreNotFound(err)
	})
	return task, streams, nil
}
