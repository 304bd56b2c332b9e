package libcontainerd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	runcoptions "github.com/containerd/containerd/api/types/runc/options"
	tasktypes "github.com/containerd/containerd/api/types/task"
	containerd "github.com/containerd/containerd/v2/client"
	c8dcontainers "github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	"github.com/opencontainers/runtime-spec/specs-go"
)

var _ Container = (*container)(nil)

type container struct {
	client *client
	ledger *ledger
	life   int // which of the ledger's
	ctr    containerd.Container
}

func newContainer(l *ledger, ctr containerd.Container) *container {
	l.mu.Lock()
	defer l.mu.Unlock()
	return &container{client: l.client, ledger: l, life: l.lives, ctr: ctr}
}

// begin starts a call. NotFound: the container is gone; another may have its id, whose
// task is not this one's to make, and would be told twice.
func (c *container) begin(ctx context.Context) (_ context.Context, end func(), err error) {
	ctx, end, err = c.client.begin(ctx)
	if err != nil {
		return nil, nil, err
	}
	if err := c.check(); err != nil {
		end()
		return nil, nil, err
	}
	return ctx, end, nil
}

func (c *container) check() error {
	l := c.client.ledger(containers, c.ledger.id)
	c.ledger.mu.Lock()
	defer c.ledger.mu.Unlock()
	if l != c.ledger || l.deleted || l.lives != c.life {
		return fmt.Errorf("container %q was deleted: %w", c.ledger.id, errdefs.ErrNotFound)
	}
	return nil
}

func (c *container) Start(ctx context.Context, checkpointDir string, withStdin bool, attachStdio StdioCallback) (Task, error) {
	t, err := c.NewTask(ctx, checkpointDir, withStdin, attachStdio)
	if err != nil {
		return nil, err
	}
	if err := t.Start(ctx); err != nil {
		ctx, cancel := undoing(ctx)
		defer cancel()
		return nil, errors.Join(err, t.ForceDelete(ctx))
	}
	return t, nil
}

func (c *container) NewTask(ctx context.Context, checkpointDir string, withStdin bool, attachStdio StdioCallback) (_ Task, err error) {
	ctx, end, err := c.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	id := c.ledger.id
	info, err := c.ctr.Info(ctx, containerd.WithoutRefreshedMetadata)
	if err != nil {
		return nil, failed(err, "container %q", id)
	}
	var spec specs.Spec
	if err := json.Unmarshal(info.Spec.GetValue(), &spec); err != nil {
		return nil, fmt.Errorf("container %q: spec: %w: %w", id, errdefs.ErrInvalidArgument, err)
	}
	opts := []containerd.NewTaskOpts{withIOOwner(info, &spec)}
	if info.SandboxID != "" {
		endpoint, err := c.client.endpoint(ctx, info.SandboxID)
		if err != nil {
			return nil, fmt.Errorf("container %q: create task: %w", id, err)
		}
		opts = append(opts, endpoint)
	}
	if checkpointDir != "" {
		checkpoint, remove, err := c.client.upload(ctx, checkpointDir)
		if err != nil {
			return nil, fmt.Errorf("container %q: create task: %w", id, err)
		}
		defer func() { err = errors.Join(err, remove()) }()
		opts = append(opts, checkpoint)
	}
	if err := c.removeHalfMade(ctx); err != nil {
		return nil, fmt.Errorf("container %q: create task: %w", id, err)
	}
	if err := c.ledger.waitForRoom(ctx); err != nil {
		return nil, err
	}
	if err := c.check(); err != nil {
		return nil, err // since then
	}
	std, err := c.ledger.stdio(id, withStdin, spec.Process != nil && spec.Process.Terminal, attachStdio)
	if err != nil {
		return nil, fmt.Errorf("container %q: create task: %w", id, err)
	}
	defer c.ledger.endMaking()
	if err := c.ledger.beginMaking(); err != nil {
		return nil, errors.Join(fmt.Errorf("container %q: create task: %w", id, err), std.discard())
	}
	ct, err := c.ctr.NewTask(ctx, func(string) (cio.IO, error) { return std.io, nil }, opts...)
	if err != nil {
		err = failed(err, "container %q: create task", id)
		if uncertain(err) || errdefs.IsUnknown(err) {
			c.ledger.setHalfMade(true) // else what an earlier attempt may leave is still to come
		}
		err = errors.Join(err, std.discard())
		if errdefs.IsNotFound(err) { // perhaps the container; what is left of it goes, or later
			_, _, _ = c.client.find(ctx, id)
		}
		return nil, err
	}
	t := c.task(c.ledger.own(ct.Pid()), std)
	t.stdinReady(ctx)
	return t, nil
}

