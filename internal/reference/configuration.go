package main

import (
	"bytes"
	_ "embed"
	"encoding/json"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"text/template"

	"github.com/spf13/pflag"

	"caisson/internal/config"
	"caisson/internal/daemon"
)

// configurationText is docs/configuration.md but for what is said of each key.
//
//go:embed configuration.md
var configurationText string

// table is a table of the configuration file, with keys of caissond's own.
type table struct {
	Name string // empty at the top of the file
	Text string
	Keys []key
}

type key struct {
	Name    string // in its table
	Default string // as the file has it
	Flag    string
	Choices []string
	Text    string
}

// configuration is docs/configuration.md. source is the directory of internal/config:
// the comments on the fields of its Config say what the keys are for.
func configuration(source string) ([]byte, error) {
	tables, err := keys(source)
	if err != nil {
		return nil, fmt.Errorf("keys of %s: %w", source, err)
	}
	tmpl, err := template.New("configuration.md").Parse(configurationText)
	if err != nil {
		return nil, err
	}
	var page bytes.Buffer
	err = tmpl.Execute(&page, map[string]string{"Defaults": defaults(tables), "Keys": described(tables)})
	return page.Bytes(), err
}

// keys are those that both the file and the Config have, by the order of the Config.
func keys(source string) ([]table, error) {
	structs, err := structs(source)
	if err != nil {
		return nil, err
	}
	values := config.Default()
	if err := values.Complete(); err != nil {
		return nil, err
	}
	flags := map[string]string{}
	daemon.Command().Flags().VisitAll(func(f *pflag.Flag) {
		for _, name := range f.Annotations[daemon.KeyAnnotation] {
			flags[name] = "--" + f.Name
		}
	})
	document := fields(structs["file"])
	tables := []table{{}}
	for _, field := range structs["Config"].Fields.List {
		name := field.Names[0].Name
		inFile, ok := document[name]
		if !ok {
			continue // what is not written by users
		}
		value := reflect.ValueOf(values).FieldByName(name)
		if below, ok := inFile.Type.(*ast.StructType); ok {
			t := table{Name: tomlName(inFile), Text: text(field)}
			documented := fields(structs[value.Type().Name()])
			for _, f := range below.Fields.List {
				own := f.Names[0].Name
				if documented[own] == nil {
					return nil, fmt.Errorf("%s has a field %s that its Config has not", t.Name, own)
				}
				t.Keys = append(t.Keys, newKey(t.Name+".", f, documented[own], value.FieldByName(own), flags))
			}
			tables = append(tables, t)
			continue
		}
		tables[0].Keys = append(tables[0].Keys, newKey("", inFile, field, value, flags))
	}
	return tables, nil
}

func newKey(prefix string, inFile, documented *ast.Field, value reflect.Value, flags map[string]string) key {
	name := tomlName(inFile)
	return key{
		Name: name, Default: literal(value), Flag: flags[prefix+name],
		Choices: config.Choices(prefix + name), Text: text(documented),
	}
}

// structs are the package's types of that kind.
func structs(dir string) (map[string]*ast.StructType, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		return nil, err
	}
	found := map[string]*ast.StructType{}
	for _, name := range files {
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ParseComments)
		if err != nil {
			return nil, err
		}
		ast.Inspect(f, func(n ast.Node) bool {
			if spec, ok := n.(*ast.TypeSpec); ok {
				if s, ok := spec.Type.(*ast.StructType); ok {
					found[spec.Name.Name] = s
				}
			}
			return true
		})
	}
	if found["file"] == nil || found["Config"] == nil {
		return nil, fmt.Errorf("no types file and Config in %d files", len(files))
	}
	return found, nil
}

func fields(s *ast.StructType) map[string]*ast.Field {
	all := map[string]*ast.Field{}
	for _, f := range s.Fields.List {
		all[f.Names[0].Name] = f
	}
	return all
}

func tomlName(f *ast.Field) string {
	tag, _ := strconv.Unquote(f.Tag.Value) // the compiler has taken it
	return reflect.StructTag(tag).Get("toml")
}

// text is what is said of a field, above it or beside it, in one line.
func text(f *ast.Field) string {
	return strings.Join(strings.Fields(f.Doc.Text()+f.Comment.Text()), " ")
}

// literal is a value as TOML has it, which for these types is as JSON has it.
func literal(v reflect.Value) string {
	if v.Kind() == reflect.Slice {
		var parts []string
		for i := range v.Len() {
			parts = append(parts, literal(v.Index(i)))
		}
		return "[" + strings.Join(parts, ", ") + "]"
	}
	data, _ := json.Marshal(v.Interface()) // strings, numbers and switches
	return string(data)
}

// defaults are the content of a file that changes nothing, with a few words on each key.
func defaults(tables []table) string {
	var out strings.Builder
	for i, t := range tables {
		if i > 0 {
			fmt.Fprintf(&out, "\n[%s] # %s\n", t.Name, t.Text)
		}
		width := 0
		for _, k := range t.Keys {
			width = max(width, len(k.Name+" = "+k.Default))
		}
		for _, k := range t.Keys {
			words, _, _ := strings.Cut(k.Text, ". ")
			fmt.Fprintf(&out, "%-*s # %s\n", width, k.Name+" = "+k.Default, strings.TrimSuffix(words, "."))
		}
	}
	return out.String()
}

// described is a table of Markdown for all keys.
func described(tables []table) string {
	var out strings.Builder
	out.WriteString("| key | flag | default | |\n| --- | --- | --- | --- |\n")
	for _, t := range tables {
		if t.Name != "" {
			fmt.Fprintf(&out, "| **`[%s]`** | | | %s |\n", t.Name, t.Text)
		}
		for _, k := range t.Keys {
			said := k.Text
			if k.Choices != nil {
				said += " One of `" + strings.Join(k.Choices, "`, `") + "`."
			}
			fmt.Fprintf(&out, "| `%s` | %s | `%s` | %s |\n", k.Name, code(k.Flag), k.Default, said)
		}
	}
	return out.String()
}

func code(s string) string {
	if s == "" {
		return ""
	}
	return "`" + s + "`"
}
