package sandbox

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"

	"github.com/containerd/containerd/api/types/runc/options"
	core "github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"google.golang.org/protobuf/proto"

	"caisson/internal/cgroup"
	"caisson/internal/fault"
	"caisson/internal/oci"
	"caisson/internal/undo"
)

// runtimeName is the containerd runtime of a record that names none.
const runtimeType = "io.containerd.caisson.v2"

// Create makes a sandbox's record, directory and files. Options may be
// CRI's PodSandboxConfig or caisson.sandbox.v1.Options; without any the sandbox
// has the network namespace given, or one with loopback only. On error nothing
// is left. AlreadyExists: there is a sandbox of that ID; InvalidArgument: ID,
// record or options.
func (c *Controller) Create(ctx context.Context, sb core.Sandbox, opts ...core.CreateOpt) (err error) {
	k, err := keyOf(ctx, sb.ID)
	if err != nil {
		return err
	}
	var o core.CreateOptions
	for _, opt := range opts {
		if err := opt(&o); err != nil {
			return fmt.Errorf("sandbox %q: options: %w", sb.ID, err)
		}
	}
	s, err := parseSettings(sb, o, c.cfg.DefaultNetwork)
	if err != nil {
		return err
	}
	if _, err := c.isolation(s.Isolation); err != nil {
		return fmt.Errorf("sandbox %q: %w", sb.ID, err)
	}
	runtime, err := runtimeOf(sb)
	if err != nil {
		return err
	}
	path, own, err := c.cgroupOf(k, s)
	if err != nil {
		return fmt.Errorf("sandbox %q: options: %w", sb.ID, err)
	}
	b, err := c.claim(ctx, k)
	if err != nil {
		return err
	}
	defer b.unlock()
	var steps undo.Stack
	defer func() {
		if err == nil {
			return
		}
		if uerr := steps.Run(ctx); uerr != nil {
			err = errors.Join(err, uerr)
			c.background(func() { b.insist("undo the creation of a sandbox", b.undoLeft) })
		}
	}()
	steps.Add("reservation", func(context.Context) error { return b.unclaim() })

	fault.Point("sandbox:create")
	_, unknown := c.cfg.Store.Get(ctx, sb.ID)
	err = b.move(Creating, func(r *boxRecord) {
		r.Kind, r.Settings, r.RuntimeName = kindSandbox, s, runtime
		r.ClientsRecord = unknown == nil
		r.NetNSPath, r.Rootfs = o.NetNSPath, o.Rootfs
		r.Cgroup, r.OwnCgroup = path, own
	})
	if err != nil {
		return err
	}
	// The disk is slow: what the kernel alone does is done meanwhile.
	var filesErr error
	var work sync.WaitGroup
	work.Go(func() {
		if filesErr = b.prepareFiles(); filesErr == nil {
			filesErr = b.listen()
		}
	})
	err = b.createRecord(ctx, sb)
	work.Wait()
	if err == nil {
		steps.Add("record", b.deleteRecord)
	}
	steps.Add("files", func(context.Context) error { return b.unmountFiles() })
	if err = errors.Join(err, filesErr); err != nil {
		return err
	}
	if err = b.move(Created, nil); err != nil {
		return err
	}
	fault.Point("sandbox:created")
	log.G(b.context()).Info("sandbox created")
	return nil
}

// createRecord writes the sandbox's record, unless its client has done so: one
// that uses our Store as containerd's clients use theirs does that first.
// containerd's own sandboxer has a store of its own, and says nothing here when
// it removes a sandbox that a restart of the host has ended.
func (b *box) createRecord(ctx context.Context, sb core.Sandbox) error {
	if rec := b.snapshot(); rec.ClientsRecord || rec.ByShim {
		return nil
	}
	if sb.Runtime.Name == "" {
		sb.Runtime.Name = runtimeType
	}
	_, err := b.c.cfg.Store.Create(ctx, sb)
	return err
}

