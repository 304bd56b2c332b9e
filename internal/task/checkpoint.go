package task

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/containerd/api/events"
	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/containerd/typeurl/v2"
	"golang.org/x/sys/unix"

	"caisson/internal/fault"
	"caisson/internal/monitor"
	"caisson/internal/request"
	"caisson/internal/statefile"
	"caisson/internal/undo"
)

// checkpoint is the last one of a container. It is written down before anything is
// made, so that the next daemon removes what is half made of it.
type checkpoint struct {
	Path  string // as the client named it
	Image string // the directory
	// Made: the directory was not there before; Empty: it had nothing in it.
	Made, Empty bool
	Exit        bool      // the container ends with it
	Done        bool      // the image is whole
	At          time.Time // tells it from others
	Request     string    `json:",omitempty"`
}

// checkpointTag ends the name of its OCI runtime in the monitor. How that ended is
// acknowledged once it is written down what follows from it: the next daemon looks.
const checkpointTag = ":checkpoint"

func (p *process) checkpointTag() string { return p.tag() + checkpointTag }

func (c *container) checkpointFile() string { return c.file("checkpoint.json") }

// Checkpoint writes the state of a running container to the directory path, or
// to the one its options name. Options are containerd.runc.v1.CheckpointOptions,
// or nil. It needs CRIU on the host. After an error the directory is as it was before,
// unless it had something in it: that is the client's, and so is what is new in there.
func (s *Set) Checkpoint(ctx context.Context, id, path string, any typeurl.Any) error {
	opts, err := checkpointOptions(any)
	if err != nil {
		return fmt.Errorf("task %q: checkpoint: %w", id, err)
	}
	p, err := s.acquire(ctx, id, "")
	if err != nil {
		return err
	}
	defer p.unlock()
	if done, err := p.c.checkpointed(request.From(ctx)); done || err != nil {
		return err
	}
	if state := p.snapshot().State; state != Running {
		return fmt.Errorf("task %q: checkpoint: it is %s, not running: %w", id, state, errdefs.ErrFailedPrecondition)
	}
	if err := p.checkpoint(ctx, path, opts); err != nil {
		return fmt.Errorf("task %q: checkpoint: %w", id, err)
	}
	return nil
}

func checkpointOptions(any typeurl.Any) (*options.CheckpointOptions, error) {
	opts := &options.CheckpointOptions{}
	if any != nil && any.GetTypeUrl() != "" {
		value, err := typeurl.UnmarshalAny(any)
		if err != nil {
			return nil, fmt.Errorf("options: %w: %w", err, errdefs.ErrInvalidArgument)
		}
		var ok bool
		if opts, ok = value.(*options.CheckpointOptions); !ok {
			return nil, fmt.Errorf("options of type %q, want containerd.runc.v1.CheckpointOptions: %w", any.GetTypeUrl(), errdefs.ErrInvalidArgument)
		}
	}
	switch opts.CgroupsMode {
	case "", "soft", "full", "strict":
		return opts, nil
	}
	return nil, fmt.Errorf("cgroups mode %q is none of soft, full, strict: %w", opts.CgroupsMode, errdefs.ErrInvalidArgument)
}

// checkpointed tells whether an earlier daemon has done what is asked again.
func (c *container) checkpointed(req request.Request) (bool, error) {
	if !req.Again {
		return false, nil
	}
	var ck checkpoint
	err := statefile.Read(c.checkpointFile(), &ck)
	if errdefs.IsNotFound(err) {
		return false, nil
	}
	return ck.Done && req.Is(ck.Request), err
}

