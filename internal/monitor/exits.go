package monitor

import "sync"

// exitQueue lets the reader go on whatever the consumer of exits does. It
// never holds more than the monitor has unacknowledged records.
type exitQueue struct {
	out  chan Exit
	wake chan struct{} // of one: something changed

	mu    sync.Mutex // guards what follows
	queue []Exit
	ended bool // nothing more will come
}

func newExitQueue() *exitQueue {
	return &exitQueue{out: make(chan Exit), wake: make(chan struct{}, 1)}
}

func (q *exitQueue) put(e Exit) {
	q.mu.Lock()
	q.queue = append(q.queue, e)
	q.mu.Unlock()
	q.signal()
}

func (q *exitQueue) end() {
	q.mu.Lock()
	q.ended = true
	q.mu.Unlock()
	q.signal()
}

func (q *exitQueue) signal() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// take returns what is queued, and whether more can come.
func (q *exitQueue) take() (batch []Exit, more bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	batch, q.queue = q.queue, nil
	return batch, !q.ended
}

// run delivers until all that came before the connection's end is delivered,
// or until closing.
func (q *exitQueue) run(closing <-chan struct{}) {
	defer close(q.out)
	for {
		batch, more := q.take()
		for _, e := range batch {
			select {
			case q.out <- e:
			case <-closing:
				return
			}
		}
		if len(batch) > 0 {
			continue
		}
		if !more {
			return
		}
		select {
		case <-q.wake:
		case <-closing:
			return
		}
	}
}
