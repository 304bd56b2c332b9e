package task

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/containerd/containerd/api/events"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// Exit is the end of a process.
type Exit struct {
	Pid    int
	Status uint32
	At     time.Time
}

func (r record) exit() Exit { return Exit{Pid: r.Pid, Status: r.ExitStatus, At: r.ExitedAt} }

// Delete forgets a process that has ended or was never started, and returns how
// it ended. Deleting a container removes everything that Create made, its execs
// included. FailedPrecondition: it still runs. A Delete that failed can be
// repeated.
func (s *Set) Delete(ctx context.Context, id, execID string) (Exit, error) {
	p, err := s.process(id, execID)
	if err != nil {
		return Exit{}, err
	}
	if err := p.lock(ctx); err != nil {
		return Exit{}, err
	}
	defer p.unlock()
	switch state := p.snapshot().State; {
	case state == Stopped:
	case state == Created && (execID != "" || p.snapshot().Pid == 0):
		p.stop(s.context(), 0, time.Time{})
		p.finish()
	case state == Created:
		if err := p.endUnstarted(ctx); err != nil {
			return Exit{}, err
		}
	default:
		return Exit{}, fmt.Errorf("%v is %s; kill it first: %w", p, state, errdefs.ErrFailedPrecondition)
	}
	p.drain(s.context())
	exit := p.snapshot().exit()
	if execID != "" {
		return exit, p.removeExec()
	}
	return exit, p.c.remove(ctx, exit)
}

// endUnstarted kills an init process that waits to be started. The caller holds
// op; it is let go for the moment in which the exit is handled.
func (p *process) endUnstarted(ctx context.Context) error {
	if err := p.signal(ctx, unix.SIGKILL); err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	p.unlock()
	defer func() { p.op <- struct{}{} }()
	select {
	case <-p.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%v: delete: %w", p, ctx.Err())
	}
}

// remove takes away what is left of a container that has ended. The record goes
// last, so that what fails before can be repeated.
func (c *container) remove(ctx context.Context, exit Exit) error {
	if err := c.Runtime.Delete(ctx, c.ID, c.file("delete.log"), false); err != nil {
		return fmt.Errorf("task %q: %w", c.ID, err)
	}
	if err := c.unmountRootfs(); err != nil {
		return err
	}
	c.release()
	if err := c.removeDir(); err != nil {
		return err
	}
	c.set.remove(c)
	return c.set.publish(ctx, "", &events.TaskDelete{
		ContainerID: c.ID,
		Pid:         uint32(exit.Pid),
		ExitStatus:  exit.Status,
		ExitedAt:    timestamppb.New(exit.At),
	})
}

func (p *process) removeExec() error {
	err := p.forget()
	for _, path := range []string{p.specPath(), p.c.log(p.execID), p.path + ".pid"} {
		if e := os.Remove(path); e != nil && !errors.Is(e, os.ErrNotExist) {
			err = errors.Join(err, fmt.Errorf("%v: %w", p, e))
		}
	}
	p.c.mu.Lock()
	delete(p.c.execs, p.execID)
	p.c.mu.Unlock()
	return err
}

// processSpec checks the description of an exec.
func processSpec(p *process, any typeurl.Any) (json.RawMessage, error) {
	var spec specs.Process
	if any == nil {
		return nil, fmt.Errorf("%v: no process specification: %w", p, errdefs.ErrInvalidArgument)
	}
	if err := json.Unmarshal(any.GetValue(), &spec); err != nil {
		return nil, fmt.Errorf("%v: process specification: %w: %w", p, err, errdefs.ErrInvalidArgument)
	}
	if len(spec.Args) == 0 {
		return nil, fmt.Errorf("%v: process specification names no command: %w", p, errdefs.ErrInvalidArgument)
	}
	if spec.Terminal != p.rec.Stdio.Terminal {
		// The request decides, as in containerd's own shim.
		spec.Terminal = p.rec.Stdio.Terminal
		return json.Marshal(spec)
	}
	return any.GetValue(), nil
}
