package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gdamore/tcell/v2"
)

// someUse has a container without a sandbox between two sandboxes.
func someUse() []statsRow {
	bytes := func(n uint64) *uint64 { return &n }
	return []statsRow{
		{Kind: kindSandbox, ID: "a", Sandbox: "a", CPUPercent: 3, Memory: 10, PIDs: 5, Received: bytes(7), Sent: bytes(1)},
		{Kind: kindContainer, ID: "a1", Sandbox: "a", CPUPercent: 1, Memory: 9, PIDs: 1},
		{Kind: kindContainer, ID: "a2", Sandbox: "a", CPUPercent: 2, Memory: 1, PIDs: 4},
		{Kind: kindContainer, ID: "alone", CPUPercent: 5, Memory: 20, PIDs: 2, Written: 1},
		{Kind: kindSandbox, ID: "b", Sandbox: "b", CPUPercent: 4, Memory: 30, PIDs: 1, Received: bytes(6), Sent: bytes(3), Read: 2},
		{Kind: kindContainer, ID: "b1", Sandbox: "b", CPUPercent: 4, Memory: 30, PIDs: 1},
	}
}

func rowNames(rows []statsRow) string {
	var names []string
	for _, r := range rows {
		names = append(names, r.ID)
	}
	return strings.Join(names, " ")
}

func TestStatsOrder(t *testing.T) {
	for name, want := range map[string]string{
		"sandbox": "a a1 a2 alone b b1",
		"cpu":     "alone b b1 a a2 a1",
		"memory":  "b b1 alone a a1 a2",
		"pids":    "a a2 a1 alone b b1",
		"net":     "b b1 a a1 a2 alone",
		"block":   "b b1 alone a a1 a2",
	} {
		order, err := parseOrder(name)
		if err != nil {
			t.Fatal(err)
		}
		rows := someUse()
		if order.sort(rows, false); rowNames(rows) != want {
			t.Errorf("by %s: %s, want %s", name, rowNames(rows), want)
		}
	}
	rows := someUse()
	if statsOrders[1].sort(rows, true); rowNames(rows) != "a a1 a2 b b1 alone" {
		t.Errorf("the other way round: %s", rowNames(rows))
	}
	keys := map[rune]bool{'q': true, 'r': true, 'j': true, 'k': true}
	for _, o := range statsOrders {
		if keys[o.key] {
			t.Errorf("the key %q has two meanings", o.key)
		}
		keys[o.key] = true
	}
}

