package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"golang.org/x/sys/unix"

	"caisson/internal/fault"
	"caisson/internal/subject"
	"caisson/internal/task"
)

// Tasks returns the containers of a sandbox, or of the sandbox that stands for a
// single container.
func (c *Controller) Tasks(ctx context.Context, sandboxID string) (*task.Set, error) {
	b, err := c.findAny(ctx, sandboxID)
	if err != nil {
		return nil, err
	}
	return b.tasks, nil
}

// Endpoint reserves an address for what a client is about to create, a sandbox
// or a container without one, and returns it. It may be repeated. What is made there
// goes when its bundle is removed; NotFound: it is gone already, and so is the client.
func (c *Controller) Endpoint(ctx context.Context, id, bundle string) (string, error) {
	k, err := keyOf(ctx, id)
	if err != nil {
		return "", err
	}
	b, fresh, err := c.acquireOrAdd(ctx, k)
	if err != nil {
		return "", err
	}
	defer b.unlock()
	fault.Point("sandbox:endpoint")
	if rec := b.snapshot(); fresh || rec.ByShim && rec.Kind != kindSandbox {
		if err = c.watchBundle(bundle, k); err == nil {
			rec.ByShim, rec.Bundle = true, bundle
			err = b.save(rec)
		}
	}
	if err == nil {
		err = b.listen()
	}
	if err != nil {
		if fresh {
			err = errors.Join(err, b.forget())
		}
		return "", err
	}
	return b.address(), nil
}

// CreateTask creates a container in a sandbox; at a reserved endpoint it first
// makes the sandbox that stands for this single container.
func (c *Controller) CreateTask(ctx context.Context, sandboxID string, req task.CreateRequest) (int, error) {
	b, err := c.findAny(ctx, sandboxID)
	if err != nil {
		return 0, err
	}
	if b.snapshot().State == Reserved {
		if err := b.startSingle(ctx); err != nil {
			return 0, err
		}
	}
	return b.tasks.Create(ctx, req)
}

func (b *box) startSingle(ctx context.Context) error {
	if err := b.lock(ctx); err != nil {
		return err
	}
	defer b.unlock()
	if !b.c.current(b) {
		return fmt.Errorf("sandbox %q: its endpoint was released: %w", b.k.id, errdefs.ErrNotFound)
	}
	if b.snapshot().State != Reserved {
		return nil // Somebody was faster.
	}
	if err := b.move(Starting, func(r *boxRecord) { r.Kind = kindSingle }); err != nil {
		return err
	}
	if err := b.start(ctx); err != nil {
		return errors.Join(err, b.note(Reserved, func(r *boxRecord) { r.Kind = kindOpen }))
	}
	return nil
}

// Release removes what stands for a single container, once that is deleted: the
// endpoint included. A sandbox stays until Shutdown.
func (c *Controller) Release(ctx context.Context, sandboxID string) error {
	b, err := c.acquire(ctx, sandboxID, c.findAny)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	defer b.unlock()
	if b.snapshot().Kind == kindSandbox || b.tasks.Len() > 0 {
		return nil
	}
	fault.Point("sandbox:release")
	return b.remove(ctx)
}

// Cleanup ends a container whose client has given up on it, and tells how it
// ended. containerd asks for it after every container, deleted or not, so one
// that is not there is no error.
func (c *Controller) Cleanup(ctx context.Context, id, bundle string) (task.Exit, error) {
	sandboxID, err := sandboxOf(id, bundle)
	if err != nil {
		return task.Exit{}, err
	}
	tasks, err := c.Tasks(ctx, sandboxID)
	if errdefs.IsNotFound(err) {
		return task.UnknownExit(), nil
	}
	if err != nil {
		return task.Exit{}, err
	}
	exit, err := tasks.Purge(ctx, id)
	if errdefs.IsNotFound(err) {
		exit, err = c.abandoned(ctx, id, sandboxID)
	}
	if err != nil {
		return task.Exit{}, err
	}
	if err := c.Release(ctx, sandboxID); err != nil {
		log.G(subject.With(ctx, subject.Subject{SandboxID: sandboxID})).WithError(err).Warn("release the sandbox of a container")
	}
	return exit, nil
}

// abandoned removes a sandbox that containerd's own sandboxer made and lost the
// connection to: it will not ask for it again. Any other sandbox stays.
func (c *Controller) abandoned(ctx context.Context, id, sandboxID string) (task.Exit, error) {
	if id != sandboxID {
		return task.UnknownExit(), nil
	}
	b, err := c.acquire(ctx, sandboxID, c.find)
	if errdefs.IsNotFound(err) {
		return task.UnknownExit(), nil
	}
	if err != nil {
		return task.Exit{}, err
	}
	defer b.unlock()
	if !b.snapshot().ByShim {
		return task.UnknownExit(), nil
	}
	if err := b.remove(ctx); err != nil {
		return task.Exit{}, err
	}
	log.G(b.context()).Warn("sandbox removed: containerd gave up on it")
	rec := b.snapshot()
	return task.Exit{Status: rec.ExitStatus, At: rec.ExitedAt}, nil
}

// maxSandboxFile bounds the file that names a container's sandbox.
const maxSandboxFile = 256

// sandboxOf reads the one link from a container to its sandbox that containerd
// leaves: a file in the bundle. Without it the container has none.
func sandboxOf(id, bundle string) (string, error) {
	if bundle == "" {
		return id, nil
	}
	f, err := os.OpenFile(filepath.Join(bundle, "sandbox"), os.O_RDONLY|unix.O_NONBLOCK, 0)
	if os.IsNotExist(err) {
		return id, nil
	}
	if err != nil {
		return "", fmt.Errorf("task %q: %w", id, err)
	}
	defer f.Close() // only read
	data, err := io.ReadAll(io.LimitReader(f, maxSandboxFile))
	if err != nil {
		return "", fmt.Errorf("task %q: %w", id, err)
	}
	if name := strings.TrimSpace(string(data)); name != "" {
		return name, nil
	}
	return id, nil
}
