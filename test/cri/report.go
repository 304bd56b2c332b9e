package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
)

// suite is what we read of the report that ginkgo writes.
type suite struct {
	SpecReports []spec
	RunTime     int64 // ns
}

type spec struct {
	ContainerHierarchyTexts []string
	LeafNodeType            string
	LeafNodeText            string
	State                   string
	NumAttempts             int
	Failure                 struct{ Message string }
}

func (s spec) name() string {
	return strings.Join(append(slices.Clone(s.ContainerHierarchyTexts), s.LeafNodeText), " ")
}

// printReport sums up the report: the numbers, and each spec that did not pass.
func printReport(w io.Writer, path string) error {
	content, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("critest wrote no report: %w", err)
	}
	var suites []suite
	if err := json.Unmarshal(content, &suites); err != nil {
		return fmt.Errorf("critest's report: %w", err)
	}
	for _, s := range suites {
		counts := map[string]int{}
		var lines []string
		for _, spec := range s.SpecReports {
			state := spec.State
			if state == "skipped" && spec.Failure.Message == "" {
				continue // left out by focus, skip or for being a benchmark
			}
			if spec.LeafNodeType == "It" {
				counts[state]++
			}
			if state != "passed" && state != "pending" {
				message, _, _ := strings.Cut(strings.TrimSpace(spec.Failure.Message), "\n")
				lines = append(lines, fmt.Sprintf("%-8s %s\n         %s", state, spec.name(), message))
			}
		}
		slices.Sort(lines)
		for _, line := range lines {
			fmt.Fprintln(w, line)
		}
		failed := 0
		for state, n := range counts {
			if !slices.Contains([]string{"passed", "skipped", "pending"}, state) {
				failed += n
			}
		}
		fmt.Fprintf(w, "test-cri: %d passed, %d failed, %d skipped, %d pending in %d s\n",
			counts["passed"], failed, counts["skipped"], counts["pending"], s.RunTime/1e9)
	}
	return nil
}
