// Package progress shows how far work has got: bars that move on a terminal, and
// elsewhere a line for each step that an item takes.
//
// A Display owns its part of the screen from Start to Close; nothing else may be
// written there meanwhile. Its methods may be called by any goroutine, and do
// nothing on a nil Display, which shows nothing. It uses no colours.
package progress

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"time"
)

// State is how far one item has got.
type State struct {
	Step  string // "downloading"
	Done  int64
	Total int64  // 0 if nobody knows
	Unit  string // of Done and Total: "layers"; "" for bytes
	Idle  bool   // it waits: where lines are printed, there is none for this
	Ended bool   // nothing is left to do
}

// Size answers the columns and rows of the terminal, 0 if it does not know.
type Size func() (columns, rows int)

// Display shows items in the order in which they were first set.
type Display struct {
	w    io.Writer
	size Size // nil: no terminal

	stop chan struct{}
	wg   sync.WaitGroup

	mu      sync.Mutex // guards all below, and w
	items   []*item
	byID    map[string]*item
	begun   time.Time
	changed bool // since it was drawn
	drawn   int  // lines on the screen that are ours
}

type item struct {
	name string
	State

	since time.Time // the step began
	from  int64     // where it began
}

// redraw is how often a terminal is.
const redraw = 100 * time.Millisecond

// Start begins a display on w. With a size, w is a terminal.
func Start(w io.Writer, size Size) *Display {
	d := &Display{w: w, size: size, stop: make(chan struct{}), byID: map[string]*item{}, begun: time.Now()}
	if size != nil {
		d.wg.Go(d.run)
	}
	return d
}

func (d *Display) run() {
	tick := time.NewTicker(redraw)
	defer tick.Stop()
	for {
		select {
		case now := <-tick.C:
			d.draw(now)
		case <-d.stop:
			d.draw(time.Now())
			return
		}
	}
}

// Close draws for the last time, and leaves on the screen what is there.
func (d *Display) Close() {
	if d == nil {
		return
	}
	close(d.stop)
	d.wg.Wait()
}

// Set tells how far an item has got. Its name is what is shown.
func (d *Display) Set(id, name string, s State) {
	if d == nil {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	it := d.byID[id]
	if it == nil {
		it = &item{name: name}
		d.byID[id] = it
		d.items = append(d.items, it)
	}
	begins := it.Step != s.Step
	if begins {
		it.since, it.from = time.Now(), s.Done
	}
	it.State = s
	d.changed = true
	if d.size == nil && begins && !s.Idle {
		// A write that fails is noticed by whoever writes the result.
		fmt.Fprintf(d.w, "%s: %s\n", name, strings.TrimSpace(s.Step+" "+amount(s.Total, s.Unit)))
	}
}
