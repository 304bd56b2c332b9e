package sandbox

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/containerd/containerd/api/types"
	core "github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/containerd/typeurl/v2"
	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/types/known/timestamppb"

	"caisson/internal/cgroup"
	"caisson/internal/network"
)

// The states that Status tells; CRI understands these two.
const (
	stateReady    = "SANDBOX_READY"
	stateNotReady = "SANDBOX_NOTREADY"
)

// Platform tells what containers of the sandbox must be built for: the host.
func (c *Controller) Platform(ctx context.Context, sandboxID string) (imagespec.Platform, error) {
	if _, err := c.find(ctx, sandboxID); err != nil {
		return imagespec.Platform{}, err
	}
	return platforms.DefaultSpec(), nil
}

// Wait returns when a sandbox has stopped. The status is 0 after a Stop, that of
// the holder if that died, and 255 if nobody knows.
func (c *Controller) Wait(ctx context.Context, sandboxID string) (core.ExitStatus, error) {
	b, err := c.find(ctx, sandboxID)
	if err != nil {
		return core.ExitStatus{}, err
	}
	b.claim()
	select {
	case <-b.done:
		rec := b.snapshot()
		return core.ExitStatus{ExitStatus: rec.ExitStatus, ExitedAt: rec.ExitedAt}, nil
	case <-c.closed:
		// Clients take this one class for a reason to ask again.
		return core.ExitStatus{}, fmt.Errorf("sandbox %q: wait: caissond is stopping: %w", sandboxID, errdefs.ErrUnavailable)
	case <-ctx.Done():
		return core.ExitStatus{}, fmt.Errorf("sandbox %q: wait: %w", sandboxID, ctx.Err())
	}
}

// Status tells how a sandbox is; verbose adds "info", a JSON object of Info.
func (c *Controller) Status(ctx context.Context, sandboxID string, verbose bool) (core.ControllerStatus, error) {
	b, err := c.find(ctx, sandboxID)
	if err != nil {
		return core.ControllerStatus{}, err
	}
	b.claim()
	rec := b.snapshot()
	status := core.ControllerStatus{
		SandboxID: sandboxID,
		State:     stateNotReady,
		CreatedAt: rec.CreatedAt,
		Address:   "ttrpc+" + b.address(),
		Version:   taskVersion,
	}
	if !rec.StartedAt.IsZero() { // what never ran has not exited
		status.ExitedAt = rec.ExitedAt
	}
	if rec.State == Ready {
		status.State = stateReady
	}
	if inst := b.instance(); inst != nil {
		status.Pid = uint32(inst.Pid())
	}
	if verbose {
		var info []byte
		all, err := b.info(ctx)
		if err == nil {
			info, err = json.Marshal(all)
		}
		if err != nil {
			return core.ControllerStatus{}, fmt.Errorf("sandbox %q: status: %w", sandboxID, err)
		}
		status.Info = map[string]string{"info": string(info)}
	}
	return status, nil
}

// Info is the verbose part of a sandbox's status.
type Info struct {
	// Address and Version of the Task API, which containerd's own client API does
	// not pass on.
	Address string `json:"address"`
	Version uint32 `json:"version"`

	State      State                               `json:"state"`
	Reason     string                              `json:"reason,omitempty"`
	Pid        int                                 `json:"pid,omitempty"`
	MonitorPid int                                 `json:"monitorPid,omitempty"`
	Namespaces map[specs.LinuxNamespaceType]string `json:"namespaces,omitempty"`
	Cgroup     string                              `json:"cgroup,omitempty"`
	Mounts     map[string]string                   `json:"mounts,omitempty"`
	Network    *network.Result                     `json:"network,omitempty"`
	NetNSPath  string                              `json:"netnsPath,omitempty"`
	Containers []string                            `json:"containers,omitempty"`
	Options    any                                 `json:"options"`
	Directory  string                              `json:"directory"`
	criInfo
}

func (b *box) info(ctx context.Context) (Info, error) {
	rec := b.snapshot()
	pod, err := b.criInfo(ctx)
	if err != nil {
		return Info{}, err
	}
	info := Info{
		Address:    "ttrpc+" + b.address(),
		Version:    taskVersion,
		State:      rec.State,
		Reason:     rec.Reason,
		Cgroup:     rec.Cgroup,
		Network:    rec.Network,
		NetNSPath:  rec.NetNSPath,
		Containers: b.tasks.IDs(),
		Options:    rec.Settings,
		Directory:  b.dir,
		Mounts:     map[string]string{},
		criInfo:    pod,
	}
	for _, f := range b.memberFiles() {
		info.Mounts[f.Target] = f.Source
	}
	if inst := b.instance(); inst != nil {
		info.Pid, info.MonitorPid = inst.Pid(), inst.Host().Pid()
		info.Namespaces = inst.Namespaces()
	}
	return info, nil
}

// Metrics returns the metrics of the sandbox's cgroup, all containers together,
// as containerd's cgroup v1 or v2 message, with the traffic of its network. It is cheap.
func (c *Controller) Metrics(ctx context.Context, sandboxID string) (*types.Metric, error) {
	b, err := c.find(ctx, sandboxID)
	if err != nil {
		return nil, err
	}
	group, err := b.cgroup()
	if err != nil {
		return nil, fmt.Errorf("sandbox %q: metrics: %w", sandboxID, err)
	}
	stats, err := group.Stats()
	if err == nil {
		err = b.addTraffic(stats)
	}
	if err != nil {
		return nil, fmt.Errorf("sandbox %q: metrics: %w", sandboxID, err)
	}
	data, err := typeurl.MarshalAnyToProto(stats)
	if err != nil {
		return nil, fmt.Errorf("sandbox %q: metrics: %w", sandboxID, err)
	}
	return &types.Metric{Timestamp: timestamppb.New(time.Now()), ID: sandboxID, Data: data}, nil
}

// cgroup of the sandbox, opened once.
func (b *box) cgroup() (*cgroup.Group, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.rec.NoFiles {
		return nil, fmt.Errorf("%s: %w", b.rec.Reason, errdefs.ErrNotFound)
	}
	if b.group == nil {
		group, err := cgroup.Load(b.rec.Cgroup)
		if err != nil {
			return nil, err
		}
		b.group = group
	}
	return b.group, nil
}
