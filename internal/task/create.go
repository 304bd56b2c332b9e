package task

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/containerd/api/events"
	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"

	"caisson/internal/cgroup"
	"caisson/internal/fault"
	"caisson/internal/oci"
	"caisson/internal/request"
	"caisson/internal/stdio"
	"caisson/internal/undo"
)

// CreateRequest describes a container.
type CreateRequest struct {
	ID string
	// Bundle is the directory with config.json and rootfs.
	Bundle string
	Rootfs []mount.Mount
	Stdio  stdio.Config
	// Checkpoint is a directory to restore from, if not empty.
	Checkpoint, ParentCheckpoint string
	// Options are containerd.runc.v1.Options, or nil.
	Options typeurl.Any
}

// Create prepares a container: its root filesystem is mounted and its init
// process waits to be started. It returns the pid of that. On error nothing is
// left. AlreadyExists: there is a task of that ID; FailedPrecondition: the
// sandbox does not run; InvalidArgument: bundle, specification or options.
func (s *Set) Create(ctx context.Context, req CreateRequest) (_ int, err error) {
	if _, err := s.attached(); err != nil {
		return 0, err
	}
	if err := ctx.Err(); err != nil {
		return 0, fmt.Errorf("task %q: create: %w", req.ID, err)
	}
	ctx, cancel := s.untilEnd(ctx)
	defer cancel()
	c, err := s.reserve(ctx, req)
	if err != nil {
		if done := s.created(ctx, req.ID); done != nil {
			return done.init.snapshot().Pid, done.publishCreate(ctx)
		}
		return 0, err
	}
	p := c.init
	defer p.unlock()
	s.background(cgroup.Anticipate)
	var steps undo.Stack
	defer func() {
		if err != nil {
			err = errors.Join(err, c.abort(ctx, &steps))
		}
	}()

	fault.Point("task:create")
	root, err := c.join()
	if err != nil {
		return 0, err
	}
	if err := c.save(); err != nil {
		return 0, err
	}
	if err := p.save(); err != nil {
		return 0, err
	}
	steps.Add("root filesystem", c.unmountRootfs)
	if err := c.mountRootfs(ctx); err != nil {
		return 0, err
	}
	if err := oci.CheckRoot(root); err != nil {
		return 0, fmt.Errorf("task %q: %w", c.ID, err)
	}
	if c.Restore == nil {
		steps.Add("container", func(ctx context.Context) error {
			if errdefs.IsAlreadyExists(err) {
				return nil // The runtime has another container of that ID, not ours to remove.
			}
			return c.undoRuntime(ctx)
		})
		if err := c.launch(ctx, p, Created, c.createArgs); err != nil {
			return 0, err
		}
		c.stowRootfs(ctx)
	} else if err := p.move(Created, nil); err != nil {
		return 0, err
	}
	return p.snapshot().Pid, c.publishCreate(ctx)
}

// undoRuntime takes back what an OCI runtime made, or was killed over. Of what it had
// not noted yet it knows nothing, like a cgroup: that is removed here.
func (c *container) undoRuntime(ctx context.Context) error {
	if err := c.Runtime.Delete(ctx, c.ID, c.file("undo.log"), true); err != nil {
		return err
	}
	if c.Cgroup == "" {
		return nil
	}
	return cgroup.Remove(ctx, c.Cgroup)
}

// created is the container of that ID, if it is what the same request made in an
// earlier daemon.
func (s *Set) created(ctx context.Context, id string) *container {
	c, err := s.container(id)
	if err != nil || !request.From(ctx).Is(c.Request) {
		return nil
	}
	return c
}

// abort takes back a creation that failed. What cannot be taken back is left as a
// container that has ended, for Delete to try again. The caller holds op.
func (c *container) abort(ctx context.Context, steps *undo.Stack) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	err := errors.Join(steps.Run(ctx), c.init.dropStdio(ctx))
	c.release()
	if err == nil {
		err = c.bury()
	}
	if err != nil {
		c.init.stop(ctx, unknownExit, time.Now())
		c.init.finish()
		return err
	}
	c.set.remove(c)
	return c.removeGrave()
}

// undoTimeout bounds taking something back, whatever became of the caller.
const undoTimeout = 30 * time.Second

// publishCreate tells that the container is there.
func (c *container) publishCreate(ctx context.Context) error {
	rec := c.init.snapshot()
	event := &events.TaskCreate{
		ContainerID: c.ID,
		Bundle:      c.Bundle,
		Rootfs:      mount.ToProto(c.Rootfs),
		IO: &events.TaskIO{
			Stdin:    rec.Stdio.Stdin,
			Stdout:   rec.Stdio.Stdout,
			Stderr:   rec.Stdio.Stderr,
			Terminal: rec.Stdio.Terminal,
		},
		Pid: uint32(rec.Pid),
	}
	if c.Restore != nil {
		event.Checkpoint = c.Restore.ImagePath
	}
	return c.set.publish(ctx, c.init.key("create", 0), event)
}

