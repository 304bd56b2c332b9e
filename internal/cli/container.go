package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"

	"caisson/internal/undo"
)

// newContainer is what a container is made from.
type newContainer struct {
	id      string
	image   containerd.Image
	process processFlags
	limits  limits
	volumes []volume
	command []string

	// entrypoint replaces the one of the image, and its command; nil keeps both.
	entrypoint *string
	// opts change the specification after all the rest; unconfined leaves the default
	// seccomp profile out.
	opts       []oci.SpecOpts
	unconfined bool

	// sandbox is the one to join; own says that it was made for this container
	// and goes with it. Without a sandbox the runtime makes do alone.
	sandbox string
	own     bool
	runtime string
	labels  map[string]string
	noLog   bool   // throw the output away
	logFile string // "" without a log
}

// createContainer writes the record and prepares the root filesystem; the step
// that takes both back is put on steps.
func (c *client) createContainer(ctx context.Context, n newContainer, steps *undo.Stack) (containerd.Container, error) {
	labels := map[string]string{}
	for k, v := range n.labels {
		labels[k] = v
	}
	if n.sandbox != "" {
		labels[labelSandbox] = n.sandbox
		labels[labelOwned] = strconv.FormatBool(n.own)
	}
	if n.logFile != "" {
		labels[labelLog] = n.logFile
	}
	snapshot := false
	opts := []containerd.NewContainerOpts{
		containerd.WithContainerLabels(labels),
		containerd.WithImageStopSignal(n.image, "SIGTERM"),
		containerd.WithRuntime(n.runtime, nil),
		containerd.WithSandbox(n.sandbox),
		containerd.WithNewSnapshot(n.id, n.image),
		func(context.Context, *containerd.Client, *containers.Container) error {
			snapshot = true
			return nil
		},
		containerd.WithNewSpec(n.specOpts()...),
	}
	ctr, err := c.NewContainer(ctx, n.id, opts...)
	if err != nil {
		if snapshot {
			err = joinUndo(err, c.removeSnapshot(ctx, n.id))
		}
		if errdefs.IsAlreadyExists(err) {
			return nil, alreadyExists(err, n.id)
		}
		return nil, fmt.Errorf("container %q: create: %w", n.id, err)
	}
	steps.Add("container", func(ctx context.Context) error {
		// A call that was cut off may have left a task.
		if err := removeTask(ctx, ctr, true); err != nil {
			return err
		}
		return ignoreNotFound(ctr.Delete(ctx, containerd.WithSnapshotCleanup))
	})
	return ctr, nil
}

func alreadyExists(class error, id string) error {
	return advise(class, "container %q exists already: remove it first with `caisson rm %s`, or choose another --name", id, id)
}

// removeSnapshot takes back the root filesystem of a container without a record.
func (c *client) removeSnapshot(ctx context.Context, key string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
	defer cancel()
	if err := ignoreNotFound(c.SnapshotService("").Remove(ctx, key)); err != nil {
		return fmt.Errorf("remove root filesystem: %w", err)
	}
	return nil
}

// load finds a container.
func (c *client) load(ctx context.Context, id string) (containerd.Container, error) {
	if err := checkID("container", id); err != nil {
		return nil, err
	}
	ctr, err := c.LoadContainer(ctx, id)
	if errdefs.IsNotFound(err) {
		return nil, advise(err, "no container %q: `caisson ps -a` shows those there are", id)
	}
	if err != nil {
		return nil, fmt.Errorf("container %q: %w", id, err)
	}
	return ctr, nil
}

// running finds a container and its task, which must not have ended.
func (c *client) running(ctx context.Context, id string) (containerd.Container, containerd.Task, error) {
	ctr, err := c.load(ctx, id)
	if err != nil {
		return nil, nil, err
	}
	task, st, err := taskOf(ctx, ctr)
	if err != nil {
		return nil, nil, err
	}
	if task == nil || st.Status == containerd.Stopped {
		return nil, nil, advise(errdefs.ErrFailedPrecondition, "container %q is not running: `caisson logs %s` shows what it wrote, `caisson rm %s` removes it", id, id, id)
	}
	return ctr, task, nil
}

