package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/template"

	"github.com/containerd/errdefs"
)

// isTemplate tells a Go template from the name of a format.
func isTemplate(format string) bool { return strings.Contains(format, "{{") }

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
// that is not there is an error, and not <no value>.
func parseTemplate(text string) (*template.Template, error) {
	t, err := template.New("format").Funcs(templateFuncs).Option("missingkey=error").Parse(text)
	if err != nil {
		return nil, advise(errdefs.ErrInvalidArgument, "the format %q is no Go template (%v): write it like '{{.id}}' or '{{json .labels}}'", text, templateCause(err))
	}
	return t, nil
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
