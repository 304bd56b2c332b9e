package tracing

import (
	"context"
	"testing"
)

// BenchmarkChild is what a span costs while nobody traces.
func BenchmarkChild(b *testing.B) {
	ctx := context.Background()
	b.ReportAllocs()
	for b.Loop() {
		_, done := Child(ctx, "monitor.spawn")
		done(nil)
	}
}

// Nothing is spent on traces that nobody has asked for.
func TestChildIsFree(t *testing.T) {
	ctx := context.Background()
	if n := testing.AllocsPerRun(100, func() {
		_, done := Child(ctx, "monitor.spawn")
		done(nil)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