// checkpoint runs an OCI runtime that writes the container down. The caller holds op.
func (p *process) checkpoint(ctx context.Context, path string, opts *options.CheckpointOptions) error {
	c := p.c
	host, err := c.set.attached()
	if err != nil {
		return err
	}
	image, work, err := c.checkpointDirs(path, opts)
	if err != nil {
		return err
	}
	ck := checkpoint{Path: path, Image: image, Exit: opts.Exit, At: time.Now(), Request: request.From(ctx).ID}
	if err := ck.look(); err != nil {
		return err
	}
	if err := os.MkdirAll(work, 0o700); err != nil {
		return err
	}
	fault.Point("task:checkpoint")
	if err := statefile.Write(c.checkpointFile(), ck); err != nil {
		return err
	}
	logFile := c.file("checkpoint.log")
	var exit monitor.Exit
	env, err := p.leaveOut(ck.Image)
	if err == nil {
		err = fault.Fail("runtime:checkpoint", unix.EAGAIN, unix.ENOMEM, unix.EMFILE)
	}
	if err == nil {
		exit, err = p.execute(ctx, host, logFile, monitor.SpawnRequest{
			Tag:  p.checkpointTag(),
			Env:  env,
			Args: c.Runtime.CheckpointArgs(c.ID, logFile, ck.Image, work, opts),
		})
	}
	if err == nil && exitStatus(exit.Status) != 0 {
		err = c.Runtime.Explain("checkpoint", logFile, failed(exit))
	}
	fault.Point("runtime:checkpointed")
	if serr := c.settleCheckpoint(ctx, ck, err == nil); serr == nil {
		c.set.ack(exit.Serial)
	} else if err != nil {
		err = errors.Join(err, serr)
	} else {
		// The image is there. The next daemon finds that out again.
		log.G(ctx).WithError(serr).Error("note a checkpoint")
	}
	return err
}

// checkpointDirs are where the image is written to, and where CRIU works. InvalidArgument:
// there is no directory, or one that is relative.
func (r containerRecord) checkpointDirs(path string, opts *options.CheckpointOptions) (image, work string, err error) {
	image, work = cmp.Or(opts.ImagePath, path, r.CheckpointPath), cmp.Or(opts.WorkPath, r.workPath())
	if image == "" {
		return "", "", fmt.Errorf("no directory to write it to: %w", errdefs.ErrInvalidArgument)
	}
	// CRIU takes the parent's path relative to the checkpoint's.
	return image, work, errors.Join(validPath("image path", image), validPath("work path", work))
}

// look finds out what there is to be left alone.
func (ck *checkpoint) look() error {
	entries, err := os.ReadDir(ck.Image)
	ck.Made = errors.Is(err, os.ErrNotExist)
	ck.Empty = err == nil && len(entries) == 0
	if ck.Made {
		return nil
	}
	return err
}

// settleCheckpoint tells of an image that is whole, and removes one that is not.
func (c *container) settleCheckpoint(ctx context.Context, ck checkpoint, whole bool) error {
	if !whole {
		fault.Point("task:checkpoint:undo")
		if err := ck.remove(); err != nil {
			return err
		}
		return removeFiles(c.checkpointFile())
	}
	if err := keepOutside(ck.Image); err != nil {
		return err
	}
	err := c.set.tell(ctx, c.init.key("checkpoint", uint64(ck.At.UnixNano())), &events.TaskCheckpointed{ContainerID: c.ID, Checkpoint: ck.Path})
	if err != nil {
		return err
	}
	fault.Point("task:checkpointed")
	ck.Done = true
	return statefile.Write(c.checkpointFile(), ck)
}

// remove removes what was made.
func (ck *checkpoint) remove() error {
	if ck.Made {
		return os.RemoveAll(ck.Image)
	}
	if !ck.Empty {
		return dropOutside(ck.Image)
	}
	entries, err := os.ReadDir(ck.Image)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	errs := []error{err}
	for _, e := range entries {
		errs = append(errs, os.RemoveAll(filepath.Join(ck.Image, e.Name())))
	}
	return errors.Join(errs...)
}

// finishCheckpoint sees to the one that the last daemon was killed in.
func (c *container) finishCheckpoint(ctx context.Context, known survey) {
	err := undo.Try(ctx, func() error { return c.tryFinishCheckpoint(ctx, known) })
	if err != nil {
		log.G(ctx).WithError(err).Error("checkpoint that the last daemon did not finish")
	}
}

// tryFinishCheckpoint looks how the OCI runtime ended. If nobody knows, and the container
// was to end with the checkpoint and has, then the image may be all that there is of it,
// and stays.
func (c *container) tryFinishCheckpoint(ctx context.Context, known survey) error {
	var ck checkpoint
	err := statefile.Read(c.checkpointFile(), &ck)
	if errdefs.IsNotFound(err) || err == nil && ck.Done {
		return nil
	}
	if err != nil {
		return err
	}
	run, found := known.spawned[c.init.checkpointTag()]
	found = found && run.ExitedAt.After(ck.At) // else it is that of one before
	if ck.Exit && !found && !known.alive[c.init.snapshot().Serial].Running {
		return fmt.Errorf("nobody knows whether the image in %s is whole", ck.Image)
	}
	return c.settleCheckpoint(ctx, ck, found && exitStatus(run.Status) == 0)
}
