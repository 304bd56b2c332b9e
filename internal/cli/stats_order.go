package cli

import (
	"cmp"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
)

// statsOrder is one way to sort what containers and sandboxes use, the largest first. A
// sandbox keeps its containers behind it.
type statsOrder struct {
	name   string
	key    rune // in `caisson top`
	column int  // of statsHeader, that it sorts by
	value  func(statsRow) float64
}

// statsOrders: in the first, that of the daemon, everything is equal.
var statsOrders = []statsOrder{
	{"sandbox", 's', 0, func(statsRow) float64 { return 0 }},
	{"cpu", 'c', 2, func(r statsRow) float64 { return r.CPUPercent }},
	{"memory", 'm', 3, func(r statsRow) float64 { return float64(r.Memory) }},
	{"pids", 'p', 5, func(r statsRow) float64 { return float64(r.PIDs) }},
	{"net", 'n', 6, func(r statsRow) float64 { return float64(known(r.Received) + known(r.Sent)) }},
	{"block", 'b', 8, func(r statsRow) float64 { return float64(r.Read + r.Written) }},
}

func known(n *uint64) uint64 {
	if n == nil {
		return 0
	}
	return *n
}

func orderNames() string {
	names := make([]string, len(statsOrders))
	for i, o := range statsOrders {
		names[i] = o.name
	}
	return strings.Join(names, ", ")
}

func parseOrder(name string) (statsOrder, error) {
	for _, o := range statsOrders {
		if o.name == name {
			return o, nil
		}
	}
	return statsOrder{}, advise(errdefs.ErrInvalidArgument, "unknown order %q: sort by one of %s", name, orderNames())
}

// sort sorts sandboxes, and the containers of each; those without a sandbox are sorted
// among the sandboxes.
func (o statsOrder) sort(rows []statsRow, reverse bool) {
	compare := func(a, b statsRow) int { return cmp.Compare(o.value(b), o.value(a)) }
	var groups [][]statsRow
	for _, r := range rows {
		last := len(groups) - 1
		if r.Kind == kindContainer && last >= 0 && groups[last][0].Kind == kindSandbox && groups[last][0].ID == r.Sandbox {
			groups[last] = append(groups[last], r)
			continue
		}
		groups = append(groups, []statsRow{r})
	}
	for _, g := range groups {
		slices.SortStableFunc(g[1:], compare)
	}
	slices.SortStableFunc(groups, func(a, b []statsRow) int { return compare(a[0], b[0]) })
	if reverse {
		slices.Reverse(groups)
		for _, g := range groups {
			slices.Reverse(g[1:])
		}
	}
	copy(rows, slices.Concat(groups...))
}
