package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"time"

	tasks "github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/docker/go-units"
	"github.com/spf13/cobra"
)

// statsRow is what a container or a sandbox uses, as `stats` shows it.
type statsRow struct {
	Kind        string     `json:"kind"` // container or sandbox
	ID          string     `json:"id"`
	Sandbox     string     `json:"sandbox"`
	At          *time.Time `json:"at"`
	CPUPercent  float64    `json:"cpuPercent"` // of one CPU
	CPU         uint64     `json:"cpuNanoseconds"`
	Memory      uint64     `json:"memoryBytes"` // without page cache nobody uses
	MemoryLimit uint64     `json:"memoryLimitBytes"`
	PIDs        uint64     `json:"pids"`
	Received    *uint64    `json:"networkReceivedBytes"` // of a sandbox with a network of its own
	Sent        *uint64    `json:"networkSentBytes"`
	Read        uint64     `json:"blockReadBytes"`
	Written     uint64     `json:"blockWrittenBytes"`
}

var statsHeader = []string{"SANDBOX", "CONTAINER", "CPU %", "MEMORY", "LIMIT", "PIDS", "NET RX", "NET TX", "BLOCK READ", "WRITTEN"}

func (r statsRow) key() string { return r.ID }
func (r statsRow) columns() []string {
	container := r.ID
	if r.Kind == kindSandbox {
		container = ""
	}
	return []string{
		r.Sandbox, container, strconv.FormatFloat(r.CPUPercent, 'f', 2, 64),
		units.BytesSize(float64(r.Memory)), bytesOrUnlimited(r.MemoryLimit), strconv.FormatUint(r.PIDs, 10),
		bytesIfKnown(r.Received), bytesIfKnown(r.Sent), units.BytesSize(float64(r.Read)), units.BytesSize(float64(r.Written)),
	}
}

func bytesIfKnown(n *uint64) string {
	if n == nil {
		return ""
	}
	return units.BytesSize(float64(*n))
}

const (
	kindContainer = "container"
	kindSandbox   = "sandbox"

	statsInterval = time.Second
)

func (a *app) statsCommand() *cobra.Command {
	var f statsFlags
	cmd := &cobra.Command{
		Use:   "stats [CONTAINER|SANDBOX...]",
		Short: "Show what containers and sandboxes use, once a second",
		Long: "Show what containers and sandboxes use, all that run if none is named; a sandbox comes with its\n" +
			"containers. " + statsHelp + " On a\n" +
			"terminal the table is refreshed; elsewhere, lines are added, as JSON one object each. `caisson top`\n" +
			"is for looking at them.",
		Example: "  caisson stats\n  caisson stats --no-stream web pod1\n  caisson stats --no-stream --format '{{.id}} {{.memoryBytes}}'",
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.showStats(cmd, &f, args, (*client).streamStats)
		},
	}
	f.add(cmd)
	return cmd
}

// showStats shows it once, or live until that ends.
func (a *app) showStats(cmd *cobra.Command, f *statsFlags, args []string, live func(*client, context.Context, statsFlags, []string) error) error {
	if err := f.check(args); err != nil {
		return err
	}
	ctx, c, err := a.connect(cmd.Context())
	if err != nil {
		return err
	}
	defer c.Close()
	if f.once {
		return c.statsOnce(ctx, *f, args)
	}
	return live(c, ctx, *f, args)
}

// statsHelp says what the numbers are.
const statsHelp = "CPU is in percent of one CPU. Memory is without page cache that nobody uses. Network\n" +
	"traffic is that of a sandbox with a network of its own."

// statsFlags are those of `stats` and `top`.
type statsFlags struct {
	output
	order statsOrder
	once  bool
	by    string
}

func (f *statsFlags) add(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&f.once, "no-stream", false, "show it once: what was used within a second")
	cmd.Flags().StringVar(&f.by, "sort", statsOrders[0].name, "what to sort by: "+orderNames())
	f.addFormat(cmd, "table")
}

