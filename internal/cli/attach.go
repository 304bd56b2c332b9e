package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	tasks "github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/api/types/task"
	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/spf13/cobra"
)

func (a *app) attachCommand() *cobra.Command {
	var noStdin bool
	var keys string
	cmd := &cobra.Command{
		Use:   "attach CONTAINER",
		Short: "Connect to the process of a container that runs",
		Long: "Connect to the input and output of a container that was left with the detach keys, or that another\n" +
			"client started on FIFOs. Of one that was started with --detach it shows what it writes from now on.\n" +
			"The exit code is that of the process. Signals are passed on, but Ctrl-C only leaves one that was\n" +
			"started with --detach; the detach keys leave a terminal. Until somebody connects again, a process\n" +
			"waits as soon as what it wrote fills its FIFO.\n" +
			"Two that are connected to one container share its output: each part of it goes to one of them.",
		Example: "  caisson run -it --name box demo sh   # ctrl-p ctrl-q\n  caisson attach box\n  caisson attach --detach-keys ctrl-x,x box",
		Args:    exactly(1, "one container"),
		RunE: func(cmd *cobra.Command, args []string) error {
			f := processFlags{interactive: !noStdin, detachKeys: keys}
			var err error
			if f.leave, err = parseDetachKeys(keys); err != nil {
				return err
			}
			return a.attach(cmd.Context(), f, args[0])
		},
	}
	cmd.Flags().BoolVar(&noStdin, "no-stdin", false, "do not pass standard input on")
	cmd.Flags().StringVar(&keys, "detach-keys", defaultDetachKeys, detachKeysHelp)
	return cmd
}

func (a *app) attach(ctx context.Context, f processFlags, id string) error {
	ctx, c, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	ctr, _, err := c.running(ctx, id)
	if err != nil {
		return err
	}
	resp, err := c.TaskService().Get(ctx, &tasks.GetRequest{ContainerID: id})
	if err != nil {
		return fmt.Errorf("container %q: task: %w", id, errgrpc.ToNative(err))
	}
	p := resp.GetProcess()
	if p.GetStatus() == task.Status_PAUSED {
		return advise(errdefs.ErrFailedPrecondition, "container %q is paused; let it go on first: caisson unpause %s", id, id)
	}
	f.tty = p.GetTerminal()
	f.interactive = f.interactive && isFIFO(p.GetStdin())
	attach, streams := cio.Attach(nil), (*stdio)(nil)
	switch {
	case isFIFO(p.GetStdout()):
		if streams, err = a.foreground(f); err != nil {
			return err
		}
		attach = streams.attach
	default:
		labels, err := ctr.Labels(ctx)
		if err != nil {
			return fmt.Errorf("container %q: %w", id, err)
		}
		if labels[labelLog] == "" {
			return advise(errdefs.ErrFailedPrecondition, "container %q writes neither to FIFOs nor to a log: there is nothing to connect to", id)
		}
		return c.attachLog(ctx, id)
	}
	t, err := ctr.Task(ctx, attach)
	if err != nil {
		return fmt.Errorf("container %q: attach: %w", id, err)
	}
	err = a.runProcess(ctx, t, streams, f, nil)
	if errors.Is(err, errDetached) {
		return a.detachedFrom(id)
	}
	return err
}

// attachLog shows what a container writes to its log from now on, until it ends.
func (c *client) attachLog(ctx context.Context, id string) error {
	end, err := c.endOf(ctx, id)
	if err != nil {
		return err
	}
	if err := c.app.logs(ctx, id, 0, true); err != nil {
		return err
	}
	code, err := end()
	if err != nil {
		return err
	}
	if code != 0 {
		return exitStatus(code)
	}
	return nil
}

// detachedFrom says what became of a container, on a line of its own.
func (a *app) detachedFrom(id string) error {
	_, err := fmt.Fprintf(a.sys.Stderr, "\ncaisson: container %q goes on: `caisson attach %s` connects to it again\n", id, id)
	return err
}

func isFIFO(path string) bool {
	info, err := os.Lstat(path)
	return err == nil && info.Mode()&os.ModeNamedPipe != 0
}

// leftFIFOs are those of a task whose client is gone: nobody else would remove them.
func leftFIFOs(fifos *cio.FIFOSet) (cio.IO, error) { return &fifoRemover{fifos, fifos.Config}, nil }

type fifoRemover struct {
	io.Closer
	config cio.Config
}

func (r *fifoRemover) Config() cio.Config { return r.config }
func (*fifoRemover) Cancel()              {}
func (*fifoRemover) Wait()                {}

var _ cio.IO = (*fifoRemover)(nil)

// deleteTask deletes a task that has ended, with the FIFOs it was left with.
func deleteTask(ctx context.Context, ctr containerd.Container, opts ...containerd.ProcessDeleteOpts) error {
	task, err := ctr.Task(ctx, leftFIFOs)
	if err == nil {
		_, err = task.Delete(ctx, opts...)
	}
	return ignoreNotFound(err)
}
