package cli

import (
	"maps"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/spf13/cobra"
)

// filter is what --filter lets through of rows of one kind.
type filter[R any] struct {
	fields filterFields[R]
	wanted map[string][]string
}

// filterFields say by name whether a row has what is wanted of it.
type filterFields[R any] map[string]func(r R, values []string) bool

// oneOf wants any of the values.
func oneOf[R any](get func(R) string) func(R, []string) bool {
	return func(r R, values []string) bool { return slices.Contains(values, get(r)) }
}

// within wants any of the values to be a part.
func within[R any](get func(R) string) func(R, []string) bool {
	return func(r R, values []string) bool {
		return slices.ContainsFunc(values, func(v string) bool { return strings.Contains(get(r), v) })
	}
}

// anImage wants any of the names, in full or as people write it.
func anImage[R any](get func(R) string) func(R, []string) bool {
	return func(r R, values []string) bool {
		return slices.ContainsFunc(values, func(v string) bool { return v == get(r) || v == familiar(get(r)) || v+":latest" == familiar(get(r)) })
	}
}

// allLabels wants all labels, each with a value, or with any.
func allLabels[R any](get func(R) map[string]string) func(R, []string) bool {
	return func(r R, values []string) bool {
		return !slices.ContainsFunc(values, func(v string) bool {
			name, value, valued := strings.Cut(v, "=")
			have, ok := get(r)[name]
			return !ok || valued && have != value
		})
	}
}

const filterHelp = "Of several filters of a name one must hold, of labels and of different names all."

// addFilter adds --filter, which is read before the command runs.
func addFilter[R any](cmd *cobra.Command, fields filterFields[R]) *filter[R] {
	f := &filter[R]{fields: fields}
	var list []string
	cmd.Flags().StringArrayVarP(&list, "filter", "f", nil, "show only those for which this holds, name=value; the names are "+f.names(""))
	cmd.PreRunE = func(*cobra.Command, []string) error { return f.parse(list) }
	begun := strings.Split(f.names("="), ", ")
	_ = cmd.RegisterFlagCompletionFunc("filter", cobra.FixedCompletions(begun, cobra.ShellCompDirectiveNoSpace|cobra.ShellCompDirectiveNoFileComp)) // cannot fail: the flag is new
	return f
}

func (f *filter[R]) names(end string) string {
	return strings.Join(slices.Sorted(maps.Keys(f.fields)), end+", ") + end
}

func (f *filter[R]) parse(list []string) error {
	f.wanted = map[string][]string{}
	for _, s := range list {
		name, value, ok := strings.Cut(s, "=")
		if !ok || value == "" || f.fields[name] == nil {
			return advise(errdefs.ErrInvalidArgument, "--filter %q is none: write it like %s=value; the names are %s", s, slices.Min(slices.Collect(maps.Keys(f.fields))), f.names(""))
		}
		f.wanted[name] = append(f.wanted[name], value)
	}
	return nil
}

func (f *filter[R]) match(r R) bool {
	for name, values := range f.wanted {
		if !f.fields[name](r, values) {
			return false
		}
	}
	return true
}

// of are the rows that match.
func (f *filter[R]) of(rows []R, err error) ([]R, error) {
	return slices.DeleteFunc(rows, func(r R) bool { return !f.match(r) }), err
}