func (f *statsFlags) check(args []string) (err error) {
	if err := f.output.check(); err != nil {
		return err
	}
	if f.order, err = parseOrder(f.by); err != nil {
		return err
	}
	for _, id := range args {
		if err := checkID("container or sandbox", id); err != nil {
			return err
		}
	}
	return nil
}

// sampler turns what was used since the beginning into shares.
type sampler struct {
	last map[string]statsRow // by kind and ID
}

func (s *sampler) shares(rows []statsRow) {
	now := make(map[string]statsRow, len(rows))
	for i := range rows {
		r := &rows[i]
		if before, ok := s.last[r.Kind+r.ID]; ok {
			r.CPUPercent = cpuPercent(before, *r)
		}
		now[r.Kind+r.ID] = *r
	}
	s.last = now
}

// cpuPercent is 0 for a container that has been made again under its name.
func cpuPercent(before, now statsRow) float64 {
	if before.At == nil || now.At == nil || now.CPU < before.CPU {
		return 0
	}
	passed := now.At.Sub(*before.At)
	if passed <= 0 {
		return 0
	}
	return 100 * float64(now.CPU-before.CPU) / float64(passed.Nanoseconds())
}

func (c *client) statsOnce(ctx context.Context, f statsFlags, args []string) error {
	var s sampler
	rows, err := c.sample(ctx, &s, args)
	if err != nil {
		return err
	}
	if len(rows) > 0 { // the first sample has no shares yet
		if err := sleep(ctx, statsInterval); err != nil {
			return err
		}
		if rows, err = c.sample(ctx, &s, args); err != nil {
			return err
		}
	}
	f.order.sort(rows, false)
	return list(c.app.sys.Stdout, f.output, statsHeader, rows)
}

// streamStats shows the use until it is interrupted, or those it was asked for are gone.
func (c *client) streamStats(ctx context.Context, f statsFlags, args []string) error {
	refresh := f.format == "table" && isTerminal(fileOf(c.app.sys.Stdout))
	var s sampler
	for tick := 0; ; tick++ {
		rows, err := c.sample(ctx, &s, args)
		if ctx.Err() != nil {
			return nil // how one ends it
		}
		if err != nil {
			return err
		}
		// The first sample has no shares yet.
		if tick > 0 || len(rows) == 0 {
			f.order.sort(rows, false)
			if err := c.showTick(f.output, refresh, tick, rows); err != nil {
				return err
			}
		}
		if sleep(ctx, statsInterval) != nil {
			return nil
		}
	}
}

// sample is what is used now, with the shares since the last time.
func (c *client) sample(ctx context.Context, s *sampler, args []string) ([]statsRow, error) {
	rows, err := c.statsRows(ctx, args)
	if err == nil {
		s.shares(rows)
	}
	return rows, err
}

