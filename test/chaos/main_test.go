package chaos

import (
	"context"
	"testing"

	"caisson/test/apart"
)

// interrupted ends when the program is told to, and finished when the test is over.
var interrupted, finished = context.Background(), make(chan struct{})

// TestMain runs the tests apart: the networks of a run that was killed end with it.
// One that is told to end ends early, and clears up.
func TestMain(m *testing.M) {
	apart.Main(m, func(ctx context.Context) (func(context.Context, bool) error, error) {
		interrupted = ctx
		return func(context.Context, bool) error {
			if ctx.Err() != nil {
				<-finished
			}
			return nil
		}, nil
	})
}
