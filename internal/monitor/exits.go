package monitor

import "sync"

// exitQueue keeps exits for their consumer, so that the reader goes on whatever that
// does. It never holds more than the monitor has unacknowledged records.
//
// A goroutine hands them over for as long as there are any, and no longer: there are as
// many queues as sandboxes, and nearly all of them have nothing to tell.
type exitQueue struct {
	run     func(func()) bool // in a goroutine that Close waits for; false: it is closed
	closing <-chan struct{}

	mu    sync.Mutex // guards what follows
	take  func(Exit)
	end   func() // nil before serve, and once it was called
	queue []Exit
	busy  bool // the goroutine is there
	ended bool // nothing more will come
}

// serve names the consumer, of what was put before as well.
func (q *exitQueue) serve(take func(Exit), end func()) {
	q.mu.Lock()
	q.take, q.end = take, end
	q.wakeLocked()
	q.mu.Unlock()
	select {
	case <-q.closing:
		q.close()
	default:
	}
}

func (q *exitQueue) put(e Exit) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.queue = append(q.queue, e)
	q.wakeLocked()
}

// finish says that nothing more will come.
func (q *exitQueue) finish() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.ended = true
	q.wakeLocked()
}

func (q *exitQueue) wakeLocked() {
	if !q.busy && q.end != nil && (len(q.queue) > 0 || q.ended) {
		q.busy = q.run(q.deliver)
	}
}

// deliver hands over what there is, or what there is until closing.
func (q *exitQueue) deliver() {
	for {
		batch, over := q.next()
		for _, e := range batch {
			select {
			case <-q.closing:
				return
			default:
				q.take(e)
			}
		}
		if over {
			q.close()
		}
		if len(batch) == 0 {
			return
		}
	}
}

// next is what there is to hand over; if it is nothing, the goroutine ends, and over
// tells whether nothing more will come.
func (q *exitQueue) next() (batch []Exit, over bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	batch, q.queue = q.queue, nil
	q.busy = len(batch) > 0
	return batch, !q.busy && q.ended
}

// close tells the consumer that it was handed the last one, if it was not told.
func (q *exitQueue) close() {
	q.mu.Lock()
	end := q.end
	q.end = nil
	q.mu.Unlock()
	if end != nil {
		end()
	}
}