// screenOf is a view on a screen in memory.
func screenOf(t *testing.T, width, height int) (*topView, tcell.SimulationScreen) {
	t.Helper()
	screen := tcell.NewSimulationScreen("UTF-8")
	if err := screen.Init(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(screen.Fini)
	screen.SetSize(width, height)
	return &topView{screen: screen, every: time.Millisecond, order: statsOrders[0], rows: someUse()}, screen
}

func linesOf(screen tcell.SimulationScreen) []string {
	cells, width, height := screen.GetContents()
	lines := make([]string, height)
	for y := range lines {
		for _, c := range cells[y*width : (y+1)*width] {
			lines[y] += string(c.Runes)
		}
		lines[y] = strings.TrimRight(lines[y], " ")
	}
	return lines
}

func TestTopView(t *testing.T) {
	view, screen := screenOf(t, 120, 9)
	press := func(key tcell.Key, r rune) []string {
		t.Helper()
		if view.handle(tcell.NewEventKey(key, r, 0)) {
			t.Fatalf("key %v %q ends it", key, r)
		}
		view.draw()
		return linesOf(screen)
	}
	lines := press(tcell.KeyHome, 0)
	if lines[0] != "Sandboxes: 2  Containers: 4" || !strings.HasPrefix(lines[1], "SANDBOX▼   CONTAINER") || lines[8] != topHelp {
		t.Errorf("screen:\n%s", strings.Join(lines, "\n"))
	}
	if lines = press(tcell.KeyRune, 'c'); !strings.Contains(lines[1], "CPU %▼") || !strings.Contains(lines[2], "alone") {
		t.Errorf("by CPU:\n%s", strings.Join(lines, "\n"))
	}
	if lines = press(tcell.KeyRune, 'r'); !strings.Contains(lines[1], "CPU %▲") || !strings.Contains(lines[7], "alone") {
		t.Errorf("the other way round:\n%s", strings.Join(lines, "\n"))
	}
	view.take(topSample{err: errors.New("no answer\x1b[2J")})
	if view.draw(); linesOf(screen)[0] != "caisson top: no answer?[2J" || !strings.Contains(linesOf(screen)[7], "alone") {
		t.Errorf("after an error:\n%s", strings.Join(linesOf(screen), "\n"))
	}
	view.take(topSample{rows: someUse()[:2]})
	if view.draw(); linesOf(screen)[0] != "Sandboxes: 1  Containers: 1" {
		t.Errorf("afterwards:\n%s", strings.Join(linesOf(screen), "\n"))
	}
	for _, key := range []tcell.Key{tcell.KeyCtrlC, tcell.KeyEscape} {
		if !view.handle(tcell.NewEventKey(key, 0, 0)) {
			t.Errorf("key %v does not end it", key)
		}
	}
}

func TestTopScrolls(t *testing.T) {
	view, screen := screenOf(t, 60, 6) // room for three
	for _, step := range []struct {
		key   tcell.Key
		first string
	}{
		{tcell.KeyHome, "a"}, {tcell.KeyDown, "a1"}, {tcell.KeyPgDn, "alone"}, {tcell.KeyDown, "alone"},
		{tcell.KeyUp, "a2"}, {tcell.KeyPgUp, "a"}, {tcell.KeyUp, "a"}, {tcell.KeyEnd, "alone"},
	} {
		view.handle(tcell.NewEventKey(step.key, 0, 0))
		if view.draw(); view.rows[view.top].ID != step.first {
			t.Errorf("after key %v from %q on, want %q", step.key, view.rows[view.top].ID, step.first)
		}
	}
	if lines := linesOf(screen); !strings.Contains(lines[0], "(line 4 of 6)") || !strings.Contains(lines[2], "alone") {
		t.Errorf("screen:\n%s", strings.Join(lines, "\n"))
	}
	for _, size := range [][2]int{{120, 30}, {20, 3}, {1, 1}, {0, 0}} {
		screen.SetSize(size[0], size[1])
		view.handle(tcell.NewEventResize(size[0], size[1]))
		view.draw()
		if lines := linesOf(screen); size[1] == 30 && !strings.Contains(lines[7], "b1") {
			t.Errorf("with more room:\n%s", strings.Join(lines, "\n"))
		}
	}
}

func TestTopRuns(t *testing.T) {
	view, screen := screenOf(t, 120, 12)
	asked := make(chan struct{}, 1)
	done := make(chan error)
	go func() {
		done <- view.run(t.Context(), func(context.Context) topSample {
			select {
			case asked <- struct{}{}:
			default:
			}
			return topSample{rows: someUse()}
		})
	}()
	<-asked // it goes on by itself
	if err := screen.PostEvent(tcell.NewEventKey(tcell.KeyRune, 'q', 0)); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := view.run(ctx, func(context.Context) topSample { return topSample{} }); err != nil {
		t.Error(err)
	}
}

func TestTopWithoutTerminal(t *testing.T) {
	d := startFake(t)
	if out := d.must(t, "top"); !slices.Equal(strings.Fields(out), strings.Fields(strings.Join(statsHeader, " "))) {
		t.Errorf("top: %q", out)
	}
	if out := d.must(t, "top", "--format", "json"); out != "[]\n" {
		t.Errorf("top as JSON: %q", out)
	}
	d.refused(t, `no container or sandbox "nowhere"`, "top", "nowhere")
	d.refused(t, fmt.Sprintf("sort by one of %s", orderNames()), "top", "--sort", "size")
	d.refused(t, "unknown format", "top", "--format", "yaml")
}
