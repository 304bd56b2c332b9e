package cli

import (
	"context"
	"slices"
	"strings"

	"github.com/spf13/cobra"
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

// completeNames makes the shell complete the names of what is there, in all commands
// whose first argument is a name. Those that take several go on with the others.
func (a *app) completeNames(cmd *cobra.Command) {
	for _, sub := range cmd.Commands() {
		a.completeNames(sub)
	}
	for word := range strings.FieldsSeq(cmd.Use) {
		kind := strings.TrimSuffix(strings.Trim(word, "[]"), "...")
		find := completions[kind]
		// The ID that create takes is a new one.
		if find == nil || cmd.Name() == "create" || cmd.Name() == "pull" {
			continue
		}
		several := strings.Contains(word, "...")
		cmd.ValidArgsFunction = func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			if len(args) > 0 && !several {
				return nil, cobra.ShellCompDirectiveDefault
			}
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
		return
	}
}
