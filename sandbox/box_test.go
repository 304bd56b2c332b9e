package sandbox

import (
	"testing"

	"github.com/containerd/errdefs"

	"caisson/internal/statefile"
)

func TestEveryPairOfStates(t *testing.T) {
	want := map[[2]State]bool{
		{Reserved, Creating}: true,
		{Reserved, Starting}: true, // a single container
		{Creating, Created}:  true,
		{Creating, Reserved}: true,
		{Created, Starting}:  true,
		{Created, Stopped}:   true,
		{Starting, Ready}:    true,
		{Starting, Stopped}:  true,
		{Starting, Reserved}: true, // a single container that did not start
		{Ready, Stopping}:    true,
		{Ready, Stopped}:     true,
		{Stopping, Stopped}:  true,
	}
	states := []State{Reserved, Creating, Created, Starting, Ready, Stopping, Stopped}
	for _, from := range states {
		if _, ok := allowed[from]; !ok {
			t.Errorf("%s is not in the table", from)
		}
		for _, to := range states {
			c := NewController(Config{Dir: t.TempDir()})
			b, _ := c.add(key{"ns", "sb"}, kindSandbox, from)
			if err := b.save(b.snapshot()); err != nil {
				t.Fatal(err)
			}
			err := b.move(to, func(r *boxRecord) { r.Reason = "moved" })
			var written boxRecord
			if err := statefile.Read(b.path(recordName), &written); err != nil {
				t.Fatal(err)
			}
			state := b.snapshot().State
			switch {
			case want[[2]State{from, to}]:
				if err != nil || state != to || written.State != to || written.Reason != "moved" {
					t.Errorf("%s to %s: %v, %s, on disk %s", from, to, err, state, written.State)
				}
			case !errdefs.IsFailedPrecondition(err) || state != from || written.State != from || written.Reason != "":
				t.Errorf("%s to %s: %v, %s, on disk %s", from, to, err, state, written.State)
			}
		}
	}
}