// taskOf answers a container's task and its state; nil if it has none.
func taskOf(ctx context.Context, ctr containerd.Container) (containerd.Task, containerd.Status, error) {
	task, err := ctr.Task(ctx, nil)
	if errdefs.IsNotFound(err) {
		return nil, containerd.Status{}, nil
	}
	if err != nil {
		return nil, containerd.Status{}, fmt.Errorf("container %q: task: %w", ctr.ID(), err)
	}
	st, err := task.Status(ctx)
	if errdefs.IsNotFound(err) {
		return nil, containerd.Status{}, nil
	}
	if err != nil {
		return nil, containerd.Status{}, fmt.Errorf("container %q: state: %w", ctr.ID(), err)
	}
	return task, st, nil
}

// removal says what removing a container may do.
type removal struct {
	force       bool // kill it first
	keepSandbox bool // leave its own sandbox: the caller removes that
}

// removeContainer removes the task, the container's own sandbox, the log, the checkpoint
// and at last the record, so that a failed removal can be repeated.
func (c *client) removeContainer(ctx context.Context, id string, how removal) error {
	ctr, err := c.load(ctx, id)
	if err != nil {
		return err
	}
	labels, err := ctr.Labels(ctx)
	if err != nil {
		return fmt.Errorf("container %q: %w", id, err)
	}
	own := labels[labelOwned] == "true" && labels[labelSandbox] != "" && !how.keepSandbox
	if own {
		if err := c.checkAlone(ctx, id, labels[labelSandbox]); err != nil {
			return err
		}
	}
	if err := removeTask(ctx, ctr, how.force); err != nil {
		return err
	}
	if own {
		if err := c.removeSandbox(ctx, labels[labelSandbox], stopOpts(0)...); err != nil {
			return fmt.Errorf("container %q: %w", id, err)
		}
	}
	if err := removeLog(labels[labelLog], c.app.namespace, id); err != nil {
		return fmt.Errorf("container %q: remove log: %w", id, err)
	}
	if err := c.app.removeCheckpoint(id); err != nil {
		return fmt.Errorf("container %q: remove checkpoint: %w", id, err)
	}
	if err := ctr.Delete(ctx, containerd.WithSnapshotCleanup); ignoreNotFound(err) != nil {
		return fmt.Errorf("container %q: remove: %w", id, err)
	}
	return nil
}

// checkAlone makes sure that no other container lives in a container's own sandbox.
func (c *client) checkAlone(ctx context.Context, id, sandboxID string) error {
	members, err := c.containersIn(ctx, sandboxID)
	if err != nil {
		return err
	}
	for _, other := range members {
		if other != id {
			return advise(errdefs.ErrFailedPrecondition, "container %q shares its sandbox with %q; remove that first: caisson rm %s, or all at once: caisson sandbox rm -f %s", id, other, other, sandboxID)
		}
	}
	return nil
}

// removeTask deletes a task that has ended, or kills it first.
func removeTask(ctx context.Context, ctr containerd.Container, force bool) error {
	task, st, err := taskOf(ctx, ctr)
	if err != nil || task == nil {
		return err
	}
	switch st.Status {
	case containerd.Running, containerd.Paused, containerd.Pausing:
		if !force {
			return advise(errdefs.ErrFailedPrecondition, "container %q is running; stop it first: caisson stop %s, or remove it at once: caisson rm -f %s", ctr.ID(), ctr.ID(), ctr.ID())
		}
	}
	opts := []containerd.ProcessDeleteOpts{}
	if force || st.Status == containerd.Created {
		opts = append(opts, containerd.WithProcessKill)
	}
	if err := deleteTask(ctx, ctr, opts...); err != nil {
		return fmt.Errorf("container %q: delete task: %w", ctr.ID(), err)
	}
	return nil
}

// makeLog creates the file that a detached container writes to, so that it is
// its owner's alone before the daemon opens it.
func makeLog(path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	return f.Close()
}

// removeLog removes a log, but nothing that only a label claims to be one:
// labels are anyone's who can reach the daemon.
func removeLog(path, namespace, containerID string) error {
	if path == "" {
		return nil
	}
	if !isOurs(path, "logs", namespace, containerID+".log") {
		return fmt.Errorf("%q is not the path of a log of this container: %w", path, errdefs.ErrFailedPrecondition)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// isOurs says whether a path can be one of those below the root directory.
func isOurs(path, kind, namespace, name string) bool {
	return filepath.IsAbs(path) && filepath.Clean(path) == path && strings.HasSuffix(path, "/"+filepath.Join(kind, namespace, name))
}

// detached runs a clean-up when the command's own context may have ended.
func detached(ctx context.Context, do func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
	defer cancel()
	return do(ctx)
}
