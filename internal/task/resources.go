package task

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/containerd/errdefs"
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
	limits, err := limitsOf(resources)
	if err != nil {
		return fmt.Errorf("task %q: update: %w", id, err)
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
	if err := c.Runtime.Update(ctx, id, c.file("update.log"), limits); err != nil {
		return fmt.Errorf("task %q: %w", id, err)
	}
	return nil
}

func limitsOf(resources typeurl.Any) (*specs.LinuxResources, error) {
	if resources == nil {
		return nil, fmt.Errorf("no resources: %w", errdefs.ErrInvalidArgument)
	}
	var limits specs.LinuxResources
	if err := json.Unmarshal(resources.GetValue(), &limits); err != nil {
		return nil, fmt.Errorf("resources: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	return &limits, nil
}
