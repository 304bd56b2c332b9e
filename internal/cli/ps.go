package cli

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	tasks "github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/api/types/task"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/errdefs/pkg/errgrpc"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/spf13/cobra"
)

// containerRow is a container as `ps` shows it.
type containerRow struct {
	ID        string            `json:"id"`
	Sandbox   string            `json:"sandbox"`
	Image     string            `json:"image"`
	Command   []string          `json:"command"`
	Status    string            `json:"status"`
	PID       uint32            `json:"pid"`
	ExitCode  *uint32           `json:"exitCode"`
	ExitedAt  *time.Time        `json:"exitedAt"`
	Log       string            `json:"log"`
	Runtime   string            `json:"runtime"`
	Labels    map[string]string `json:"labels"`
	CreatedAt *time.Time        `json:"createdAt"`

	created, state string
}

func (r containerRow) key() string { return r.ID }
func (r containerRow) columns() []string {
	const longest = 32
	command := []rune(strings.Join(r.Command, " "))
	if len(command) > longest {
		command = append(command[:longest-1], '…')
	}
	pid := ""
	if r.PID != 0 {
		pid = strconv.FormatUint(uint64(r.PID), 10)
	}
	return []string{r.ID, r.Sandbox, familiar(r.Image), string(command), r.state, pid, r.created}
}

func (a *app) psCommand() *cobra.Command {
	var o output
	var all bool
	var wanted *filter[containerRow]
	cmd := &cobra.Command{
		Use:   "ps",
		Short: "List containers that run",
		Long: "List containers that run. A filter is a part of the name, a status (running, paused, created, exited),\n" +
			"exited with an exit code, a sandbox, an image, or a label with or without its value. With a status or\n" +
			"an exit code, it is also about those that do not run.\n" + filterHelp,
		Example: "  caisson ps\n  caisson ps -a --format json\n  caisson ps --filter sandbox=pod1 --filter label=tier=front\n  caisson rm $(caisson ps -q --filter status=exited)",
		Args:    atMost(0, "no arguments"),
		RunE: lists(a, &o, []string{"CONTAINER", "SANDBOX", "IMAGE", "COMMAND", "STATUS", "PID", "CREATED"}, func(ctx context.Context, c *client, _ []string) ([]containerRow, error) {
			return wanted.of(c.containerRows(ctx, all || wanted.wanted["status"] != nil || wanted.wanted["exited"] != nil))
		}),
	}
	wanted = addFilter(cmd, containerFilters)
	cmd.Flags().BoolVarP(&all, "all", "a", false, "those too that do not run")
	o.addFormat(cmd, "table")
	o.addQuiet(cmd, "the IDs")
	return cmd
}

var containerFilters = filterFields[containerRow]{
	"name":    within(func(r containerRow) string { return r.ID }),
	"sandbox": oneOf(func(r containerRow) string { return r.Sandbox }),
	"image":   anImage(func(r containerRow) string { return r.Image }),
	"status":  oneOf(func(r containerRow) string { return r.Status }),
	"exited": oneOf(func(r containerRow) string {
		if r.ExitCode == nil {
			return ""
		}
		return strconv.FormatUint(uint64(*r.ExitCode), 10)
	}),
	"label": allLabels(func(r containerRow) map[string]string { return r.Labels }),
}

func (c *client) containerRows(ctx context.Context, all bool) ([]containerRow, error) {
	records, err := c.ContainerService().List(ctx)
	if err != nil {
		return nil, fmt.Errorf("list containers: %w", err)
	}
	resp, err := c.TaskService().List(ctx, &tasks.ListTasksRequest{})
	if err != nil {
		return nil, fmt.Errorf("list tasks: %w", errgrpc.ToNative(err))
	}
	processes := map[string]*task.Process{}
	for _, p := range resp.GetTasks() {
		processes[cmp.Or(p.GetID(), p.GetContainerID())] = p
	}
	slices.SortFunc(records, func(a, b containers.Container) int {
		return cmp.Or(a.CreatedAt.Compare(b.CreatedAt), cmp.Compare(a.ID, b.ID))
	})
	var rows []containerRow
	for _, r := range records {
		row := newContainerRow(time.Now(), r, processes[r.ID])
		if all || row.alive() {
			rows = append(rows, row)
		}
	}
	return rows, nil
}

func (r containerRow) alive() bool {
	return r.Status == "running" || r.Status == "paused" || r.Status == "pausing"
}

func newContainerRow(now time.Time, r containers.Container, p *task.Process) containerRow {
	row := containerRow{
		ID:        r.ID,
		Sandbox:   cmp.Or(r.SandboxID, r.Labels[labelSandbox]),
		Image:     r.Image,
		Command:   commandOf(r),
		Status:    "created",
		Log:       r.Labels[labelLog],
		Runtime:   r.Runtime.Name,
		Labels:    r.Labels,
		CreatedAt: stamp(r.CreatedAt),
		created:   ago(now, r.CreatedAt),
	}
	if row.Labels == nil {
		row.Labels = map[string]string{}
	}
	switch p.GetStatus() {
	case task.Status_UNKNOWN:
		if p != nil {
			row.Status = "unknown"
		}
	case task.Status_STOPPED:
		row.Status = "exited"
		code := p.GetExitStatus()
		row.ExitCode, row.ExitedAt = &code, stamp(p.GetExitedAt().AsTime())
	default:
		row.Status, row.PID = strings.ToLower(p.GetStatus().String()), p.GetPid()
	}
	row.state = row.Status
	if row.ExitCode != nil {
		row.state = fmt.Sprintf("exited (%d) %s", *row.ExitCode, ago(now, p.GetExitedAt().AsTime()))
	}
	return row
}

// commandOf reads the command from a record's specification.
func commandOf(r containers.Container) []string {
	var spec specs.Spec
	if r.Spec == nil || json.Unmarshal(r.Spec.GetValue(), &spec) != nil || spec.Process == nil || spec.Process.Args == nil {
		return []string{}
	}
	return spec.Process.Args
}
