// Package results is what a run of the benchmarks leaves: samples that were summed
// up, each of one measure on one side. The benchmarks write it as JSON, the report
// reads it.
package results

import (
	"fmt"
	"math"
	"slices"
	"strings"
)

// Reference is the side that the others are compared with.
const Reference = "containerd+runc"

// Samples are of one measure on one side.
type Samples struct {
	Group, Measure, Unit, Side string
	Values                     []float64
}

// Stat is what is known of samples. P50, P90 and P99 are percentiles, of the nearest
// rank.
type Stat struct {
	Group, Measure, Unit, Side string
	N                          int
	P50, P90, P99              float64
}

// Sum sums samples up; there must be some.
func (s Samples) Sum() Stat {
	sorted := slices.Sorted(slices.Values(s.Values))
	rank := func(percent int) float64 { return sorted[(len(sorted)*percent+99)/100-1] }
	return Stat{
		Group: s.Group, Measure: s.Measure, Unit: s.Unit, Side: s.Side,
		N: len(sorted), P50: rank(50), P90: rank(90), P99: rank(99),
	}
}

// Run is all of a run. Rounds is how many pods each side ran for the latencies of calls.
type Run struct {
	Date, Machine string
	Rounds        int
	Versions      map[string]string
	Stats         []Stat
}

// Groups are the names of the groups, in the order of the run.
func (r Run) Groups() []string { return names(r.Stats, func(s Stat) string { return s.Group }) }

// Measures are those of a group, and Sides its sides, in the order of the run.
func (r Run) Measures(group string) []string {
	return names(r.of(group), func(s Stat) string { return s.Measure })
}

// Sides are those of a group.
func (r Run) Sides(group string) []string {
	return names(r.of(group), func(s Stat) string { return s.Side })
}

// Units are those that a group's values have.
func (r Run) Units(group string) []string {
	return names(r.of(group), func(s Stat) string { return s.Unit })
}

func (r Run) of(group string) (stats []Stat) {
	for _, s := range r.Stats {
		if s.Group == group {
			stats = append(stats, s)
		}
	}
	return stats
}

func names(stats []Stat, name func(Stat) string) (all []string) {
	for _, s := range stats {
		if n := name(s); !slices.Contains(all, n) {
			all = append(all, n)
		}
	}
	return all
}

// Find is one of the stats; false if there is none.
func (r Run) Find(group, measure, side string) (Stat, bool) {
	i := slices.IndexFunc(r.Stats, func(s Stat) bool { return s.Group == group && s.Measure == measure && s.Side == side })
	if i < 0 {
		return Stat{}, false
	}
	return r.Stats[i], true
}

// Ratio is a stat's median to that of the reference; false if there is no reference.
func (r Run) Ratio(s Stat) (float64, bool) {
	ref, ok := r.Find(s.Group, s.Measure, Reference)
	if !ok || ref.P50 == 0 {
		return 0, false
	}
	return s.P50 / ref.P50, true
}

// Number is a value with three digits that count.
func Number(v float64) string {
	switch size := math.Abs(v); {
	case size >= 100:
		return fmt.Sprintf("%.0f", v)
	case size >= 10:
		return fmt.Sprintf("%.1f", v)
	case size >= 1:
		return fmt.Sprintf("%.2f", v)
	}
	return fmt.Sprintf("%.3f", v)
}

// Text shows everything, a line for each measure on each side.
func (r Run) Text() string {
	var out strings.Builder
	fmt.Fprintf(&out, "%s; %s\n", r.Machine, r.Date)
	for _, group := range r.Groups() {
		fmt.Fprintf(&out, "\n%s\n", group)
		for _, measure := range r.Measures(group) {
			for _, side := range r.Sides(group) {
				s, ok := r.Find(group, measure, side)
				if !ok {
					continue
				}
				ratio := ""
				if v, ok := r.Ratio(s); ok {
					ratio = fmt.Sprintf("ratio %.3f", v)
				}
				fmt.Fprintf(&out, "  %-28s %-24s p50 %8s  p90 %8s  p99 %8s %-8s n %-4d %s\n",
					measure, side, Number(s.P50), Number(s.P90), Number(s.P99), s.Unit, s.N, ratio)
			}
		}
	}
	return out.String()
}
