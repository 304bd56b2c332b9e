package progress

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestPlainLines(t *testing.T) {
	var out bytes.Buffer
	d := Start(&out, nil)
	d.Set("a", "layer a", State{Step: "waiting", Total: 2048, Idle: true})
	for done := range int64(3) {
		d.Set("a", "layer a", State{Step: "downloading", Done: done * 1024, Total: 2048})
	}
	d.Set("b", "layers", State{Step: "unpacking", Total: 3, Unit: "layers"})
	d.Set("a", "layer a", State{Step: "downloaded", Total: 2048, Ended: true})
	d.Set("c", "manifest", State{Step: "exists", Ended: true})
	d.Close()
	if diff := cmp.Diff("layer a: downloading 2KiB\nlayers: unpacking 3 layers\nlayer a: downloaded 2KiB\nmanifest: exists\n", out.String()); diff != "" {
		t.Error(diff)
	}
}

func TestLines(t *testing.T) {
	begun := time.Unix(100, 0)
	d := &Display{begun: begun, items: []*item{
		{name: "layer a", State: State{Step: "downloading", Done: 2048, Total: 4096}, since: begun, from: 1024},
		{name: "layer bb", State: State{Step: "unpacked", Done: 10, Total: 1024, Ended: true}},
		{name: "c", State: State{Step: "waiting", Total: 7, Idle: true}},
		{name: "d", State: State{Step: "unpacking", Done: 1, Total: 3, Unit: "layers"}},
	}}
	a := "layer a   downloading  [############------------] 2KiB of 4KiB  512B/s"
	bb := "layer bb  unpacked     1KiB"
	c := "c         waiting"
	last := "d         unpacking    [########----------------] 1 of 3 layers"
	all := "1 of 4 done in 2.0 s"
	for _, test := range []struct {
		columns, rows int
		want          []string
	}{
		{120, 24, []string{a, bb, c, last, all}},
		{120, 5, []string{a, c, last, all}},
		{120, 4, []string{a, c, all}},
		{120, 1, []string{a, all}},
		{24, 6, []string{a[:23], bb[:23], c, last[:23], all}},
	} {
		if diff := cmp.Diff(test.want, d.lines(begun.Add(2*time.Second), test.columns, test.rows)); diff != "" {
			t.Errorf("%d columns, %d rows: %s", test.columns, test.rows, diff)
		}
	}
}

// TestTerminal: what is drawn later stands in the place of what was.
func TestTerminal(t *testing.T) {
	var out bytes.Buffer
	d := Start(&out, func() (int, int) { return 80, 24 })
	d.Set("a", "a", State{Step: "downloading", Done: 1, Total: 4})
	d.Set("b", "b", State{Step: "exists", Ended: true})
	d.Close()
	first := out.String()
	if strings.Count(first, "\n")%3 != 0 || !strings.Contains(first, "1 of 2 done") {
		t.Errorf("drawn: %q", first)
	}
	out.Reset()
	d.Set("a", "a", State{Step: "downloaded", Done: 4, Total: 4, Ended: true})
	d.draw(time.Now())
	if got := out.String(); !strings.HasPrefix(got, "\x1b[3A\x1b[2Ka ") || !strings.Contains(got, "2 of 2 done") {
		t.Errorf("drawn again: %q", got)
	}
	out.Reset()
	d.draw(time.Now())
	if out.Len() > 0 {
		t.Errorf("drawn without a change: %q", out.String())
	}
}

func TestNil(t *testing.T) {
	var d *Display
	d.Set("a", "a", State{})
	d.Close()
}
