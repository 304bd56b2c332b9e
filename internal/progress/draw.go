package progress

import (
	"fmt"
	"strings"
	"time"

	"github.com/docker/go-units"
)

// draw replaces what is on the terminal. A write that fails is noticed by whoever
// writes the result.
func (d *Display) draw(now time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.changed {
		return
	}
	d.changed = false
	columns, rows := d.size()
	if columns <= 0 || rows <= 0 {
		columns, rows = 80, 24
	}
	var out strings.Builder
	if d.drawn > 0 {
		fmt.Fprintf(&out, "\x1b[%dA", d.drawn) // up
	}
	lines := d.lines(now, columns, rows)
	for _, line := range lines {
		out.WriteString("\x1b[2K" + line + "\n") // in place of what is there
	}
	if len(lines) < d.drawn {
		out.WriteString("\x1b[J") // and below
	}
	d.drawn = len(lines)
	fmt.Fprint(d.w, out.String())
}

// lines are one for each item, as many as there is room for, and one for all. What has
// ended goes first where there is too little room.
func (d *Display) lines(now time.Time, columns, rows int) []string {
	if len(d.items) == 0 {
		return nil
	}
	ended, width := 0, 0
	for _, it := range d.items {
		if it.Ended {
			ended++
		}
		width = max(width, len(it.name))
	}
	room := max(rows-2, 1) // the cursor is on a line of its own
	hide := max(len(d.items)-room, 0)
	var lines []string
	for _, it := range d.items {
		if hide > 0 && it.Ended {
			hide--
			continue
		}
		if len(lines) < room {
			lines = append(lines, fit(it.line(now, width), columns))
		}
	}
	all := fmt.Sprintf("%d of %d done in %.1f s", ended, len(d.items), now.Sub(d.begun).Seconds())
	return append(lines, fit(all, columns))
}

// bar is how many columns one takes.
const bar = 24

func (it *item) line(now time.Time, width int) string {
	line := fmt.Sprintf("%-*s  %-12s ", width, it.name, it.Step)
	switch {
	case it.Idle || it.Total <= 0:
		return line
	case it.Ended || it.Done >= it.Total:
		return line + amount(it.Total, it.Unit)
	}
	full := int(bar * max(it.Done, 0) / it.Total)
	line += "[" + strings.Repeat("#", full) + strings.Repeat("-", bar-full) + "] "
	if it.Unit != "" {
		return line + fmt.Sprintf("%d of %s", it.Done, amount(it.Total, it.Unit))
	}
	line += units.BytesSize(float64(it.Done)) + " of " + amount(it.Total, it.Unit)
	if took := now.Sub(it.since); it.Done > it.from && took > 0 {
		line += fmt.Sprintf("  %s/s", units.BytesSize(float64(it.Done-it.from)/took.Seconds()))
	}
	return line
}

// amount is empty for bytes of which nobody knows how many.
func amount(n int64, unit string) string {
	switch {
	case unit != "":
		return fmt.Sprintf("%d %s", n, unit)
	case n > 0:
		return units.BytesSize(float64(n))
	}
	return ""
}

// fit keeps a line on its line.
func fit(line string, columns int) string {
	if line = strings.TrimRight(line, " "); len(line) >= columns {
		return line[:columns-1]
	}
	return line
}