func (c *container) task(r *run, std stdio) *task {
	return &task{handle: newHandle(c.ledger, r, r.init, std), container: c}
}

// removeHalfMade removes the task of an earlier NewTask that got no answer. That there
// is none says nothing: the server may still be at it.
func (c *container) removeHalfMade(ctx context.Context) error {
	if !c.ledger.isHalfMade() {
		return nil
	}
	state, err := c.client.state(ctx, c.ledger.id, "")
	switch {
	case errdefs.IsNotFound(err):
		return nil
	case err != nil:
		return err
	case state.Status == tasktypes.Status_CREATED || state.Status == tasktypes.Status_STOPPED:
		t := c.task(c.ledger.own(state.Pid), c.ledger.oldIO(state))
		if err := t.ForceDelete(ctx); err != nil {
			return err
		}
	}
	c.ledger.setHalfMade(false)
	return nil
}

func (c *container) Task(ctx context.Context) (Task, error) {
	ctx, end, err := c.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	t, _, err := c.load(ctx)
	if err != nil {
		return nil, err
	}
	return t, nil
}

func (c *container) load(ctx context.Context) (*task, *tasktypes.Process, error) {
	before := c.ledger.view()
	state, err := c.client.state(ctx, c.ledger.id, "")
	if err != nil {
		return nil, nil, err
	}
	r := c.ledger.observe(before, state)
	if r == nil {
		return nil, nil, fmt.Errorf("container %q: its task was just deleted: %w", c.ledger.id, errdefs.ErrNotFound)
	}
	return c.task(r, c.ledger.oldIO(state)), state, nil
}

func (c *container) AttachTask(ctx context.Context, attachStdio StdioCallback) (Task, error) {
	ctx, end, err := c.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	t, state, err := c.load(ctx)
	if err != nil {
		return nil, err
	}
	std := t.stdio
	var opened func(*cio.DirectIO)
	if state.Status != tasktypes.Status_STOPPED {
		opened = func(dio *cio.DirectIO) { awaitOutput(ctx, dio) }
	}
	if err := std.connect(cio.Config{Terminal: state.Terminal, Stdin: state.Stdin, Stdout: state.Stdout, Stderr: state.Stderr}, attachStdio, opened); err != nil {
		return nil, fmt.Errorf("container %q: attach: %w", c.ledger.id, err)
	}
	t = c.task(t.run, std)
	t.stdinReady(ctx)
	return t, nil
}

func (c *container) Delete(ctx context.Context) error {
	ctx, end, err := c.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	unlock, err := c.client.ids.lock(ctx, key{containers, c.ledger.id})
	if err != nil {
		return fmt.Errorf("container: delete: %w", err)
	}
	defer unlock()
	if err := c.check(); err != nil {
		return err // since then
	}
	err = failed(c.ctr.Delete(ctx), "container %q: delete", c.ledger.id)
	if err == nil || errdefs.IsNotFound(err) {
		c.ledger.containerGone()
	}
	return err
}

// runcOptions are of the runtimes that take runc's options; others get what the
// container's record has.
var runcOptions = []string{"io.containerd.runc.v2", "io.containerd.caisson.v2"}

// withIOOwner gives the stdio pipes that runc's shim makes to the container's root.
func withIOOwner(info c8dcontainers.Container, spec *specs.Spec) containerd.NewTaskOpts {
	return func(_ context.Context, _ *containerd.Client, t *containerd.TaskInfo) error {
		if spec.Linux == nil || len(spec.Linux.UIDMappings) == 0 {
			return nil
		}
		opts := &runcoptions.Options{}
		switch own := info.Runtime.Options; {
		case own.GetTypeUrl() != "":
			v, err := typeurl.UnmarshalAny(own)
			if err != nil {
				return fmt.Errorf("runtime options: %w: %w", errdefs.ErrInvalidArgument, err)
			}
			var ok bool
			if opts, ok = v.(*runcoptions.Options); !ok {
				return nil
			}
		case !slices.Contains(runcOptions, info.Runtime.Name):
			return nil
		}
		opts.IoUid, opts.IoGid = hostRoot(spec.Linux.UIDMappings), hostRoot(spec.Linux.GIDMappings)
		t.Options = opts
		return nil
	}
}

func hostRoot(mappings []specs.LinuxIDMapping) uint32 {
	for _, m := range mappings {
		if m.ContainerID == 0 && m.Size > 0 {
			return m.HostID
		}
	}
	return 0
}
