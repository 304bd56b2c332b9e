package cli

import (
	"context"
	"fmt"
	"strconv"
	"time"

	cgroup1 "github.com/containerd/cgroups/v3/cgroup1/stats"
	cgroup2 "github.com/containerd/cgroups/v3/cgroup2/stats"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	"github.com/docker/go-units"
	"github.com/spf13/cobra"
)

// metricsRow is what a sandbox uses, whatever the version of cgroups.
type metricsRow struct {
	ID          string     `json:"id"`
	At          *time.Time `json:"at"`
	CPU         uint64     `json:"cpuNanoseconds"`
	Memory      uint64     `json:"memoryBytes"`
	MemoryLimit uint64     `json:"memoryLimitBytes"`
	PIDs        uint64     `json:"pids"`
	PIDsLimit   uint64     `json:"pidsLimit"`
}

func (r metricsRow) key() string { return r.ID }
func (r metricsRow) columns() []string {
	limit := ""
	if r.PIDsLimit != 0 && r.PIDsLimit < unlimited {
		limit = strconv.FormatUint(r.PIDsLimit, 10)
	}
	return []string{
		r.ID, time.Duration(r.CPU).Round(time.Millisecond).String(),
		units.BytesSize(float64(r.Memory)), bytesOrUnlimited(r.MemoryLimit),
		strconv.FormatUint(r.PIDs, 10), limit,
	}
}

func (a *app) sandboxMetricsCommand() *cobra.Command {
	var o output
	cmd := &cobra.Command{
		Use:     "metrics [ID...]",
		Short:   "Show what sandboxes use, all that run if none is named",
		Example: "  caisson sandbox metrics\n  caisson sandbox metrics pod1 --format json",
		RunE: lists(a, &o, []string{"SANDBOX", "CPU", "MEMORY", "LIMIT", "PIDS", "LIMIT"}, func(ctx context.Context, c *client, ids []string) ([]metricsRow, error) {
			return c.metricsRows(ctx, ids)
		}),
	}
	o.addFormat(cmd, "table")
	return cmd
}

func (c *client) metricsRows(ctx context.Context, ids []string) ([]metricsRow, error) {
	named := len(ids) > 0
	if !named {
		all, err := c.sandboxRows(ctx)
		if err != nil {
			return nil, err
		}
		for _, r := range all {
			if r.State == stateReady {
				ids = append(ids, r.ID)
			}
		}
	}
	var rows []metricsRow
	for _, id := range ids {
		if named {
			if _, err := c.sandboxRecord(ctx, id); err != nil {
				return nil, err
			}
		}
		m, err := c.controller().Metrics(ctx, id)
		if !named && errdefs.IsNotFound(err) {
			continue // gone since it was listed
		}
		if err != nil {
			return nil, fmt.Errorf("sandbox %q: metrics: %w", id, err)
		}
		row, err := newMetricsRow(id, m)
		if err != nil {
			return nil, err
		}
		rows = append(rows, row)
	}
	return rows, nil
}

func newMetricsRow(id string, m *types.Metric) (metricsRow, error) {
	row := metricsRow{ID: id, At: stamp(m.GetTimestamp().AsTime())}
	if m.GetData() == nil {
		return row, fmt.Errorf("sandbox %q: metrics: the daemon sent none: %w", id, errdefs.ErrUnavailable)
	}
	data, err := typeurl.UnmarshalAny(m.GetData())
	if err != nil {
		return row, fmt.Errorf("sandbox %q: metrics: %w", id, err)
	}
	switch v := data.(type) {
	case *cgroup1.Metrics:
		row.CPU = v.GetCPU().GetUsage().GetTotal()
		row.Memory, row.MemoryLimit = v.GetMemory().GetUsage().GetUsage(), v.GetMemory().GetUsage().GetLimit()
		row.PIDs, row.PIDsLimit = v.GetPids().GetCurrent(), v.GetPids().GetLimit()
	case *cgroup2.Metrics:
		row.CPU = v.GetCPU().GetUsageUsec() * 1000
		row.Memory, row.MemoryLimit = v.GetMemory().GetUsage(), v.GetMemory().GetUsageLimit()
		row.PIDs, row.PIDsLimit = v.GetPids().GetCurrent(), v.GetPids().GetLimit()
	default:
		return row, fmt.Errorf("sandbox %q: metrics of unknown type %q: %w", id, m.GetData().GetTypeUrl(), errdefs.ErrNotImplemented)
	}
	return row, nil
}
