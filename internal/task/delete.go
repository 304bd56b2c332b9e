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
	"github.com/containerd/log"
	"github.com/containerd/typeurl/v2"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/timestamppb"

	"caisson/internal/cgroup"
	"caisson/internal/fault"
	"caisson/internal/request"
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
// included; see also Config.KeepsDeleted. FailedPrecondition: it still runs. A Delete that failed can be
// repeated.
func (s *Set) Delete(ctx context.Context, id, execID string) (Exit, error) {
	p, err := s.acquire(ctx, id, execID)
	if errdefs.IsNotFound(err) {
		if exit, ok := deleted(ctx); ok {
			return exit, nil
		}
		if st, ok := s.wasDeleted(id, execID); ok {
			return st.Exit, nil
		}
	}
	if err == nil && (p.waits() || p.untold()) {
		err = p.awaitEnd(ctx) // lets op go, since the exit needs it
		if err == nil {
			p, err = s.acquire(ctx, id, execID)
		}
	}
	if err != nil {
		return Exit{}, err
	}
	defer p.unlock()
	switch rec := p.snapshot(); {
	case rec.State == Stopped:
	case rec.State == Created && rec.Serial == 0:
		p.stop(p.context(), 0, time.Time{})
		p.finish()
	default:
		return Exit{}, fmt.Errorf("%v is %s; kill it first: %w", p, rec.State, errdefs.ErrFailedPrecondition)
	}
	fault.Point("task:delete")
	p.drain(p.context())
	exit := p.snapshot().exit()
	if err := noteDeleted(ctx, exit); err != nil {
		return Exit{}, err
	}
	if execID != "" {
		return exit, p.removeExec()
	}
	return exit, p.c.remove(ctx, exit)
}

// noteDeleted keeps the answer for a daemon that is asked again what this one has
// deleted.
func noteDeleted(ctx context.Context, exit Exit) error {
	note, err := json.Marshal(exit)
	if err != nil {
		return err
	}
	return request.From(ctx).Note(note)
}

// deleted is how what an earlier daemon has deleted for the same request ended.
func deleted(ctx context.Context) (exit Exit, ok bool) {
	req := request.From(ctx)
	return exit, req.Again && json.Unmarshal(req.Noted, &exit) == nil
}

// waits tells whether this is an init process that waits to be started.
func (p *process) waits() bool {
	rec := p.snapshot()
	return rec.State == Created && rec.Serial != 0
}

// untold tells whether the last daemon wrote down that the process has ended, and may not
// have told it: the monitor still tells of the end, which is on its way.
func (p *process) untold() bool { return p.snapshot().State == Stopped && !p.finished() }

// awaitEnd returns when the exit of a process was told, which it kills if it waits to be
// started. The caller holds op, and does not any more afterwards.
func (p *process) awaitEnd(ctx context.Context) error {
	var err error
	if p.waits() {
		err = p.signal(ctx, unix.SIGKILL)
	}
	p.unlock()
	if err != nil && !errdefs.IsNotFound(err) {
		return err
	}
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
	if err := c.removeRuntime(ctx); err != nil {
		return fmt.Errorf("task %q: %w", c.ID, err)
	}
	if err := c.unmountRootfs(ctx); err != nil {
		return err
	}
	c.release()
	if err := c.bury(); err != nil {
		return err
	}
	c.set.remove(c)
	c.keepDeleted()
	mourn := func() error { return c.mourn(c.context(), exit) }
	if err := mourn(); err != nil {
		// It is gone all the same.
		log.G(c.context()).WithError(err).Error("tell that a container was deleted")
		c.set.retry(mourn)
	}
	return nil
}

// removeRuntime takes away what the OCI runtime made.
func (c *container) removeRuntime(ctx context.Context) error {
	// What never ran according to us is what Create could not take back. And without a
	// monitor a killed init can be on its way for a while: it waits for its zombies.
	if _, gone := c.set.attached(); c.init.snapshot().Serial == 0 || gone != nil {
		return c.undoRuntime(ctx)
	}
	if !c.LeavesLittle {
		return c.Runtime.Delete(ctx, c.ID, c.file("delete.log"), false)
	}
	// In this order the runtime still knows of it if the first fails, or caissond ends.
	if err := cgroup.Remove(ctx, c.Cgroup); err != nil {
		return err
	}
	return c.Runtime.Forget(c.ID)
}

// mourn tells that the container was deleted, and forgets it. If the daemon dies
// before that, the next one does it.
func (c *container) mourn(ctx context.Context, exit Exit) error {
	err := c.set.tell(ctx, c.init.key("delete", 0), &events.TaskDelete{
		ContainerID: c.ID,
		Pid:         uint32(exit.Pid),
		ExitStatus:  exit.Status,
		ExitedAt:    timestamppb.New(exit.At),
	})
	if err != nil || c.set.keepsDeleted() {
		return err
	}
	return c.removeGrave()
}

// keepDeleted lets the container be asked for, if that is wanted. Its grave stays,
// for the next daemon.
func (c *container) keepDeleted() {
	if !c.set.keepsDeleted() {
		return
	}
	st := c.init.status()
	c.set.mu.Lock()
	c.set.deleted[c.ID] = st
	c.set.mu.Unlock()
}

func (s *Set) keepsDeleted() bool { return s.cfg.KeepsDeleted != nil && s.cfg.KeepsDeleted() }

// removeExec takes away what is left of an exec, its record last: what is without
// one belongs to nobody.
func (p *process) removeExec() error {
	p.giveUpIO()
	err := removeFiles(p.specPath(), p.c.log(p.execID), p.path+".pid", p.path)
	if err != nil {
		return fmt.Errorf("%v: %w", p, err)
	}
	p.c.mu.Lock()
	delete(p.c.execs, p.execID)
	p.c.mu.Unlock()
	return nil
}

// removeFiles removes files that may not be there, in order.
func removeFiles(paths ...string) error {
	for _, path := range paths {
		fault.Point("task:exec:forget")
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
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
