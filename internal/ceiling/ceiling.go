// Package ceiling guards hot paths: a benchmark that makes more allocations for one
// operation than it says fails. Times differ from machine to machine, allocations do
// not. It is for tests only.
package ceiling

import (
	"runtime"
	"testing"
)

// Allocs starts to count; what it returns ends that, and is called after the last
// operation. Others that run in the process are counted as well: the ceiling is some
// way above what is measured.
func Allocs(b *testing.B, perOp uint64) (stop func()) {
	b.Helper()
	b.ReportAllocs()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	return func() {
		b.Helper()
		if b.Failed() {
			return
		}
		runtime.ReadMemStats(&after)
		if got := (after.Mallocs - before.Mallocs) / uint64(b.N); got > perOp {
			b.Errorf("%d allocations for one operation, more than %d", got, perOp)
		}
	}
}