// reserve checks a request and enters its container in the set, with op held.
func (s *Set) reserve(ctx context.Context, req CreateRequest) (*container, error) {
	if err := validID("task", req.ID); err != nil {
		return nil, err
	}
	if !filepath.IsAbs(req.Bundle) {
		return nil, fmt.Errorf("task %q: bundle %q is not an absolute path: %w", req.ID, req.Bundle, errdefs.ErrInvalidArgument)
	}
	opts, err := runcOptions(req.ID, req.Options)
	if err != nil {
		return nil, err
	}
	runtime, err := s.runtime(opts)
	if err != nil {
		return nil, fmt.Errorf("task %q: %w", req.ID, err)
	}
	rec := containerRecord{
		ID:             req.ID,
		CreatedAt:      time.Now(),
		Bundle:         filepath.Clean(req.Bundle),
		Runtime:        runtime,
		Rootfs:         req.Rootfs,
		CheckpointPath: opts.GetCriuImagePath(),
		CriuWorkPath:   opts.GetCriuWorkPath(),
		IoUID:          opts.GetIoUid(),
		IoGID:          opts.GetIoGid(),
		Request:        request.From(ctx).ID,
	}
	if req.Checkpoint != "" {
		rec.Restore = &oci.Restore{ImagePath: req.Checkpoint, ParentPath: req.ParentCheckpoint, WorkPath: rec.workPath()}
	}
	c := newContainer(s, rec)
	c.init = newProcess(c, "", req.Stdio, Adding)
	c.init.op <- struct{}{}

	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ending.Err() != nil {
		return nil, s.errEnding() // End would not know of it.
	}
	if s.containers[c.ID] != nil || s.unread[c.ID] {
		return nil, fmt.Errorf("task %q: %w", c.ID, errdefs.ErrAlreadyExists)
	}
	s.containers[c.ID] = c
	delete(s.deleted, c.ID)
	return c, nil
}

// remove forgets a container. Who waits for a process of it that never came to an end
// waits no longer.
func (s *Set) remove(c *container) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.containers[c.ID] == c {
		delete(s.containers, c.ID)
		close(c.gone)
	}
}

func (r containerRecord) workPath() string {
	if r.CriuWorkPath != "" {
		return r.CriuWorkPath
	}
	return filepath.Join(r.Bundle, "work")
}

func runcOptions(id string, any typeurl.Any) (*options.Options, error) {
	if any == nil || any.GetTypeUrl() == "" {
		return &options.Options{}, nil
	}
	value, err := typeurl.UnmarshalAny(any)
	if err != nil {
		return nil, fmt.Errorf("task %q: options: %w: %w", id, err, errdefs.ErrInvalidArgument)
	}
	opts, ok := value.(*options.Options)
	if !ok {
		return nil, fmt.Errorf("task %q: options of type %q, want containerd.runc.v1.Options: %w", id, any.GetTypeUrl(), errdefs.ErrInvalidArgument)
	}
	err = errors.Join(
		validPath("root", opts.GetRoot()),
		validPath("CRIU image path", opts.GetCriuImagePath()),
		validPath("CRIU work path", opts.GetCriuWorkPath()),
	)
	if err != nil {
		return nil, fmt.Errorf("task %q: options: %w", id, err)
	}
	return opts, nil
}

// validPath refuses relative paths, which mean one directory to the daemon and
// another to the OCI runtime that the monitor starts. None is fine.
func validPath(what, path string) error {
	if path != "" && (!filepath.IsAbs(path) || strings.ContainsRune(path, 0)) {
		return fmt.Errorf("%s %q is not an absolute path: %w", what, path, errdefs.ErrInvalidArgument)
	}
	return nil
}

func (s *Set) runtime(opts *options.Options) (oci.Runtime, error) {
	name := opts.GetBinaryName()
	if name == "" {
		name = s.cfg.RuntimeName()
	}
	binary, err := oci.Find(name)
	if err != nil {
		return oci.Runtime{}, err
	}
	root := opts.GetRoot()
	if root == "" {
		root = s.cfg.RuntimeRoot
	}
	return oci.Runtime{
		Binary:        binary,
		Root:          filepath.Join(root, s.cfg.Namespace),
		SystemdCgroup: opts.GetSystemdCgroup() || s.cfg.SystemdCgroup,
		NoPivotRoot:   opts.GetNoPivotRoot(),
		NoNewKeyring:  opts.GetNoNewKeyring(),
	}, nil
}

// join makes the container's specification that of a member of the sandbox, and
// returns where its root filesystem will be.
func (c *container) join() (root string, err error) {
	spec, err := oci.ReadSpec(c.Bundle)
	if err != nil {
		return "", fmt.Errorf("task %q: %w", c.ID, err)
	}
	if spec.Process.Terminal != c.init.rec.Stdio.Terminal {
		return "", fmt.Errorf("task %q: the request and config.json differ on having a terminal: %w", c.ID, errdefs.ErrInvalidArgument)
	}
	member := c.set.cfg.Membership(c.ID)
	changed := c.place(member, spec)
	changed = member.Join(spec) || changed
	if c.Runtime.Accept(spec) || changed {
		if err := oci.WriteSpec(c.Bundle, spec); err != nil {
			return "", fmt.Errorf("task %q: %w", c.ID, err)
		}
	}
	c.KillAll = sharesPID(spec)
	c.NoStartHooks = spec.Hooks == nil || len(spec.Hooks.Poststart) == 0
	if c.Cgroup, err = newCgroup(spec); err != nil {
		return "", fmt.Errorf("task %q: %w", c.ID, err)
	}
	c.Stows = len(c.Rootfs) == 1 && c.Runtime.LeavesRootfs(spec)
	c.LeavesLittle = c.Cgroup != "" && c.Runtime.LeavesLittle(spec)
	if filepath.IsAbs(spec.Root.Path) {
		return spec.Root.Path, nil
	}
	return filepath.Join(c.Bundle, spec.Root.Path), nil
}

func verb(p *process) string {
	switch {
	case p.execID != "":
		return "exec"
	case p.c.Restore != nil:
		return "restore"
	}
	return "create"
}