func (c *client) showTick(o output, refresh bool, tick int, rows []statsRow) error {
	w := c.app.sys.Stdout
	switch {
	case o.format == "json":
		for _, r := range rows {
			if err := json.NewEncoder(w).Encode(r); err != nil {
				return err
			}
		}
		return nil
	case isTemplate(o.format):
		return list(w, o, nil, rows)
	}
	var table bytes.Buffer
	if err := list(&table, o, statsHeader, rows); err != nil {
		return err
	}
	text := table.Bytes()
	switch {
	case refresh:
		// Each line is cleared to its end, and what was below to the end of the screen.
		text = bytes.ReplaceAll(text, []byte("\n"), []byte("\x1b[K\n"))
		text = slices.Concat([]byte("\x1b[H"), text, []byte("\x1b[J"))
		if tick <= 1 {
			text = append([]byte("\x1b[2J"), text...)
		}
	case tick > 1:
		_, text, _ = bytes.Cut(text, []byte("\n")) // the header has been shown
	}
	_, err := w.Write(text)
	return err
}

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// statsRows are the sandboxes that run, each with its containers behind it, and the
// containers without one. An argument may name both: a container's own sandbox has
// its name.
func (c *client) statsRows(ctx context.Context, args []string) ([]statsRow, error) {
	sandboxes, err := c.sandboxRows(ctx)
	if err != nil {
		return nil, err
	}
	containers, err := c.containerRows(ctx, true)
	if err != nil {
		return nil, err
	}
	if err := checkSubjects(args, sandboxes, containers); err != nil {
		return nil, err
	}
	metrics, err := c.taskMetrics(ctx)
	if err != nil {
		return nil, err
	}
	wanted := func(id string) bool { return len(args) == 0 || slices.Contains(args, id) }
	var rows []statsRow
	members := func(sandboxID string) error {
		for _, ctr := range containers {
			m := metrics[ctr.ID]
			if ctr.Sandbox != sandboxID || !ctr.alive() || m == nil || !wanted(ctr.ID) && (sandboxID == "" || !wanted(sandboxID)) {
				continue
			}
			row, err := newStatsRow(kindContainer, ctr.ID, sandboxID, m)
			if err != nil {
				return err
			}
			rows = append(rows, row)
		}
		return nil
	}
	known := map[string]bool{}
	for _, sb := range sandboxes {
		known[sb.ID] = true
		if sb.State == stateReady && wanted(sb.ID) {
			m, err := c.controller().Metrics(ctx, sb.ID)
			if errdefs.IsNotFound(err) {
				continue // gone since it was listed
			}
			if err != nil {
				return nil, fmt.Errorf("sandbox %q: metrics: %w", sb.ID, err)
			}
			row, err := newStatsRow(kindSandbox, sb.ID, sb.ID, m)
			if err != nil {
				return nil, err
			}
			rows = append(rows, row)
		}
		if err := members(sb.ID); err != nil {
			return nil, err
		}
	}
	// Those without a sandbox, and those whose sandbox has no record here.
	for _, ctr := range containers {
		if !known[ctr.Sandbox] {
			known[ctr.Sandbox] = true
			if err := members(ctr.Sandbox); err != nil {
				return nil, err
			}
		}
	}
	return rows, nil
}

// checkSubjects says which argument names nothing.
func checkSubjects(args []string, sandboxes []sandboxRow, containers []containerRow) error {
	var failed failures
	for _, arg := range args {
		if !slices.ContainsFunc(sandboxes, func(r sandboxRow) bool { return r.ID == arg }) &&
			!slices.ContainsFunc(containers, func(r containerRow) bool { return r.ID == arg }) {
			failed = append(failed, advise(errdefs.ErrNotFound, "no container or sandbox %q: `caisson ps -a` and `caisson sandbox ls` show those there are", arg))
		}
	}
	if len(failed) > 0 {
		return failed
	}
	return nil
}

// taskMetrics asks for all at once: one call for each would take its time.
func (c *client) taskMetrics(ctx context.Context) (map[string]*types.Metric, error) {
	resp, err := c.TaskService().Metrics(ctx, &tasks.MetricsRequest{})
	if err != nil {
		return nil, fmt.Errorf("metrics: %w", errgrpc.ToNative(err))
	}
	metrics := map[string]*types.Metric{}
	for _, m := range resp.GetMetrics() {
		metrics[m.GetID()] = m
	}
	return metrics, nil
}

func newStatsRow(kind, id, sandboxID string, m *types.Metric) (statsRow, error) {
	u, err := usageOf(m)
	if err != nil {
		return statsRow{}, fmt.Errorf("%s %q: metrics: %w", kind, id, err)
	}
	at := stamp(m.GetTimestamp().AsTime())
	if at == nil {
		now := time.Now().UTC()
		at = &now
	}
	return statsRow{
		Kind: kind, ID: id, Sandbox: sandboxID, At: at, CPU: u.cpu, Memory: u.inUse(), MemoryLimit: u.memoryLimit,
		PIDs: u.pids, Received: u.received, Sent: u.sent, Read: u.read, Written: u.wrote,
	}, nil
}
