// Command report makes docs/benchmarks.md, and the plots in it, out of what a run of
// the benchmarks has left. `make bench-report` runs it.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"caisson/test/bench/results"
)

func main() {
	in := flag.String("i", "build/bench/results.json", "`file` with the results")
	out := flag.String("o", "docs", "`directory` of benchmarks.md")
	flag.Parse()
	if err := report(*in, *out); err != nil {
		fmt.Fprintln(os.Stderr, "report:", err)
		os.Exit(1)
	}
}

func report(in, out string) error {
	data, err := os.ReadFile(in)
	if err != nil {
		return err
	}
	var run results.Run
	if err := json.Unmarshal(data, &run); err != nil {
		return fmt.Errorf("%s: %w", in, err)
	}
	plots := filepath.Join(out, "benchmarks")
	if err := os.MkdirAll(plots, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(plots, "results.json"), data, 0o644); err != nil {
		return err
	}
	var text strings.Builder
	text.WriteString(head(run))
	for _, group := range run.Groups() {
		fmt.Fprintf(&text, "\n## %s\n\n", strings.ToUpper(group[:1])+group[1:])
		for _, unit := range run.Units(group) {
			name := fileName(group+" "+unit) + ".svg"
			if err := bars(run, group, unit, filepath.Join(plots, name)); err != nil {
				return fmt.Errorf("plot of %s: %w", group, err)
			}
			fmt.Fprintf(&text, "![%s, %s](benchmarks/%s)\n\n", group, unit, name)
		}
		table(&text, run, group)
	}
	return os.WriteFile(filepath.Join(out, "benchmarks.md"), []byte(text.String()), 0o644)
}

func head(run results.Run) string {
	var text strings.Builder
	text.WriteString("# Benchmarks\n\n" +
		"Made by `make bench bench-report`; do not edit. All sides were measured in one run,\n" +
		"in turns, on a machine that did nothing else, with run-time state on a tmpfs. Each\n" +
		"cell is a median, and in parentheses its ratio to containerd with\n" +
		"containerd-shim-runc-v2 and runc where that was measured; [results.json](benchmarks/results.json) has the 90th and 99th\n" +
		"percentiles and the number of samples too.\n\n")
	fmt.Fprintf(&text, "%s, %s; for the latencies of calls, %d pods of each side.\n\n", run.Machine, run.Date, run.Rounds)
	for _, name := range []string{"caisson", "containerd", "runc", "crun", "go"} {
		fmt.Fprintf(&text, "- %s: %s\n", name, run.Versions[name])
	}
	return text.String()
}

func fileName(group string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9':
			return r
		case r >= 'A' && r <= 'Z':
			return r - 'A' + 'a'
		case r == ' ':
			return '-'
		case r == 'µ':
			return 'u'
		}
		return -1
	}, group)
}

// table has a line for each measure and a column for each side.
func table(text *strings.Builder, run results.Run, group string) {
	sides := run.Sides(group)
	fmt.Fprintf(text, "| | %s |\n|---|%s\n", strings.Join(sides, " | "), strings.Repeat("---:|", len(sides)))
	for _, measure := range run.Measures(group) {
		cells, unit := make([]string, len(sides)), ""
		for i, side := range sides {
			s, ok := run.Find(group, measure, side)
			if !ok {
				continue
			}
			unit, cells[i] = s.Unit, results.Number(s.P50)
			if ratio, ok := run.Ratio(s); ok && side != results.Reference {
				cells[i] += fmt.Sprintf(" (%.2f)", ratio)
			}
		}
		fmt.Fprintf(text, "| %s, %s | %s |\n", measure, unit, strings.Join(cells, " | "))
	}
}
