package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/template"
	"text/template/parse"

	"github.com/containerd/errdefs"
)

// isTemplate tells a Go template from the name of a format.
func isTemplate(format string) bool { return strings.Contains(format, "{{") }

// tablePrefix, before a template, asks for columns with a header, as with Docker.
const tablePrefix = "table "

func isTable(format string) bool { return strings.HasPrefix(format, tablePrefix) }

// templateFuncs are what Docker's users expect beside Go's own.
var templateFuncs = template.FuncMap{
	"json": func(v any) (string, error) {
		var buf bytes.Buffer
		enc := json.NewEncoder(&buf)
		enc.SetEscapeHTML(false)
		err := enc.Encode(v)
		return strings.TrimSuffix(buf.String(), "\n"), err
	},
	"join": func(list []any, sep string) string {
		words := make([]string, len(list))
		for i, v := range list {
			words[i] = fmt.Sprint(v)
		}
		return strings.Join(words, sep)
	},
	"split": strings.Split,
	"lower": strings.ToLower,
	"upper": strings.ToUpper,
}

// parseTemplate reads a template over the names that the JSON form has. A name
// that is not there is an error, and not <no value>. Outside of {{}}, \t and \n are what
// they are in Go, since a shell passes them on as they are.
func parseTemplate(text string) (*template.Template, error) {
	t, err := template.New("format").Funcs(templateFuncs).Option("missingkey=error").Parse(strings.TrimPrefix(text, tablePrefix))
	if err != nil {
		return nil, advise(errdefs.ErrInvalidArgument, "the format %q is no Go template (%v): write it like '{{.id}}' or '{{json .labels}}'", text, templateCause(err))
	}
	unescape(t.Root)
	return t, nil
}

var escapes = strings.NewReplacer(`\t`, "\t", `\n`, "\n")

func unescape(node parse.Node) {
	branch := func(n *parse.BranchNode) {
		unescape(n.List)
		if n.ElseList != nil {
			unescape(n.ElseList)
		}
	}
	switch n := node.(type) {
	case *parse.TextNode:
		n.Text = []byte(escapes.Replace(string(n.Text)))
	case *parse.ListNode:
		for _, each := range n.Nodes {
			unescape(each)
		}
	case *parse.IfNode:
		branch(&n.BranchNode)
	case *parse.RangeNode:
		branch(&n.BranchNode)
	case *parse.WithNode:
		branch(&n.BranchNode)
	}
}

// headerOf is the line above what a template shows: its text, and for each action the
// first name in it.
func headerOf(t *template.Template) string {
	var header strings.Builder
	for _, node := range t.Root.Nodes {
		switch n := node.(type) {
		case *parse.TextNode:
			header.Write(n.Text)
		case *parse.ActionNode:
			header.WriteString(strings.ToUpper(firstName(n.Pipe)))
		case *parse.RangeNode:
			header.WriteString(strings.ToUpper(firstName(n.Pipe)))
		}
	}
	return header.String()
}

func firstName(pipe *parse.PipeNode) string {
	for _, command := range pipe.Cmds {
		for _, arg := range command.Args {
			if field, ok := arg.(*parse.FieldNode); ok {
				return field.Ident[len(field.Ident)-1]
			}
		}
	}
	return ""
}

// writeTemplateTable shows things in columns, which the template has tabs between.
func writeTemplateTable[R any](w io.Writer, t *template.Template, rows []R) error {
	table := [][]string{strings.Split(headerOf(t), "\t")}
	for _, r := range rows {
		var line bytes.Buffer
		if err := writeTemplate(&line, t, r); err != nil {
			return err
		}
		table = append(table, strings.Split(strings.TrimSuffix(line.String(), "\n"), "\t"))
	}
	return writeTable(w, table)
}

// writeTemplate shows one thing, on a line of its own.
func writeTemplate(w io.Writer, t *template.Template, v any) error {
	blob, err := json.Marshal(v)
	if err != nil {
		return err
	}
	dec := json.NewDecoder(bytes.NewReader(blob))
	dec.UseNumber() // a number is shown as it is, not as 1e+06
	var names any
	if err := dec.Decode(&names); err != nil {
		return err
	}
	var line bytes.Buffer
	if err := t.Execute(&line, names); err != nil {
		return advise(errdefs.ErrInvalidArgument, "the format does not fit (%v): `--format json` shows the names there are", templateCause(err))
	}
	line.WriteByte('\n')
	_, err = w.Write(line.Bytes())
	return err
}

// templateCause takes the name that we gave the template off its errors.
func templateCause(err error) string { return strings.TrimPrefix(err.Error(), "template: ") }
