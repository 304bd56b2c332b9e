package main

import (
	"encoding/json"
	"errors"
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

const (
	passed  = "passed"
	skipped = "skipped"
	pending = "pending"
)

func (s spec) name() string {
	return strings.Join(append(slices.Clone(s.ContainerHierarchyTexts), s.LeafNodeText), " ")
}

// leftOut says whether focus or skip, or its being a benchmark, kept the spec
// from running.
func (s spec) leftOut() bool { return s.State == skipped && s.Failure.Message == "" }

func (s spec) failed() bool { return !slices.Contains([]string{passed, skipped, pending}, s.State) }

func readReport(path string) ([]suite, error) {
	content, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("critest wrote no report: %w", err)
	}
	var suites []suite
	if err := json.Unmarshal(content, &suites); err != nil {
		return nil, fmt.Errorf("critest's report %s: %w", path, err)
	}
	return suites, nil
}

// printReport sums up the report: the numbers, and each spec that did not pass.
func printReport(w io.Writer, suites []suite) {
	for _, s := range suites {
		counts, failed := map[string]int{}, 0
		var lines []string
		for _, spec := range s.SpecReports {
			if spec.leftOut() {
				continue
			}
			if spec.LeafNodeType == "It" {
				counts[spec.State]++
				if spec.failed() {
					failed++
				}
			}
			if spec.State != passed && spec.State != pending {
				message, _, _ := strings.Cut(strings.TrimSpace(spec.Failure.Message), "\n")
				lines = append(lines, fmt.Sprintf("%-8s %s\n         %s", spec.State, spec.name(), message))
			}
		}
		slices.Sort(lines)
		for _, line := range lines {
			fmt.Fprintln(w, line)
		}
		fmt.Fprintf(w, "test-cri: %d passed, %d failed, %d skipped, %d pending in %d s\n",
			counts[passed], failed, counts[skipped], counts[pending], s.RunTime/1e9)
	}
}

// compare says which specs have another result than in the reference, and
// returns an error if one is worse: it fails here and did not there or, unless
// only a part of them was to run, passed there and did not run here. One that is
// skipped here is printed, but no error. What fails outside of the specs is
// worse, too.
func compare(w io.Writer, reference, here []suite, part bool) error {
	there := map[string]string{}
	for _, s := range reference {
		for _, spec := range s.SpecReports {
			if spec.LeafNodeType == "It" && !spec.leftOut() {
				there[spec.name()] = spec.State
			}
		}
	}
	if len(there) == 0 {
		return errors.New("the report of the reference has no spec that ran")
	}
	compared, same, worse := 0, 0, 0
	judge := func(name, was, is string, bad bool) {
		mark := "differs"
		if bad {
			mark, worse = "WORSE", worse+1
		}
		fmt.Fprintf(w, "%-8s %s\n         %s there, %s here\n", mark, name, was, is)
	}
	for _, s := range here {
		for _, spec := range s.SpecReports {
			name := spec.name()
			was := there[name]
			switch {
			case spec.leftOut():
				continue
			case spec.LeafNodeType != "It":
				if spec.failed() {
					judge(spec.LeafNodeType+" "+name, "unknown", spec.State, true)
				}
				continue
			case was == spec.State:
				same++
			case was == "":
				judge(name, "absent", spec.State, spec.failed())
			default:
				judge(name, was, spec.State, spec.failed())
			}
			compared++
			delete(there, name)
		}
	}
	for name, was := range there {
		if !part {
			judge(name, was, "not run", was == passed)
		}
	}
	fmt.Fprintf(w, "test-cri: compared with the reference: %d of %d specs have the same result, %d are worse\n", same, compared, worse)
	if worse > 0 {
		return fmt.Errorf("%d specs are worse than in the reference", worse)
	}
	return nil
}
