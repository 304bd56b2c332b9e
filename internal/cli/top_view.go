package cli

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/gdamore/tcell/v2"
)

// topView is the screen of `caisson top`. tcell draws it, which brings four modules; tview
// is built upon it and would be one more for the one table here, bubbletea brings a dozen.
type topView struct {
	screen  tcell.Screen
	every   time.Duration // between samples
	order   statsOrder
	reverse bool
	rows    []statsRow
	err     error // of the last sample: the rows are older
	top     int   // the first row that is shown
}

type topSample struct {
	rows []statsRow
	err  error
}

// run shows samples until a key or ctx ends it. Everything is drawn by this
// one goroutine, from what the two others send.
func (v *topView) run(ctx context.Context, next func(context.Context) topSample) error {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	samples := make(chan topSample)
	wg.Go(func() {
		for sleep(ctx, v.every) == nil {
			select {
			case samples <- next(ctx):
			case <-ctx.Done():
			}
		}
	})
	events := make(chan tcell.Event)
	wg.Go(func() { v.screen.ChannelEvents(events, ctx.Done()) })
	for {
		v.draw()
		select {
		case <-ctx.Done():
			return nil // how one ends it
		case s := <-samples:
			v.take(s)
		case ev, open := <-events:
			if !open || v.handle(ev) {
				return nil
			}
		}
	}
}

// take keeps the rows there are if there are no new ones: the daemon may come back.
func (v *topView) take(s topSample) {
	if v.err = s.err; s.err == nil {
		v.rows = s.rows
	}
}

// handle tells whether to end.
func (v *topView) handle(ev tcell.Event) bool {
	switch ev := ev.(type) {
	case *tcell.EventError: // the terminal is gone
		return true
	case *tcell.EventResize:
		v.screen.Sync()
	case *tcell.EventKey:
		switch ev.Key() {
		case tcell.KeyCtrlC, tcell.KeyEscape:
			return true
		case tcell.KeyCtrlL:
			v.screen.Sync()
		case tcell.KeyUp:
			v.top--
		case tcell.KeyDown:
			v.top++
		case tcell.KeyPgUp:
			v.top -= v.room()
		case tcell.KeyPgDn:
			v.top += v.room()
		case tcell.KeyHome:
			v.top = 0
		case tcell.KeyEnd:
			v.top = len(v.rows)
		case tcell.KeyRune:
			return v.handleRune(ev.Rune())
		}
	}
	return false
}

func (v *topView) handleRune(key rune) bool {
	switch key {
	case 'q', 'Q':
		return true
	case 'r':
		v.reverse = !v.reverse
	case 'k':
		v.top--
	case 'j':
		v.top++
	}
	for _, o := range statsOrders {
		if o.key == key {
			v.order, v.top = o, 0
		}
	}
	return false
}

// room is how many rows fit between the two lines above and the one below.
func (v *topView) room() int {
	_, height := v.screen.Size()
	return max(height-3, 0)
}

const topHelp = "q quit  sort: s sandbox  c CPU  m memory  p PIDs  n network  b block I/O  r reverse"

func (v *topView) draw() {
	rows := slices.Clone(v.rows)
	v.order.sort(rows, v.reverse)
	v.top = max(min(v.top, len(rows)-v.room()), 0)

	var table bytes.Buffer
	_ = list(&table, output{format: "table"}, v.header(), rows) // a buffer takes it all
	lines := strings.Split(strings.TrimSuffix(table.String(), "\n"), "\n")
	width, height := v.screen.Size()
	plain := tcell.StyleDefault
	v.screen.Clear()
	v.line(0, v.summary(), plain.Bold(true))
	v.line(1, fmt.Sprintf("%-*s", width, lines[0]), plain.Reverse(true))
	for i := range min(v.room(), len(rows)-v.top) {
		style := plain
		if rows[v.top+i].Kind == kindSandbox {
			style = style.Bold(true)
		}
		v.line(2+i, lines[1+v.top+i], style)
	}
	if height > 3 {
		v.line(height-1, topHelp, plain.Dim(true))
	}
	v.screen.Show()
}

func (v *topView) line(y int, text string, style tcell.Style) {
	v.screen.PutStrStyled(0, y, text, style)
}

// header marks the column that is sorted by.
func (v *topView) header() []string {
	header := slices.Clone(statsHeader)
	mark := "▼"
	if v.reverse {
		mark = "▲"
	}
	header[v.order.column] += mark
	return header
}

func (v *topView) summary() string {
	if v.err != nil {
		return "caisson top: " + printable(clean(v.err.Error()))
	}
	count := map[string]int{}
	for _, r := range v.rows {
		count[r.Kind]++
	}
	text := fmt.Sprintf("Sandboxes: %d  Containers: %d", count[kindSandbox], count[kindContainer])
	if len(v.rows) > v.room() {
		text += fmt.Sprintf("  (line %d of %d)", v.top+1, len(v.rows))
	}
	return text
}
