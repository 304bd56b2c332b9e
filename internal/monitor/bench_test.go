package monitor

import (
	"testing"

	"caisson/internal/ceiling"
)

// BenchmarkList is a request and its reply.
func BenchmarkList(b *testing.B) {
	c := startMonitor(b)
	ctx := testContext(b)
	defer ceiling.Allocs(b, 30)()
	for b.Loop() {
		if _, err := c.List(ctx); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkStart is the life of a monitor.
func BenchmarkStart(b *testing.B) {
	bin, dir := installed(b), shortDir(b)
	ctx := testContext(b)
	defer ceiling.Allocs(b, 300)()
	for b.Loop() {
		c, err := Start(ctx, Config{Binary: bin, Dir: dir, Name: "bench"})
		if err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		endMonitor(b, c)
		b.StartTimer()
	}
}
