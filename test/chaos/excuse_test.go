package chaos

import (
	"errors"
	"fmt"
	"log"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"
)

// grace is for what goes on after a disturbance that concerns everybody: calls wait
// for each other, and what was put off is done.
const grace = 15 * time.Second

// book has what was done to whom. It excuses, and nothing else does.
type book struct {
	trace  *log.Logger
	mu     sync.Mutex
	kinds  map[string]int
	ids    map[string]bool     // of the pods and containers that were answered for
	killed map[string][]string // what was killed of a pod or container, by its ID
	spells []*spell
}

// spell is a disturbance that concerns everybody.
type spell struct {
	what     string
	writer   bool // who writes the logs was killed
	from, to time.Time
}

func (b *book) begin(what string, writer bool) (end func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := &spell{what: what, writer: writer, from: time.Now()}
	b.spells = append(b.spells, s)
	b.countLocked(what)
	b.trace.Printf("%s", what)
	return func() {
		b.trace.Printf("%s is over", what)
		b.mu.Lock()
		defer b.mu.Unlock()
		s.to = time.Now()
	}
}

// note notes that there is a pod or container.
func (b *book) note(id string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ids == nil {
		b.ids = map[string]bool{}
	}
	b.ids[id] = true
}

func (b *book) known() map[string]bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return maps.Clone(b.ids)
}

// kill notes the end of a pod's or container's process, before it is killed. init: it
// may have become the container's first process when it dies.
func (b *book) kill(id, what string, init bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.killed == nil {
		b.killed = map[string][]string{}
	}
	b.killed[id] = append(b.killed[id], what)
	if init {
		b.killed[id] = append(b.killed[id], "process")
	}
	b.trace.Printf("%s of %s is killed", what, id)
	b.countLocked(what)
}

// forgot counts an exit that containerd, killed, did not write down.
func (b *book) forgot() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.countLocked("exit forgotten by containerd")
}

func (b *book) countLocked(what string) {
	if b.kinds == nil {
		b.kinds = map[string]int{}
	}
	b.kinds[what]++
}

// excuse is why a call that began at from and failed now may have done so; empty if
// it may not. The IDs are those of the pod and of the container that it is about.
func (b *book) excuse(from time.Time, ids ...string) string {
	b.mu.Lock()
	defer b.mu.Unlock()
	var why []string
	for _, id := range ids {
		why = append(why, b.killed[id]...)
	}
	for _, s := range b.spells {
		if s.to.IsZero() || s.to.Add(grace).After(from) {
			why = append(why, s.what)
		}
	}
	return strings.Join(why, ", ")
}

// killer is what ended a container; empty if nothing did.
func (b *book) killer(pod, container string) string {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, what := range append(slices.Clone(b.killed[pod]), b.killed[container]...) {
		if what == "monitor" || what == "holder" || what == "process" {
			return what
		}
	}
	return ""
}

// writerKills is how often who writes the logs was killed since then.
func (b *book) writerKills(since time.Time) (n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, s := range b.spells {
		if s.writer && (s.to.IsZero() || s.to.After(since)) {
			n++
		}
	}
	return n
}

func (b *book) tally() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	var all []string
	for _, what := range slices.Sorted(maps.Keys(b.kinds)) {
		all = append(all, fmt.Sprintf("%d × %s", b.kinds[what], what))
	}
	return strings.Join(all, ", ")
}

// excusedError is a call that failed for a reason that is in the book.
type excusedError struct {
	why string
	err error
}

func (e *excusedError) Error() string { return fmt.Sprintf("%v (excused: %s)", e.err, e.why) }
func (e *excusedError) Unwrap() error { return e.err }

func excused(err error) bool { return errors.As(err, new(*excusedError)) }
