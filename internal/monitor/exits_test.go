package monitor

import (
	"slices"
	"sync"
	"testing"
)

// testQueue counts the goroutines that hand over.
func testQueue() (q *exitQueue, started *int, wait func(), closing chan struct{}) {
	var wg sync.WaitGroup
	started, closing = new(int), make(chan struct{})
	q = &exitQueue{closing: closing, run: func(f func()) bool {
		*started++
		wg.Go(f)
		return true
	}}
	return q, started, wg.Wait, closing
}

func TestExitsAreHandedOverOnDemand(t *testing.T) {
	q, started, wait, _ := testQueue()
	q.put(Exit{order: 1}) // before anybody is there to take it
	var got []uint64
	ends := 0
	q.serve(func(e Exit) { got = append(got, e.order) }, func() { ends++ })
	wait()
	if *started != 1 {
		t.Errorf("%d goroutines for what was there", *started)
	}
	q.put(Exit{order: 2})
	wait() // It ends with nothing left, and another one comes for the next.
	q.put(Exit{order: 3})
	wait()
	if *started != 3 || ends != 0 {
		t.Errorf("%d goroutines, %d ends", *started, ends)
	}
	q.finish()
	wait()
	q.close()
	if !slices.Equal(got, []uint64{1, 2, 3}) || ends != 1 {
		t.Errorf("took %v, %d ends", got, ends)
	}
}

func TestClosedQueueDropsTheRest(t *testing.T) {
	q, _, wait, closing := testQueue()
	var got []uint64
	var ends int
	q.put(Exit{order: 1})
	q.put(Exit{order: 2})
	q.serve(func(e Exit) {
		got = append(got, e.order)
		close(closing)
	}, func() { ends++ })
	wait()
	q.close()
	q.close()
	if !slices.Equal(got, []uint64{1}) || ends != 1 {
		t.Errorf("took %v, %d ends", got, ends)
	}
	// Who comes after that is told at once.
	q.serve(func(Exit) { t.Error("an exit") }, func() { ends++ })
	if ends != 2 {
		t.Errorf("%d ends", ends)
	}
}
