package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"

	tasks "github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/api/types/task"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/spf13/cobra"
)

// details are what an inspect command shows of one thing. Its JSON form is the
// struct itself, and what templates see.
type details interface {
	lines() [][]string
}

// inspects is a command that shows all that is known of its arguments. What was
// found is shown also if something else is not there.
func inspects[D details](a *app, cmd *cobra.Command, find func(ctx context.Context, c *client, arg string) (D, error)) *cobra.Command {
	var o output
	cmd.Flags().StringVarP(&o.format, "format", "f", "json", formatHelp)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := o.check(); err != nil {
			return err
		}
		ctx, c, err := a.connect(cmd.Context())
		if err != nil {
			return err
		}
		defer c.Close()
		all := make([]D, 0, len(args))
		var failed failures
		for _, arg := range args {
			d, err := find(ctx, c, arg)
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if err != nil {
				failed = append(failed, err)
				continue
			}
			all = append(all, d)
		}
		if err := writeDetails(a, o, all); err != nil {
			return err
		}
		if len(failed) > 0 {
			return failed
		}
		return nil
	}
	return cmd
}

func writeDetails[D details](a *app, o output, all []D) error {
	switch {
	case o.format == "json":
		return writeJSON(a.sys.Stdout, all)
	case isTemplate(o.format):
		return writeEach(a.sys.Stdout, o.format, all)
	}
	var table [][]string
	for _, d := range all {
		table = append(table, d.lines()...)
	}
	return writeTable(a.sys.Stdout, table)
}

// containerDetails is a container as `inspect` shows it.
type containerDetails struct {
	containerRow
	UpdatedAt   *time.Time      `json:"updatedAt"`
	Snapshotter string          `json:"snapshotter"`
	SnapshotKey string          `json:"snapshotKey"`
	Stdin       string          `json:"stdin"`
	Stdout      string          `json:"stdout"`
	Stderr      string          `json:"stderr"`
	Terminal    bool            `json:"terminal"`
	Spec        json.RawMessage `json:"spec"` // of the OCI runtime
}

func (d containerDetails) lines() [][]string {
	lines := [][]string{
		{"container", d.ID},
		{"sandbox", d.Sandbox},
		{"image", familiar(d.Image)},
		{"command", strings.Join(d.Command, " ")},
		{"status", d.state},
		{"pid", strconv.FormatUint(uint64(d.PID), 10)},
		{"runtime", d.Runtime},
		{"log", d.Log},
		{"created", d.created},
	}
	return append(lines, labelLines(d.Labels)...)
}

func (a *app) inspectCommand() *cobra.Command {
	return inspects(a, &cobra.Command{
		Use:   "inspect CONTAINER...",
		Short: "Show all that is known of containers",
		Long: "Show all that is known of containers, as a JSON array. Templates take the names of the JSON\n" +
			"form; beside Go's own functions there are json, join, split, lower and upper.",
		Example: "  caisson inspect web\n  caisson inspect -f '{{.status}} {{.pid}}' web\n  caisson inspect -f '{{json .spec.process.args}}' web",
		Args:    atLeast(1, "a container"),
	}, func(ctx context.Context, c *client, id string) (containerDetails, error) {
		return c.containerDetails(ctx, id)
	})
}

func (c *client) containerDetails(ctx context.Context, id string) (containerDetails, error) {
	ctr, err := c.load(ctx, id)
	if err != nil {
		return containerDetails{}, err
	}
	record, err := ctr.Info(ctx)
	if err != nil {
		return containerDetails{}, fmt.Errorf("container %q: %w", id, err)
	}
	var process *task.Process
	resp, err := c.TaskService().Get(ctx, &tasks.GetRequest{ContainerID: id})
	if err = errgrpc.ToNative(err); ignoreNotFound(err) != nil {
		return containerDetails{}, fmt.Errorf("container %q: task: %w", id, err)
	}
	if err == nil {
		process = resp.GetProcess()
	}
	d := containerDetails{
		containerRow: newContainerRow(time.Now(), record, process),
		UpdatedAt:    stamp(record.UpdatedAt),
		Snapshotter:  record.Snapshotter,
		SnapshotKey:  record.SnapshotKey,
		Stdin:        process.GetStdin(),
		Stdout:       process.GetStdout(),
		Stderr:       process.GetStderr(),
		Terminal:     process.GetTerminal(),
	}
	// A record is anyone's: what is no JSON would spoil all that is shown.
	if record.Spec != nil && json.Valid(record.Spec.GetValue()) {
		d.Spec = record.Spec.GetValue()
	}
	return d, nil
}
