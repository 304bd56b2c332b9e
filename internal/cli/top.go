package cli

import (
	"context"

	"github.com/containerd/errdefs"
	"github.com/gdamore/tcell/v2"
	"github.com/spf13/cobra"
)

func (a *app) topCommand() *cobra.Command {
	var f statsFlags
	cmd := &cobra.Command{
		Use:   "top [CONTAINER|SANDBOX...]",
		Short: "Watch what sandboxes and their containers use, and sort it",
		Long: "Watch what sandboxes and the containers in them use, all that run if none is named, refreshed every\n" +
			"second. " + statsHelp + "\n\n" +
			"Keys: s, c, m, p, n and b sort by sandbox, CPU, memory, PIDs, network and block I/O, r turns the order\n" +
			"round; arrows and page keys scroll; q ends it. Without a terminal, with --no-stream or another format\n" +
			"than a table it prints what was used within a second, and ends.",
		Example: "  caisson top\n  caisson top --sort memory pod1\n  caisson top --no-stream --sort cpu | head\n  caisson top --format '{{.id}} {{.cpuPercent}}'",
		RunE: func(cmd *cobra.Command, args []string) error {
			f.once = f.once || f.format != "table" || !isTerminal(fileOf(a.sys.Stdout)) || !isTerminal(a.sys.Stdin)
			return a.showStats(cmd, &f, args, (*client).top)
		},
	}
	f.add(cmd)
	return cmd
}

// top opens the screen only once there is something to show: what fails at first is told
// like any other error.
func (c *client) top(ctx context.Context, f statsFlags, args []string) error {
	var s sampler
	rows, err := c.sample(ctx, &s, args)
	if err != nil {
		return err
	}
	screen, err := tcell.NewScreen()
	if err == nil {
		err = screen.Init()
	}
	if err != nil {
		return advise(errdefs.ErrFailedPrecondition, "this terminal (TERM=%s) cannot show it (%v): use `caisson stats`, or --no-stream", c.app.sys.Env("TERM"), err)
	}
	defer screen.Fini()
	view := topView{screen: screen, every: statsInterval, order: f.order}
	view.take(topSample{rows: rows})
	return view.run(ctx, func(ctx context.Context) topSample {
		rows, err := c.sample(ctx, &s, args)
		return topSample{rows, err}
	})
}
