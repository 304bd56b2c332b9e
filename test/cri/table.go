package main

import (
	"fmt"
	"io"
	"maps"
	"path/filepath"
	"slices"
	"strings"
)

// printTable writes a Markdown table of the specs and their results in several
// runs, each a report.json in a directory that gives the column its name.
func printTable(w io.Writer, reports []string) error {
	results := map[string][]string{}
	var columns []string
	for i, path := range reports {
		suites, err := readReport(path)
		if err != nil {
			return err
		}
		columns = append(columns, filepath.Base(filepath.Dir(path)))
		for _, s := range suites {
			for _, spec := range s.SpecReports {
				if spec.LeafNodeType != "It" || spec.leftOut() {
					continue
				}
				name := strings.TrimPrefix(spec.name(), "[k8s.io] ")
				if results[name] == nil {
					results[name] = slices.Repeat([]string{"not run"}, len(reports))
				}
				results[name][i] = spec.State
			}
		}
	}
	fmt.Fprintf(w, "| spec | %s |\n|%s\n", strings.Join(columns, " | "), strings.Repeat(" --- |", 1+len(columns)))
	for _, name := range slices.Sorted(maps.Keys(results)) {
		fmt.Fprintf(w, "| %s | %s |\n", strings.ReplaceAll(name, "|", "\\|"), strings.Join(results[name], " | "))
	}
	return nil
}
