package sandbox

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"strings"

	core "github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	api "caisson/api/caisson/sandbox/v1"
	"caisson/internal/fault"
)

// The extensions of a record that Update acts on.
const (
	ownExtension = "caisson.sandbox.v1.Options"
	// CRI puts a pod's new resources there.
	criExtension = "updated-resources"
)

// Update changes parts of a sandbox: fields as in Store.Update. Besides the
// record, the extensions "caisson.sandbox.v1.Options" (resources, annotations)
// and CRI's "updated-resources" change the sandbox itself. The cgroup of a
// kubelet's pod is the kubelet's to change. Update may be repeated. NotFound;
// InvalidArgument: field paths or contents.
func (c *Controller) Update(ctx context.Context, sandboxID string, sb core.Sandbox, fields ...string) error {
	b, err := c.acquire(ctx, sandboxID, c.find)
	if err != nil {
		return err
	}
	defer b.unlock()
	change, err := changeOf(sb, fields)
	if err != nil {
		return fmt.Errorf("sandbox %q: update: %w", sandboxID, err)
	}
	sb.ID = sandboxID
	fault.Point("sandbox:update")
	if err := b.updateRecord(ctx, sb, fields); err != nil {
		return err
	}
	return b.apply(change)
}

func (b *box) updateRecord(ctx context.Context, sb core.Sandbox, fields []string) error {
	if b.snapshot().ByShim {
		return nil // Its record is in containerd's store.
	}
	old, err := b.c.cfg.Store.Get(ctx, sb.ID)
	if err != nil {
		return err
	}
	if sb.Runtime.Name == "" {
		sb.Runtime = old.Runtime
	}
	_, err = b.c.cfg.Store.Update(ctx, sb, fields...)
	return err
}

// change is what an update asks of a running sandbox.
type change struct {
	resources   *specs.LinuxResources
	annotations map[string]string
}

func changeOf(sb core.Sandbox, fields []string) (change, error) {
	var ch change
	if any := updated(sb, fields, ownExtension); any != nil {
		var o api.Options
		if err := proto.Unmarshal(any.GetValue(), &o); err != nil {
			return ch, fmt.Errorf("extension %s: %w: %w", ownExtension, err, errdefs.ErrInvalidArgument)
		}
		ch.resources, ch.annotations = ownResources(o.GetResources()), o.GetAnnotations()
	}
	if any := updated(sb, fields, criExtension); any != nil {
		var u struct{ Overhead, Resources *cri.LinuxContainerResources }
		if err := json.Unmarshal(any.GetValue(), &u); err != nil {
			return ch, fmt.Errorf("extension %s: %w: %w", criExtension, err, errdefs.ErrInvalidArgument)
		}
		ch.resources = criResources(u.Resources)
	}
	return ch, nil
}

// updated returns an extension if the fields of an update include it.
func updated(sb core.Sandbox, fields []string, name string) typeurl.Any {
	any := sb.Extensions[name]
	if any == nil || len(fields) == 0 {
		return any
	}
	for _, f := range fields {
		if f == "extensions" || strings.TrimPrefix(f, "extensions.") == name {
			return any
		}
	}
	return nil
}

// apply changes the sandbox itself. The caller holds op.
func (b *box) apply(ch change) error {
	rec := b.snapshot()
	if ch.resources != nil {
		// Before its start a sandbox has no cgroup, which then gets the merged limits.
		if rec.OwnCgroup && rec.State != Created && rec.State != Stopped {
			group, err := b.cgroup()
			if err == nil {
				err = group.Update(ch.resources)
			}
			if err != nil {
				return fmt.Errorf("sandbox %q: update resources: %w", rec.ID, err)
			}
		}
		rec.Settings.Resources = merge(rec.Settings.Resources, ch.resources)
	}
	if len(ch.annotations) > 0 {
		merged := map[string]string{}
		maps.Copy(merged, rec.Settings.Annotations)
		maps.Copy(merged, ch.annotations)
		rec.Settings.Annotations = merged
	}
	if ch.resources == nil && len(ch.annotations) == 0 {
		return nil
	}
	return b.save(rec)
}

// merge lays new limits over old ones: what is not named stays as it was.
func merge(old, change *specs.LinuxResources) *specs.LinuxResources {
	if old == nil {
		return change
	}
	merged := *old
	if c := change.CPU; c != nil {
		cpu := specs.LinuxCPU{}
		if merged.CPU != nil {
			cpu = *merged.CPU
		}
		if c.Quota != nil {
			cpu.Quota, cpu.Period = c.Quota, c.Period
		}
		if c.Shares != nil {
			cpu.Shares = c.Shares
		}
		if c.Cpus != "" {
			cpu.Cpus = c.Cpus
		}
		if c.Mems != "" {
			cpu.Mems = c.Mems
		}
		merged.CPU = &cpu
	}
	if m := change.Memory; m != nil {
		memory := *m
		if memory.Swap == nil && merged.Memory != nil {
			memory.Swap = merged.Memory.Swap
		}
		merged.Memory = &memory
	}
	if change.Pids != nil {
		merged.Pids = change.Pids
	}
	return &merged
}
