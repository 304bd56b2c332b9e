package cli

import (
	"fmt"
	"maps"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/spf13/cobra"

	sandboxapi "caisson/api/caisson/sandbox/v1"
)

// extensionOptions is the record's extension that carries what the controller
// shall change.
const extensionOptions = "caisson.sandbox.v1.Options"

func (a *app) sandboxUpdateCommand() *cobra.Command {
	var labels, annotations, unlabel []string
	var f limitFlags
	cmd := &cobra.Command{
		Use:     "update [flags] ID",
		Short:   "Change labels, annotations and limits of a sandbox",
		Example: "  caisson sandbox update -m 512m --cpus 1 pod1\n  caisson sandbox update --label tier=front --unlabel old pod1",
		Args:    exactly(1, "the ID of one sandbox"),
		RunE: func(cmd *cobra.Command, args []string) error {
			change := sandboxChange{unlabel: unlabel}
			var err error
			if change.labels, err = parsePairs("label", labels); err != nil {
				return err
			}
			if change.annotations, err = parsePairs("annotation", annotations); err != nil {
				return err
			}
			if change.limits, err = f.parse(); err != nil {
				return err
			}
			if change.empty() {
				return advise(errdefs.ErrInvalidArgument, "nothing to change: give --label, --unlabel, --annotation, --memory, --cpus or --pids-limit")
			}
			return a.updateSandbox(cmd, args[0], change)
		},
	}
	flags := cmd.Flags()
	flags.StringArrayVar(&labels, "label", nil, "set a label, name=value")
	flags.StringArrayVar(&unlabel, "unlabel", nil, "remove a label, by name")
	flags.StringArrayVar(&annotations, "annotation", nil, "set an annotation, name=value")
	flags.StringVarP(&f.memory, "memory", "m", "", "memory of all containers together, such as 256m")
	flags.StringVar(&f.cpus, "cpus", "", "CPUs for all containers together, such as 0.5")
	flags.Int64Var(&f.pids, "pids-limit", 0, "processes of all containers together")
	return cmd
}

// sandboxChange is what `sandbox update` changes.
type sandboxChange struct {
	labels, annotations map[string]string
	unlabel             []string
	limits              limits
}

func (s sandboxChange) empty() bool {
	return len(s.labels)+len(s.annotations)+len(s.unlabel) == 0 && s.limits == (limits{})
}

// updateSandbox tells the controller first: a record that promises what the
// sandbox refused would be worse than one that lags behind.
func (a *app) updateSandbox(cmd *cobra.Command, id string, change sandboxChange) error {
	ctx, c, err := a.connect(cmd.Context())
	if err != nil {
		return err
	}
	defer c.Close()
	record, err := c.sandboxRecord(ctx, id)
	if err != nil {
		return err
	}
	var fields []string
	if len(change.labels)+len(change.unlabel) > 0 {
		if record.Labels == nil {
			record.Labels = map[string]string{}
		}
		maps.Copy(record.Labels, change.labels)
		maps.DeleteFunc(record.Labels, func(k, _ string) bool { return slices.Contains(change.unlabel, k) })
		fields = append(fields, "labels")
	}
	if len(change.annotations) > 0 || change.limits != (limits{}) {
		update := &sandboxapi.Options{Annotations: change.annotations, Resources: change.limits.proto()}
		if err := record.AddExtension(extensionOptions, update); err != nil {
			return err
		}
		fields = append(fields, "extensions")
	}
	if err := c.updateSandbox(ctx, record, fields...); err != nil {
		return fmt.Errorf("sandbox %q: update: %w", id, err)
	}
	if _, err := c.SandboxStore().Update(ctx, record, fields...); err != nil {
		return fmt.Errorf("sandbox %q: write record: %w", id, err)
	}
	_, err = fmt.Fprintln(a.sys.Stdout, id)
	return err
}
