package cli

import (
	"context"
	"maps"
	"slices"
	"strings"

	"github.com/moby/sys/signal"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// completions say which names complete an argument, by how the usage calls it.
var completions = map[string]func(ctx context.Context, c *client) ([]string, error){
	"CONTAINER": func(ctx context.Context, c *client) ([]string, error) {
		return c.containerNames(ctx)
	},
	"CONTAINER|SANDBOX": func(ctx context.Context, c *client) ([]string, error) {
		names, err := c.containerNames(ctx)
		if err != nil {
			return nil, err
		}
		more, err := c.sandboxNames(ctx)
		return append(names, more...), err
	},
	"ID":      func(ctx context.Context, c *client) ([]string, error) { return c.sandboxNames(ctx) },
	"SANDBOX": func(ctx context.Context, c *client) ([]string, error) { return c.sandboxNames(ctx) },
	"IMAGE": func(ctx context.Context, c *client) ([]string, error) {
		all, err := c.ImageService().List(ctx)
		names := make([]string, len(all))
		for i, image := range all {
			names[i] = familiar(image.Name)
		}
		return names, err
	},
}

func (c *client) containerNames(ctx context.Context) ([]string, error) {
	all, err := c.ContainerService().List(ctx)
	names := make([]string, len(all))
	for i, r := range all {
		names[i] = r.ID
	}
	return names, err
}

func (c *client) sandboxNames(ctx context.Context) ([]string, error) {
	all, err := c.SandboxStore().List(ctx)
	names := make([]string, len(all))
	for i, r := range all {
		names[i] = r.ID
	}
	return names, err
}

// flagValues complete the values of flags of these names, whichever command has them.
var flagValues = map[string]func() []string{
	"format":     func() []string { return []string{"table", "json"} },
	"log-driver": func() []string { return []string{logFile, logNone} },
	"net":        func() []string { return []string{"none", "host", "cni"} },
	"signal":     func() []string { return slices.Sorted(maps.Keys(signal.SignalMap)) },
	"sort":       func() []string { return strings.Split(orderNames(), ", ") },
}

func (a *app) completeFlags(cmd *cobra.Command) {
	cmd.Flags().VisitAll(func(flag *pflag.Flag) {
		complete := a.namesBy(completions["SANDBOX"])
		if values := flagValues[flag.Name]; values != nil {
			complete = cobra.FixedCompletions(values(), cobra.ShellCompDirectiveNoFileComp)
		} else if flag.Name != "sandbox" {
			return
		}
		_ = cmd.RegisterFlagCompletionFunc(flag.Name, complete) // cannot fail: it has the flag, and that has none
	})
}

// namesBy completes with what is found, without the arguments that are there already.
func (a *app) namesBy(find func(ctx context.Context, c *client) ([]string, error)) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		ctx, c, err := a.connectOnly(cmd.Context())
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		defer c.Close()
		names, err := find(ctx, c)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		names = slices.DeleteFunc(names, func(name string) bool { return slices.Contains(args, name) })
		slices.Sort(names)
		names = slices.Compact(names) // a container and its own sandbox have one name
		return names, cobra.ShellCompDirectiveNoFileComp
	}
}

// completeCopy completes a side of a copy: a container and a colon, or else a file.
func (a *app) completeCopy(cmd *cobra.Command, args []string, side string) ([]string, cobra.ShellCompDirective) {
	names, _ := a.namesBy(completions["CONTAINER"])(cmd, nil, side)
	for i := range names {
		names[i] += ":"
	}
	names = slices.DeleteFunc(names, func(name string) bool { return !strings.HasPrefix(name, side) })
	inContainer := func(arg string) bool { return parsePlace(arg).container != "" }
	if len(args) > 1 || slices.ContainsFunc(args, inContainer) || len(names) == 0 {
		return nil, cobra.ShellCompDirectiveDefault
	}
	return names, cobra.ShellCompDirectiveNoSpace
}

// completeNames makes the shell complete the names of what is there, in all commands
// whose first argument is a name, and what flags may be. Commands that take several names
// go on with the others.
func (a *app) completeNames(cmd *cobra.Command) {
	for _, sub := range cmd.Commands() {
		a.completeNames(sub)
	}
	a.completeFlags(cmd)
	for word := range strings.FieldsSeq(cmd.Use) {
		kind := strings.TrimSuffix(strings.Trim(word, "[]"), "...")
		find := completions[kind]
		// The ID that create takes is a new one.
		if find == nil || cmd.Name() == "create" || cmd.Name() == "pull" {
			continue
		}
		several := strings.Contains(word, "...")
		names := a.namesBy(find)
		cmd.ValidArgsFunction = func(cmd *cobra.Command, args []string, begun string) ([]string, cobra.ShellCompDirective) {
			if len(args) > 0 && !several {
				return nil, cobra.ShellCompDirectiveDefault
			}
			return names(cmd, args, begun)
		}
		return
	}
}
