package sandbox

import (
	"cmp"
	"slices"
	"time"
)

// Report is what an operator may know of a sandbox: nothing of it is a client's
// secret, as an annotation or an environment may be.
type Report struct {
	Namespace, ID string
	Kind          string
	State         State
	// Busy is set while a call, or the daemon itself, changes the sandbox.
	Busy       bool   `json:",omitempty"`
	Dir        string // of its run-time state
	Cgroup     string `json:",omitempty"`
	Runtime    string
	Isolation  string   `json:",omitempty"`
	Pid        int      `json:",omitempty"` // of the holder
	MonitorPid int      `json:",omitempty"`
	Containers []string `json:",omitempty"`
	Reason     string   `json:",omitempty"`

	CreatedAt time.Time
	StartedAt time.Time `json:",omitzero"`
	ExitedAt  time.Time `json:",omitzero"`
}

// Reports tells of all sandboxes, in the order of their names. It waits for none.
func (c *Controller) Reports() []Report {
	boxes := c.all()
	reports := make([]Report, 0, len(boxes))
	for _, b := range boxes {
		reports = append(reports, b.report())
	}
	slices.SortFunc(reports, func(a, b Report) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.ID, b.ID))
	})
	return reports
}

func (b *box) report() Report {
	rec := b.snapshot()
	r := Report{
		Namespace: rec.Namespace, ID: rec.ID, Kind: string(rec.Kind), State: rec.State, Busy: len(b.op) > 0,
		Dir: b.dir, Cgroup: rec.Cgroup, Runtime: b.runtimeName(), Isolation: rec.Settings.Isolation,
		Containers: b.tasks.IDs(), Reason: rec.Reason,
		CreatedAt: rec.CreatedAt, StartedAt: rec.StartedAt, ExitedAt: rec.ExitedAt,
	}
	slices.Sort(r.Containers)
	if inst := b.instance(); inst != nil {
		r.Pid, r.MonitorPid = inst.Pid(), inst.Host().Pid()
	}
	return r
}

// States are the states of a sandbox, with how many are in each.
func (c *Controller) States() map[State]int {
	states := make(map[State]int, len(allowed))
	for state := range allowed {
		states[state] = 0
	}
	for _, b := range c.all() {
		states[b.snapshot().State]++
	}
	return states
}

func (c *Controller) all() []*box {
	c.mu.Lock()
	defer c.mu.Unlock()
	boxes := make([]*box, 0, len(c.boxes))
	for _, b := range c.boxes {
		boxes = append(boxes, b)
	}
	return boxes
}

// Deaths counts the sandboxes whose walls fell since the daemon started, or while
// there was none: for want of their monitor, or of their holder alone.
func (c *Controller) Deaths() (monitors, holders uint64) {
	return c.deadMonitors.Load(), c.deadHolders.Load()
}
