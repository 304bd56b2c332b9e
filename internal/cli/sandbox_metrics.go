package cli

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/containerd/containerd/api/types"
	"github.com/containerd/errdefs"
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
	u, err := usageOf(m)
	if err != nil {
		return metricsRow{}, fmt.Errorf("sandbox %q: metrics: %w", id, err)
	}
	return metricsRow{ID: id, At: stamp(m.GetTimestamp().AsTime()), CPU: u.cpu, Memory: u.memory, MemoryLimit: u.memoryLimit, PIDs: u.pids, PIDsLimit: u.pidsLimit}, nil
}