// deleteRecord deletes the record that createRecord wrote. It may be repeated.
func (b *box) deleteRecord(ctx context.Context) error {
	if rec := b.snapshot(); rec.ClientsRecord || rec.ByShim {
		return nil
	}
	if err := b.c.cfg.Store.Delete(ctx, b.k.id); err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	return nil
}

// claim takes the box for a new sandbox, with op held: a fresh one, or one whose
// endpoint was reserved.
func (c *Controller) claim(ctx context.Context, k key) (*box, error) {
	b, _, err := c.acquireOrAdd(ctx, k)
	if err != nil {
		return nil, err
	}
	if state := b.snapshot().State; state != Reserved {
		b.unlock()
		return nil, fmt.Errorf("sandbox %q: %w", k.id, errdefs.ErrAlreadyExists)
	}
	return b, nil
}

// unclaim takes a sandbox that failed to come into being back to what it was
// before: an endpoint, if a shim had asked for one that is still served, else
// nothing.
func (b *box) unclaim() error {
	b.mu.Lock()
	served := b.endpoint != nil
	b.mu.Unlock()
	if !served || !b.snapshot().ByShim {
		return b.forget()
	}
	return b.reset()
}

// reset makes it an endpoint that waits to learn what it is for.
func (b *box) reset() error {
	rec := b.snapshot()
	return b.save(boxRecord{Namespace: rec.Namespace, ID: rec.ID, Kind: kindOpen, State: Reserved, ByShim: rec.ByShim, Bundle: rec.Bundle, CreatedAt: rec.CreatedAt})
}

// forget removes the box and its directory.
func (b *box) forget() error {
	if err := b.unlisten(Endpoint.Remove); err != nil {
		return err
	}
	if err := b.removeFiles(); err != nil {
		return err
	}
	b.c.drop(b)
	return nil
}

// prepareFiles makes the sandbox's mounts and files.
func (b *box) prepareFiles() error {
	if err := b.mountEtc(); err != nil {
		return err
	}
	if err := b.writeFiles(); err != nil {
		return err
	}
	if err := b.mountShm(); err != nil {
		return err
	}
	return b.mountRootfs()
}

// cgroupOf is the cgroup of a new sandbox, and whether it is ours to remove: a
// pod's belongs to the kubelet.
func (c *Controller) cgroupOf(k key, s settings) (path string, own bool, err error) {
	if s.CRI && s.CgroupParent != "" {
		return s.CgroupParent, false, nil
	}
	parent := s.CgroupParent
	if parent == "" {
		parent = c.cfg.Cgroup
	}
	if c.cfg.Runtime.SystemdCgroup {
		// Its containers are scopes, which must be in a slice. Dashes have a meaning
		// in the names of slices.
		path, err = cgroup.Subslice(parent, k.hash())
		return path, true, err
	}
	// Two dashes in a row are in no name: without them "a.b" and "c" would share a
	// cgroup with "a" and "b.c".
	return filepath.Join(parent, k.namespace+"--"+k.id), true, nil
}

// runtimeOf finds the OCI runtime in the record's runtime options, "" if they
// name none.
func runtimeOf(sb core.Sandbox) (string, error) {
	any := sb.Runtime.Options
	var o options.Options
	if any == nil || typeName(any) != string(o.ProtoReflect().Descriptor().FullName()) {
		return "", nil
	}
	if err := proto.Unmarshal(any.GetValue(), &o); err != nil {
		return "", fmt.Errorf("sandbox %q: runtime options: %w: %w", sb.ID, err, errdefs.ErrInvalidArgument)
	}
	if o.GetBinaryName() == "" {
		return "", nil
	}
	if _, err := oci.Find(o.GetBinaryName()); err != nil {
		return "", fmt.Errorf("sandbox %q: runtime options: %w", sb.ID, err)
	}
	return o.GetBinaryName(), nil
}
