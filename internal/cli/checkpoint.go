package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	tasks "github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/api/types/runc/options"
	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/typeurl/v2"
	"github.com/spf13/cobra"

	"caisson/internal/undo"
)

func (a *app) checkpointCommand() *cobra.Command {
	var leaveRunning bool
	var image string
	cmd := &cobra.Command{
		Use:   "checkpoint CONTAINER...",
		Short: "Write the processes of containers to disk, and end them",
		Long: "Write the processes of containers to disk, with CRIU, and end them: `caisson restore` lets them go on\n" +
			"from there, in the same log. The files of a container stay in the container, as long as that is not\n" +
			"removed. Connections to a client cannot be saved, so it takes a container that was run with --detach\n" +
			"and without --tty. A checkpoint of before, in the default directory, is replaced.",
		Example: "  caisson run -d --name web demo httpd -f\n  caisson checkpoint web && caisson restore web\n  caisson checkpoint --leave-running --image-path /backup/web web",
		Args:    atLeast(1, "a container"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkImagePath(image, args); err != nil {
				return err
			}
			return a.forEach(func(ctx context.Context, c *client, id string) error {
				return c.checkpoint(ctx, id, image, leaveRunning)
			})(cmd, args)
		},
	}
	cmd.Flags().BoolVarP(&leaveRunning, "leave-running", "R", false, "let the container go on")
	cmd.Flags().StringVar(&image, "image-path", "", imagePathHelp)
	return cmd
}

func (a *app) restoreCommand() *cobra.Command {
	var keep bool
	var image string
	cmd := &cobra.Command{
		Use:   "restore CONTAINER...",
		Short: "Let containers go on from their checkpoints",
		Long: "Let containers go on from their checkpoints, detached. The container must have ended, and its sandbox\n" +
			"must run.",
		Example: "  caisson restore web\n  caisson restore --image-path /backup/web web",
		Args:    atLeast(1, "a container"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkImagePath(image, args); err != nil {
				return err
			}
			return a.forEach(func(ctx context.Context, c *client, id string) error {
				return c.restore(ctx, id, image, keep)
			})(cmd, args)
		},
	}
	cmd.Flags().BoolVarP(&keep, "keep", "k", false, "keep the checkpoint; one that --image-path names is always kept")
	cmd.Flags().StringVar(&image, "image-path", "", imagePathHelp)
	return cmd
}

const imagePathHelp = "`directory` of the checkpoint (default: checkpoints/NAMESPACE/CONTAINER below --root)"

func checkImagePath(image string, ids []string) error {
	if image != "" && len(ids) > 1 {
		return advise(errdefs.ErrInvalidArgument, "--image-path is for one container, not %d: leave it out", len(ids))
	}
	return nil
}

// checkpointPath is where a checkpoint is that nobody named a directory for.
func (a *app) checkpointPath(containerID string) (string, error) {
	root, err := filepath.Abs(a.root)
	if err != nil {
		return "", err
	}
	return filepath.Join(root, "checkpoints", a.namespace, containerID), nil
}

// checkpoint asks the task service itself: containerd's client would pause the container
// first and make an image of its files, too.
func (c *client) checkpoint(ctx context.Context, id, image string, leaveRunning bool) error {
	if _, _, err := c.running(ctx, id); err != nil {
		return err
	}
	resp, err := c.TaskService().Get(ctx, &tasks.GetRequest{ContainerID: id})
	if err != nil {
		return fmt.Errorf("container %q: task: %w", id, errgrpc.ToNative(err))
	}
	if p := resp.GetProcess(); p.GetTerminal() || isFIFO(p.GetStdin()) || isFIFO(p.GetStdout()) {
		return advise(errdefs.ErrFailedPrecondition, "container %q is connected to a client, which nobody can save: run it with --detach and without --tty", id)
	}
	write := func(dir string) error {
		opts, err := typeurl.MarshalAnyToProto(&options.CheckpointOptions{Exit: !leaveRunning, ImagePath: dir})
		if err != nil {
			return err
		}
		if _, err := c.TaskService().Checkpoint(ctx, &tasks.CheckpointTaskRequest{ContainerID: id, Options: opts}); err != nil {
			return explainCRIU(id, "checkpoint", errgrpc.ToNative(err))
		}
		return nil
	}
	if image == "" {
		return c.replaceCheckpoint(id, write)
	}
	if image, err = emptyDirectory(image); err != nil {
		return err
	}
	return write(image)
}

