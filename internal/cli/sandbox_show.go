package cli

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/errdefs"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
)

// parallelCalls bounds how many calls a listing has under way.
const parallelCalls = 8

// sandboxRow is a sandbox as `sandbox ls` shows it.
type sandboxRow struct {
	ID         string            `json:"id"`
	State      string            `json:"state"`
	PID        uint32            `json:"pid"`
	Containers []string          `json:"containers"`
	Labels     map[string]string `json:"labels"`
	CreatedAt  *time.Time        `json:"createdAt"`

	created string
}

func (r sandboxRow) key() string { return r.ID }
func (r sandboxRow) columns() []string {
	pid := ""
	if r.PID != 0 {
		pid = strconv.FormatUint(uint64(r.PID), 10)
	}
	return []string{r.ID, r.State, pid, strings.Join(r.Containers, ","), r.created}
}

func (a *app) sandboxListCommand() *cobra.Command {
	var o output
	var wanted *filter[sandboxRow]
	cmd := &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"}, SuggestFor: []string{"pods"},
		Short:   "List sandboxes",
		Long:    "List sandboxes. A filter is a part of the ID, a state (ready, notready), or a label with or without its\nvalue. " + filterHelp,
		Example: "  caisson sandbox ls\n  caisson sandbox ls --format json\n  caisson sandbox ls -q --filter state=notready",
		Args:    atMost(0, "no arguments"),
		RunE: lists(a, &o, []string{"SANDBOX", "STATE", "PID", "CONTAINERS", "CREATED"}, func(ctx context.Context, c *client, _ []string) ([]sandboxRow, error) {
			return wanted.of(c.sandboxRows(ctx))
		}),
	}
	wanted = addFilter(cmd, filterFields[sandboxRow]{
		"name":  within(func(r sandboxRow) string { return r.ID }),
		"state": oneOf(func(r sandboxRow) string { return r.State }),
		"label": allLabels(func(r sandboxRow) map[string]string { return r.Labels }),
	})
	o.addFormat(cmd, "table")
	o.addQuiet(cmd, "the IDs")
	return cmd
}

func (c *client) sandboxRows(ctx context.Context) ([]sandboxRow, error) {
	records, err := c.SandboxStore().List(ctx)
	if err != nil {
		return nil, fmt.Errorf("list sandboxes: %w", err)
	}
	records = slices.DeleteFunc(records, func(r sandbox.Sandbox) bool { return r.Sandboxer != sandboxer })
	slices.SortFunc(records, func(a, b sandbox.Sandbox) int {
		return cmp.Or(a.CreatedAt.Compare(b.CreatedAt), cmp.Compare(a.ID, b.ID))
	})
	containers, err := c.ContainerService().List(ctx)
	if err != nil {
		return nil, fmt.Errorf("list containers: %w", err)
	}
	members := map[string][]string{}
	for _, r := range containers {
		if id := cmp.Or(r.SandboxID, r.Labels[labelSandbox]); id != "" {
			members[id] = append(members[id], r.ID)
		}
	}
	rows := make([]sandboxRow, len(records))
	calls, callCtx := errgroup.WithContext(ctx)
	calls.SetLimit(parallelCalls)
	for i, r := range records {
		calls.Go(func() error {
			st, err := c.controller().Status(callCtx, r.ID, false)
			if ignoreNotFound(err) != nil {
				return fmt.Errorf("sandbox %q: status: %w", r.ID, err)
			}
			rows[i] = newSandboxRow(time.Now(), r, st, members[r.ID])
			return nil
		})
	}
	return rows, calls.Wait()
}

func newSandboxRow(now time.Time, r sandbox.Sandbox, st sandbox.ControllerStatus, members []string) sandboxRow {
	row := sandboxRow{
		ID:         r.ID,
		State:      sandboxState(st.State),
		PID:        st.Pid,
		Containers: slices.Sorted(slices.Values(members)),
		Labels:     r.Labels,
		CreatedAt:  stamp(r.CreatedAt),
		created:    ago(now, r.CreatedAt),
	}
	if row.Containers == nil {
		row.Containers = []string{}
	}
	if row.Labels == nil {
		row.Labels = map[string]string{}
	}
	return row
}

// sandboxDetails is a sandbox as `sandbox inspect` shows it.
type sandboxDetails struct {
	sandboxRow
	Runtime   string         `json:"runtime"`
	Sandboxer string         `json:"sandboxer"`
	UpdatedAt *time.Time     `json:"updatedAt"`
	ExitedAt  *time.Time     `json:"exitedAt"`
	Address   string         `json:"address"`
	Info      map[string]any `json:"info"`
}

func (a *app) sandboxInspectCommand() *cobra.Command {
	return inspects(a, &cobra.Command{
		Use:     "inspect ID...",
		Short:   "Show all that is known of sandboxes",
		Example: "  caisson sandbox inspect pod1\n  caisson sandbox inspect -f '{{.pid}} {{json .labels}}' pod1",
		Args:    atLeast(1, "the ID of a sandbox"),
	}, func(ctx context.Context, c *client, id string) (sandboxDetails, error) {
		return c.sandboxDetails(ctx, id)
	})
}

func (c *client) sandboxDetails(ctx context.Context, id string) (sandboxDetails, error) {
	record, err := c.sandboxRecord(ctx, id)
	if err != nil {
		return sandboxDetails{}, err
	}
	members, err := c.containersIn(ctx, id)
	if err != nil {
		return sandboxDetails{}, err
	}
	st, err := c.controller().Status(ctx, id, true)
	if err != nil && !errdefs.IsNotFound(err) {
		return sandboxDetails{}, fmt.Errorf("sandbox %q: status: %w", id, err)
	}
	return sandboxDetails{
		sandboxRow: newSandboxRow(time.Now(), record, st, members),
		Runtime:    record.Runtime.Name,
		Sandboxer:  record.Sandboxer,
		UpdatedAt:  stamp(record.UpdatedAt),
		ExitedAt:   stamp(st.ExitedAt),
		Address:    endpointOf(st).address,
		Info:       decodeInfo(st.Info),
	}, nil
}

// decodeInfo shows what a verbose status tells: the object that the sandboxer
// calls "info" itself, and other values beside what is in it.
func decodeInfo(info map[string]string) map[string]any {
	out := map[string]any{}
	if json.Unmarshal([]byte(info["info"]), &out) != nil || out == nil {
		out = map[string]any{}
	}
	for key, value := range info {
		if _, taken := out[key]; taken || key == "info" && len(out) > 0 {
			continue
		}
		var v any
		if json.Unmarshal([]byte(value), &v) != nil {
			v = value
		}
		out[key] = v
	}
	return out
}

func (d sandboxDetails) lines() [][]string {
	lines := [][]string{
		{"sandbox", d.ID},
		{"state", d.State},
		{"pid", strconv.FormatUint(uint64(d.PID), 10)},
		{"containers", strings.Join(d.Containers, ",")},
		{"runtime", d.Runtime},
		{"address", d.Address},
		{"created", d.created},
	}
	return append(lines, labelLines(d.Labels)...)
}

func labelLines(labels map[string]string) [][]string {
	var lines [][]string
	for _, key := range slices.Sorted(maps.Keys(labels)) {
		lines = append(lines, []string{"label " + key, labels[key]})
	}
	return lines
}
