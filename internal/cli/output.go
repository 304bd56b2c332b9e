package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/go-units"
	"github.com/spf13/cobra"
)

// output says how a command shows what it found.
type output struct {
	format string
	quiet  bool
}

func (o *output) addFormat(cmd *cobra.Command, otherwise string) {
	cmd.Flags().StringVar(&o.format, "format", otherwise, formatHelp)
}

const formatHelp = "how to show it: table, json, or a Go template of the JSON's names, such as '{{.id}}', or in columns 'table {{.id}}'"

func (o *output) addQuiet(cmd *cobra.Command, what string) {
	cmd.Flags().BoolVarP(&o.quiet, "quiet", "q", false, "show only "+what)
}

func (o *output) check() error {
	if isTemplate(o.format) {
		_, err := parseTemplate(o.format)
		return err
	}
	if o.format != "table" && o.format != "json" {
		return advise(errdefs.ErrInvalidArgument, "unknown format %q: use table, json or a template such as '{{.id}}'", o.format)
	}
	return nil
}

// row is one thing to list. Its JSON form is the struct itself.
type row interface {
	columns() []string
	key() string
}

// lists is the run of a command that shows what rows finds.
func lists[R row](a *app, o *output, header []string, rows func(ctx context.Context, c *client, args []string) ([]R, error)) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		if err := o.check(); err != nil {
			return err
		}
		ctx, c, err := a.connect(cmd.Context())
		if err != nil {
			return err
		}
		defer c.Close()
		found, err := rows(ctx, c, args)
		if err != nil {
			return err
		}
		return list(a.sys.Stdout, *o, header, found)
	}
}

// list shows rows as a table with a header, as one JSON array, by a template, or as
// keys only.
func list[R row](w io.Writer, o output, header []string, rows []R) error {
	switch {
	case o.quiet && o.format == "json":
		keys := make([]string, len(rows))
		for i, r := range rows {
			keys[i] = r.key()
		}
		return writeJSON(w, keys)
	case o.quiet:
		for _, r := range rows {
			if _, err := fmt.Fprintln(w, r.key()); err != nil {
				return err
			}
		}
		return nil
	case o.format == "json":
		if rows == nil {
			rows = []R{} // [] and not null
		}
		return writeJSON(w, rows)
	case isTemplate(o.format):
		return writeEach(w, o.format, rows)
	}
	table := make([][]string, 0, len(rows)+1)
	table = append(table, header)
	for _, r := range rows {
		table = append(table, r.columns())
	}
	return writeTable(w, table)
}

func writeEach[R any](w io.Writer, format string, rows []R) error {
	t, err := parseTemplate(format)
	if err != nil {
		return err
	}
	if isTable(format) {
		return writeTemplateTable(w, t, rows)
	}
	for _, r := range rows {
		if err := writeTemplate(w, t, r); err != nil {
			return err
		}
	}
	return nil
}

// showOne shows the only thing there is, as a table of names and values if not otherwise.
func showOne(w io.Writer, o output, v any, lines [][]string) error {
	switch {
	case o.format == "json":
		return writeJSON(w, v)
	case isTemplate(o.format):
		return writeEach(w, o.format, []any{v})
	}
	return writeTable(w, lines)
}

func writeJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

func writeTable(w io.Writer, rows [][]string) error {
	var buf strings.Builder
	tw := tabwriter.NewWriter(&buf, 0, 8, 3, ' ', 0)
	for _, cells := range rows {
		for i, cell := range cells {
			if i > 0 {
				fmt.Fprint(tw, "\t")
			}
			fmt.Fprint(tw, printable(cell))
		}
		fmt.Fprintln(tw)
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	for line := range strings.Lines(buf.String()) {
		if _, err := fmt.Fprintln(w, strings.TrimRight(line, " \n")); err != nil {
			return err
		}
	}
	return nil
}

// printable keeps a cell on its line and out of the terminal's escape codes;
// names of images and labels come from others.
func printable(cell string) string {
	if cell == "" {
		return "-"
	}
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || (r >= 0x80 && r < 0xa0) {
			return '?'
		}
		return r
	}, cell)
}

// ago is how a table tells a time.
func ago(now, t time.Time) string {
	if t.IsZero() || t.Unix() <= 0 {
		return "-"
	}
	return units.HumanDuration(max(now.Sub(t), 0)) + " ago"
}

// stamp is how JSON tells a time; nil if there is none.
func stamp(t time.Time) *time.Time {
	if t.IsZero() || t.Unix() <= 0 {
		return nil
	}
	t = t.UTC()
	return &t
}

// unlimited and above is how cgroups report that there is no limit: almost 2^63
// on v1, 2^64-1 on v2.
const unlimited = 1 << 60

func bytesOrUnlimited(n uint64) string {
	if n == 0 || n >= unlimited {
		return "-"
	}
	return units.BytesSize(float64(n))
}
