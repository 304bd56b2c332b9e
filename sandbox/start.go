package sandbox

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/runtime"
	core "github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/containerd/typeurl/v2"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"caisson/internal/cgroup"
	"caisson/internal/fault"
	"caisson/internal/isolation"
	"caisson/internal/network"
	"caisson/internal/undo"
)

// taskVersion is the version of the Task API at a sandbox's address.
const taskVersion = 3

// The import of core/runtime registers the type URL of OCI specifications.
var _ = runtime.Exit{}

// Start runs a created sandbox: its cgroup, its network if it is ours to make, and
// its walls. On error nothing is left, not even what Create made, since callers give
// up on a sandbox that did not start. NotFound; FailedPrecondition: it was
// started before.
func (c *Controller) Start(ctx context.Context, sandboxID string) (_ core.ControllerInstance, err error) {
	b, err := c.acquire(ctx, sandboxID, c.find)
	if err != nil {
		return core.ControllerInstance{}, err
	}
	defer b.unlock()
	fault.Point("sandbox:start")
	if err = b.move(Starting, nil); errdefs.IsFailedPrecondition(err) {
		return core.ControllerInstance{}, err
	}
	if err == nil {
		err = b.start(ctx)
	}
	var answer core.ControllerInstance
	if err == nil {
		answer, err = b.started()
	}
	if err != nil {
		cctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
		defer cancel()
		rerr := b.remove(cctx)
		if rerr != nil {
			c.background(func() { b.insist("remove a sandbox that did not start", b.removeLeft) })
		}
		return core.ControllerInstance{}, errors.Join(err, rerr)
	}
	fault.Point("sandbox:started")
	c.background(cgroup.Anticipate) // its first container
	log.G(b.context()).Info("sandbox started")
	return answer, nil
}

// Started is what Start has answered, for a client that did not get it.
// FailedPrecondition: the sandbox does not run.
func (c *Controller) Started(ctx context.Context, sandboxID string) (core.ControllerInstance, error) {
	b, err := c.find(ctx, sandboxID)
	if err != nil {
		return core.ControllerInstance{}, err
	}
	b.claim()
	return b.started()
}

func (b *box) started() (core.ControllerInstance, error) {
	rec, inst := b.snapshot(), b.instance()
	if rec.State != Ready || inst == nil {
		return core.ControllerInstance{}, fmt.Errorf("sandbox %q is %s: %w", b.k.id, rec.State, errdefs.ErrFailedPrecondition)
	}
	spec, err := b.spec()
	if err != nil {
		return core.ControllerInstance{}, err
	}
	return core.ControllerInstance{
		SandboxID: b.k.id,
		Pid:       uint32(inst.Pid()),
		CreatedAt: rec.CreatedAt,
		Address:   "ttrpc+" + b.address(),
		Version:   taskVersion,
		Spec:      spec,
	}, nil
}

// removeLeft removes what an attempt to do so has left. The caller holds op.
func (b *box) removeLeft(ctx context.Context) error {
	if !b.c.current(b) {
		return nil // Somebody was faster.
	}
	return b.remove(ctx)
}

// start makes the cgroup and puts up the walls of a sandbox that is Starting, and makes
// it Ready. A cgroup takes the kernel as long as the walls, which are mostly waited for:
// neither needs the other before the first container.
func (b *box) start(ctx context.Context) error {
	var cgroupErr error
	var work sync.WaitGroup
	work.Go(func() { cgroupErr = b.createCgroup() })
	inst, err := b.putUp(ctx)
	work.Wait()
	var steps undo.Stack
	if err == nil {
		steps.Add("walls", func(ctx context.Context) error { return errors.Join(inst.End(ctx), inst.Close()) })
	}
	if err = errors.Join(err, cgroupErr); err == nil {
		err = b.listen()
	}
	if err == nil {
		err = b.move(Ready, func(r *boxRecord) { r.StartedAt, r.Unclaimed = time.Now(), r.Settings.CRI })
	}
	if err != nil {
		return errors.Join(err, steps.Run(ctx))
	}
	b.attach(inst)
	return nil
}

// createCgroup makes the sandbox's cgroup; a single container makes its own.
func (b *box) createCgroup() error {
	rec := b.snapshot()
	if rec.Kind != kindSandbox {
		return nil
	}
	group, err := cgroup.Create(rec.Cgroup, rec.Settings.Resources)
	if err != nil {
		return fmt.Errorf("sandbox %q: %w", rec.ID, err)
	}
	b.mu.Lock()
	b.group = group
	b.mu.Unlock()
	return nil
}

