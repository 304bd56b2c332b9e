package task

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"slices"

	"github.com/containerd/containerd/api/events"
	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/errdefs"
	runc "github.com/containerd/go-runc"
	"github.com/containerd/typeurl/v2"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Pid is a process in a container; ExecID is set if it is an exec.
type Pid struct {
	Pid    int
	ExecID string
}

// Pids lists the processes in a container, always with its init: until it is
// deleted, one that has ended is the zombie that it is to its clients. containerd
// takes a task without processes for a leaked one when it restarts, and would
// throw the exit status away.
func (s *Set) Pids(_ context.Context, id string) ([]Pid, error) {
	c, err := s.container(id)
	if err != nil {
		return nil, err
	}
	rec := c.init.snapshot()
	if rec.Pid == 0 {
		return nil, nil
	}
	var pids []int
	if group, err := c.cgroup(); err == nil && rec.State != Stopped {
		if pids, err = group.Pids(); err != nil && !errdefs.IsNotFound(err) {
			return nil, fmt.Errorf("task %q: %w", id, err)
		}
	}
	// A zombie is in no cgroup, and its end may not be known yet; nor is the cgroup of
	// one that runs unobserved.
	if !slices.Contains(pids, rec.Pid) {
		pids = append(pids, rec.Pid)
	}
	execs := map[int]string{}
	for _, p := range c.allExecs() {
		if rec := p.snapshot(); rec.State == Running {
			execs[rec.Pid] = p.execID
		}
	}
	list := make([]Pid, 0, len(pids))
	for _, pid := range pids {
		list = append(list, Pid{Pid: pid, ExecID: execs[pid]})
	}
	return list, nil
}

// Stats returns the metrics of the container's cgroup, as containerd's cgroup v1
// or v2 message. It is cheap: clients ask every second.
func (s *Set) Stats(_ context.Context, id string) (typeurl.Any, error) {
	c, err := s.container(id)
	if err != nil {
		return nil, err
	}
	group, err := c.cgroup()
	if err != nil {
		return nil, err
	}
	stats, err := group.Stats()
	if err != nil {
		return nil, fmt.Errorf("task %q: stats: %w", id, err)
	}
	any, err := typeurl.MarshalAny(stats)
	if err != nil {
		return nil, fmt.Errorf("task %q: stats: %w", id, err)
	}
	return any, nil
}

// Update changes the limits of a running container. It may be repeated.
// InvalidArgument: the resources are not OCI's.
func (s *Set) Update(ctx context.Context, id string, resources typeurl.Any) error {
	var limits specs.LinuxResources
	if resources == nil {
		return fmt.Errorf("task %q: update: no resources: %w", id, errdefs.ErrInvalidArgument)
	}
	if err := json.Unmarshal(resources.GetValue(), &limits); err != nil {
		return fmt.Errorf("task %q: update: resources: %w: %w", id, err, errdefs.ErrInvalidArgument)
	}
	p, err := s.acquire(ctx, id, "")
	if err != nil {
		return err
	}
	defer p.unlock()
	c := p.c
	if state := p.snapshot().State; state != Running && state != Created {
		return fmt.Errorf("task %q: update: it is %s: %w", id, state, errdefs.ErrFailedPrecondition)
	}
	if err := c.Runtime.Update(ctx, id, c.file("update.log"), &limits); err != nil {
		return fmt.Errorf("task %q: %w", id, err)
	}
	return nil
}

// Checkpoint writes the state of a running container to the directory path, or
// to the one its options name. Options are containerd.runc.v1.CheckpointOptions,
// or nil. It needs CRIU on the host.
func (s *Set) Checkpoint(ctx context.Context, id, path string, any typeurl.Any) error {
	opts := &options.CheckpointOptions{}
	if any != nil && any.GetTypeUrl() != "" {
		value, err := typeurl.UnmarshalAny(any)
		if err != nil {
			return fmt.Errorf("task %q: checkpoint: options: %w: %w", id, err, errdefs.ErrInvalidArgument)
		}
		var ok bool
		if opts, ok = value.(*options.CheckpointOptions); !ok {
			return fmt.Errorf("task %q: checkpoint: options of type %q, want containerd.runc.v1.CheckpointOptions: %w", id, any.GetTypeUrl(), errdefs.ErrInvalidArgument)
		}
	}
	p, err := s.acquire(ctx, id, "")
	if err != nil {
		return err
	}
	defer p.unlock()
	c := p.c
	if state := p.snapshot().State; state != Running {
		return fmt.Errorf("task %q: checkpoint: it is %s, not running: %w", id, state, errdefs.ErrFailedPrecondition)
	}
	if err := c.checkpoint(ctx, path, opts); err != nil {
		return fmt.Errorf("task %q: %w", id, err)
	}
	return s.publish(ctx, "", &events.TaskCheckpointed{ContainerID: id, Checkpoint: path})
}

func (c *container) checkpoint(ctx context.Context, path string, opts *options.CheckpointOptions) error {
	image := opts.ImagePath
	if image == "" {
		image = path
	}
	if image == "" {
		image = c.CheckpointPath
	}
	if image == "" {
		return fmt.Errorf("checkpoint: no directory to write it to: %w", errdefs.ErrInvalidArgument)
	}
	work := opts.WorkPath
	if work == "" {
		work = c.workPath()
	}
	if err := os.MkdirAll(work, 0o700); err != nil {
		return fmt.Errorf("checkpoint: %w", err)
	}
	mode := runc.CgroupMode("")
	switch opts.CgroupsMode {
	case "":
	case "soft":
		mode = runc.Soft
	case "full":
		mode = runc.Full
	case "strict":
		mode = runc.Strict
	default:
		return fmt.Errorf("checkpoint: cgroups mode %q is none of soft, full, strict: %w", opts.CgroupsMode, errdefs.ErrInvalidArgument)
	}
	var actions []runc.CheckpointAction
	if !opts.Exit {
		actions = append(actions, runc.LeaveRunning)
	}
	return c.Runtime.Checkpoint(ctx, c.ID, c.file("checkpoint.log"), &runc.CheckpointOpts{
		ImagePath:                image,
		WorkDir:                  work,
		ParentPath:               opts.ParentPath,
		AllowOpenTCP:             opts.OpenTcp,
		AllowExternalUnixSockets: opts.ExternalUnixSockets,
		AllowTerminal:            opts.Terminal,
		FileLocks:                opts.FileLocks,
		EmptyNamespaces:          opts.EmptyNamespaces,
		Cgroups:                  mode,
	}, actions...)
}