// replaceCheckpoint writes one to the default directory. The one of before goes when there
// is another.
func (c *client) replaceCheckpoint(id string, write func(dir string) error) error {
	image, err := c.app.checkpointPath(id)
	next := image + "~" // no container is called that
	if err == nil {
		err = errors.Join(os.RemoveAll(next), os.MkdirAll(filepath.Dir(image), 0o700))
	}
	if err != nil {
		return fmt.Errorf("container %q: checkpoint: %w", id, err)
	}
	if err := write(next); err != nil {
		return errors.Join(err, os.RemoveAll(next))
	}
	if err = os.RemoveAll(image); err == nil {
		err = os.Rename(next, image)
	}
	if err != nil {
		return fmt.Errorf("container %q: its checkpoint is in %s: %w", id, next, err)
	}
	return nil
}

// emptyDirectory is the absolute path of a directory that has nothing in it yet.
func emptyDirectory(dir string) (string, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	entries, err := os.ReadDir(dir)
	if len(entries) > 0 {
		return "", advise(errdefs.ErrAlreadyExists, "there is something in %s: remove it first, or choose another --image-path", dir)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("checkpoint: %w", err)
	}
	return dir, nil
}

// restore makes a new task of the container; the one that has ended goes first.
func (c *client) restore(ctx context.Context, id, image string, keep bool) (err error) {
	ctr, err := c.load(ctx, id)
	if err != nil {
		return err
	}
	labels, err := ctr.Labels(ctx)
	if err != nil {
		return fmt.Errorf("container %q: %w", id, err)
	}
	keep = keep || image != ""
	if image, err = c.findCheckpoint(id, image); err != nil {
		return err
	}
	create := cio.NullIO
	if log := labels[labelLog]; log != "" {
		create = cio.LogFile(log)
	}
	opts := []containerd.NewTaskOpts{containerd.WithRestoreImagePath(image)}
	if sandboxID := labels[labelSandbox]; sandboxID != "" {
		endpoint, err := c.readySandbox(ctx, sandboxID)
		if err != nil {
			return err
		}
		opts = append(opts, containerd.WithTaskAPIEndpoint(endpoint.address, endpoint.version))
	}
	if err := removeTask(ctx, ctr, false); err != nil {
		return err
	}
	var steps undo.Stack
	defer func() {
		if err != nil {
			err = joinUndo(err, steps.Run(ctx))
		}
	}()
	task, err := ctr.NewTask(ctx, create, opts...)
	if err != nil {
		return explainCRIU(id, "restore", err)
	}
	steps.Add("task", func(ctx context.Context) error {
		_, err := task.Delete(ctx, containerd.WithProcessKill)
		return ignoreNotFound(err)
	})
	if err := task.Start(ctx); err != nil {
		return explainCRIU(id, "restore", err)
	}
	steps = undo.Stack{} // it runs: it stays
	if !keep {
		if err := os.RemoveAll(image); err != nil {
			c.app.warn(fmt.Errorf("container %q goes on, and its checkpoint stays: %w", id, err))
		}
	}
	return nil
}

func (c *client) findCheckpoint(id, image string) (_ string, err error) {
	named := image != ""
	if named {
		image, err = filepath.Abs(image)
	} else {
		image, err = c.app.checkpointPath(id)
	}
	if err != nil {
		return "", err
	}
	entries, err := os.ReadDir(image)
	switch {
	case err == nil && len(entries) > 0:
		return image, nil
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return "", fmt.Errorf("container %q: restore: %w", id, err)
	case named:
		return "", advise(errdefs.ErrNotFound, "there is no checkpoint in %s: name the directory that `caisson checkpoint --image-path` has written to", image)
	}
	return "", advise(errdefs.ErrNotFound, "container %q has no checkpoint: make one while it runs, with `caisson checkpoint %s`, or name its directory with --image-path", id, id)
}

// explainCRIU adds the likely way out: where this fails, CRIU is missing, or too old for
// the kernel, or cannot do it.
func explainCRIU(id, verb string, err error) error {
	text := clean(err.Error())
	hint := "`criu check` says whether CRIU works on this host"
	if strings.Contains(text, "executable file not found") {
		hint = "install CRIU on the daemon's host (Debian: apt-get install criu); `criu check` says whether it works there"
	}
	return advise(err, "container %q: %s: %s; %s", id, verb, text, hint)
}

// removeCheckpoint removes the one that restore would look for.
func (a *app) removeCheckpoint(containerID string) error {
	image, err := a.checkpointPath(containerID)
	if err != nil {
		return err
	}
	return os.RemoveAll(image)
}