// putUp makes the sandbox's network and its walls.
func (b *box) putUp(ctx context.Context) (isolation.Instance, error) {
	if err := b.setupNetwork(ctx); err != nil {
		return nil, err
	}
	rec := b.snapshot()
	userNS, err := userNS(rec)
	if err != nil {
		return nil, fmt.Errorf("sandbox %q: user namespace: %w", rec.ID, err)
	}
	if userNS != nil {
		defer userNS.Close()
	}
	walls, err := b.c.isolation(rec.Settings.Isolation)
	if err != nil {
		return nil, fmt.Errorf("sandbox %q: %w", rec.ID, err)
	}
	inst, err := walls.Start(ctx, isolation.Config{
		Name:     b.k.String(),
		Dir:      b.dir,
		Walls:    rec.Kind == kindSandbox,
		Hostname: rec.Settings.Hostname,
		NetNS:    rec.NetNSPath,
		UserNS:   userNS,
		NewIPC:   !rec.Settings.HostIPC,
		NewUTS:   !rec.Settings.HostUTS,
		NewPID:   rec.Settings.SharePID,
		Sysctls:  rec.Settings.Sysctls,
	})
	if err != nil {
		return nil, fmt.Errorf("sandbox %q: %w", rec.ID, err)
	}
	return inst, nil
}

// setupNetwork makes the network that the sandbox asked us for, and writes down
// where it is before anything can be lost.
func (b *box) setupNetwork(ctx context.Context) error {
	rec := b.snapshot()
	if rec.Kind != kindSandbox || !ownsNetwork(rec) {
		return nil
	}
	result, err := b.c.cfg.Network.Setup(ctx, b.networkRequest(rec))
	if err != nil {
		return fmt.Errorf("sandbox %q: network: %w", rec.ID, err)
	}
	rec.NetNSPath, rec.Network = result.NetNSPath, &result
	if err := b.save(rec); err != nil {
		return err
	}
	return b.writeHosts()
}

func ownsNetwork(rec boxRecord) bool {
	return rec.Settings.Network == network.None || rec.Settings.Network == network.CNI
}

func (b *box) networkRequest(rec boxRecord) network.Request {
	return network.Request{
		ID:       b.k.String(),
		Name:     b.k.hash(),
		Mode:     rec.Settings.Network,
		UIDs:     rec.Settings.UIDs,
		GIDs:     rec.Settings.GIDs,
		Hostname: rec.Settings.Hostname,
		Ports:    rec.Settings.Ports,
	}
}

// userNS opens the user namespace that the sandbox's other namespaces belong to,
// nil for the host's. It is the one that owns the network namespace: another
// could not configure it.
func userNS(rec boxRecord) (*os.File, error) {
	if !rec.Settings.userNS() {
		return nil, nil
	}
	if err := fault.Fail("sandbox:userns", unix.EMFILE, unix.ENOSPC); err != nil {
		return nil, err
	}
	if rec.NetNSPath != "" {
		return network.Owner(rec.NetNSPath)
	}
	return network.NewUserNS(rec.Settings.UIDs, rec.Settings.GIDs)
}

// spec is ociSpec as clients get it.
func (b *box) spec() (typeurl.Any, error) {
	any, err := typeurl.MarshalAny(b.ociSpec())
	if err != nil {
		return nil, fmt.Errorf("sandbox %q: %w", b.k.id, err)
	}
	return any, nil
}

// ociSpec describes the sandbox as an OCI specification: its namespaces by path,
// for clients that join them without a pid.
func (b *box) ociSpec() *specs.Spec {
	rec := b.snapshot()
	spec := &specs.Spec{
		Version:     specs.Version,
		Hostname:    rec.Settings.Hostname,
		Annotations: rec.Settings.Annotations,
		Linux: &specs.Linux{
			CgroupsPath: rec.Cgroup,
			Sysctl:      rec.Settings.Sysctls,
			UIDMappings: rec.Settings.UIDs,
			GIDMappings: rec.Settings.GIDs,
			Resources:   rec.Settings.Resources,
		},
	}
	namespaces := b.namespaces()
	for _, kind := range slices.Sorted(maps.Keys(namespaces)) { // an answer is the same each time
		if path := namespaces[kind]; path != "" {
			spec.Linux.Namespaces = append(spec.Linux.Namespaces, specs.LinuxNamespace{Type: kind, Path: path})
		}
	}
	return spec
}
