package cli

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/docker/go-units"
	"github.com/spf13/cobra"
)

func (a *app) pruneCommand() *cobra.Command {
	var force bool
	var o output
	cmd := &cobra.Command{
		Use:   "prune",
		Short: "Remove containers that have ended, and what is left of sandboxes",
		Long: "Remove all containers that do not run, with their logs and the sandboxes made for them, and the\n" +
			"sandboxes made for containers that are gone. Sandboxes made with `caisson sandbox create` stay.\n" +
			"What a kubelet made is its own to remove. It asks first, and takes only what it has shown.",
		Example: "  caisson prune\n  caisson prune -f -q",
		Args:    atMost(0, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !force && !isTerminal(a.sys.Stdin) {
				return advise(errdefs.ErrInvalidArgument, "standard input is no terminal, so nobody can be asked: add --force to remove without asking")
			}
			ctx, c, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			defer c.Close()
			p, err := c.prunable(ctx)
			if err != nil {
				return err
			}
			if p.empty() {
				if !o.quiet {
					_, err = fmt.Fprintln(a.sys.Stderr, "caisson: nothing to remove")
				}
				return err
			}
			if !force {
				yes, err := a.confirm(ctx, p.String())
				if err != nil || !yes {
					return err
				}
			}
			return c.prune(ctx, p, o.quiet)
		},
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "do not ask")
	o.addQuiet(cmd, "what could not be removed")
	return cmd
}

// leftovers are what prune removes.
type leftovers struct {
	containers, sandboxes []string
}

func (l leftovers) empty() bool { return len(l.containers)+len(l.sandboxes) == 0 }

func (l leftovers) String() string {
	var parts []string
	if len(l.containers) > 0 {
		parts = append(parts, "containers "+strings.Join(l.containers, " "))
	}
	if len(l.sandboxes) > 0 {
		parts = append(parts, "sandboxes "+strings.Join(l.sandboxes, " "))
	}
	return strings.Join(parts, " and ")
}

// labelCRI marks what a kubelet made, and removes itself: it wants its exit code first.
const labelCRI = "io.cri-containerd.kind"

func (r containerRow) prunable() bool { return r.Status == "exited" && r.Labels[labelCRI] == "" }

// prunable are containers whose process has ended, and sandboxes whose container is
// gone. One without a process may be about to get it, so it stays: `caisson rm` takes it.
func (c *client) prunable(ctx context.Context) (leftovers, error) {
	// Sandboxes first: a container that is being made has its sandbox before its record.
	sandboxes, err := c.sandboxRows(ctx)
	if err != nil {
		return leftovers{}, err
	}
	containers, err := c.containerRows(ctx, true)
	if err != nil {
		return leftovers{}, err
	}
	var l leftovers
	for _, r := range containers {
		if r.prunable() {
			l.containers = append(l.containers, r.ID)
		}
	}
	for _, r := range sandboxes {
		// One that is ready may belong to a `caisson run` that has got no further.
		if r.Labels[labelOwned] != "" && len(r.Containers) == 0 && r.State != stateReady {
			l.sandboxes = append(l.sandboxes, r.ID)
		}
	}
	return l, nil
}

func (c *client) prune(ctx context.Context, l leftovers, quiet bool) error {
	records, err := c.ContainerService().List(ctx)
	if err != nil {
		return fmt.Errorf("list containers: %w", err)
	}
	uses, err := c.containerUses(ctx, records)
	if err != nil {
		return err
	}
	var failed failures
	var freed int64
	remove := func(id string, do func() error) error {
		if err := do(); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			failed = append(failed, err)
			return nil
		}
		if quiet {
			return nil
		}
		_, err := fmt.Fprintln(c.app.sys.Stdout, id)
		return err
	}
	for _, id := range l.containers {
		// Not by force: what was started since then stays.
		if err := remove(id, func() error {
			err := ignoreNotFound(c.removeContainer(ctx, id, removal{}))
			if i := slices.IndexFunc(uses, func(u containerUse) bool { return u.ID == id }); err == nil && i >= 0 {
				freed += uses[i].Size + uses[i].LogSize
			}
			return err
		}); err != nil {
			return err
		}
	}
	for _, id := range l.sandboxes {
		if err := remove(id, func() error { return ignoreNotFound(c.removeSandboxAndContainers(ctx, id, false)) }); err != nil {
			return err
		}
	}
	if !quiet {
		fmt.Fprintf(c.app.sys.Stderr, "caisson: freed %s\n", units.BytesSize(float64(freed)))
	}
	if len(failed) > 0 {
		return failed
	}
	return nil
}

// confirm asks whether to remove something. No answer is no.
func (a *app) confirm(ctx context.Context, what string) (bool, error) {
	if _, err := fmt.Fprintf(a.sys.Stderr, "Remove %s? [y/N] ", printable(what)); err != nil {
		return false, err
	}
	line, err := a.answer(ctx)
	return err == nil && isYes(line), err
}

func isYes(line string) bool {
	switch strings.ToLower(strings.TrimSpace(line)) {
	case "y", "yes":
		return true
	}
	return false
}
