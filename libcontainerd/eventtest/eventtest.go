// Package eventtest checks what a Backend of package libcontainerd is told: a Log
// is a backend that keeps the events, and Check says where they break the
// package's guarantee. Engines can put it in front of their own backend.
package eventtest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"

	"caisson/libcontainerd"
)

// Event is one that the backend took.
type Event struct {
	ID   string
	Type libcontainerd.EventType
	Info libcontainerd.EventInfo
}

func (e Event) String() string {
	s := fmt.Sprintf("%s %s/%s pid %d", e.Type, e.ID, e.Info.ProcessID, e.Info.Pid)
	if e.Type == libcontainerd.EventExit {
		s += fmt.Sprintf(" code %d at %s", e.Info.ExitCode, e.Info.ExitedAt.Format("15:04:05.000000"))
		if e.Info.Error != nil {
			s += ": " + e.Info.Error.Error()
		}
	}
	return s
}

// Log is a backend that remembers. The zero value is ready.
type Log struct {
	// Next, if set, is asked first; an event that it refuses is not in the log.
	Next libcontainerd.Backend

	mu      sync.Mutex
	events  []Event
	changed chan struct{}
}

var _ libcontainerd.Backend = (*Log)(nil)

// ProcessEvent takes the event.
func (l *Log) ProcessEvent(id string, event libcontainerd.EventType, ei libcontainerd.EventInfo) error {
	if l.Next != nil {
		if err := l.Next.ProcessEvent(id, event, ei); err != nil {
			return err
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.events = append(l.events, Event{id, event, ei})
	if l.changed != nil {
		close(l.changed)
		l.changed = nil
	}
	return nil
}

// Events are those of the id, or all if it is empty, in the order they came.
func (l *Log) Events(id string) []Event {
	l.mu.Lock()
	defer l.mu.Unlock()
	var events []Event
	for _, e := range l.events {
		if id == "" || e.ID == id {
			events = append(events, e)
		}
	}
	return events
}

// Wait returns the first event that match accepts, once there is one.
func (l *Log) Wait(ctx context.Context, match func(Event) bool) (Event, error) {
	for from := 0; ; {
		l.mu.Lock()
		events := l.events[from:]
		if l.changed == nil {
			l.changed = make(chan struct{})
		}
		changed := l.changed
		l.mu.Unlock()
		if i := slices.IndexFunc(events, match); i >= 0 {
			return events[i], nil
		}
		from += len(events)
		select {
		case <-changed:
		case <-ctx.Done():
			return Event{}, fmt.Errorf("the event has not come: %w", context.Cause(ctx))
		}
	}
}

// WriteTo writes the events down, one JSON object a line.
func (l *Log) WriteTo(w io.Writer) (n int64, err error) {
	for _, e := range l.Events("") {
		line, err := json.Marshal(struct {
			Event
			Error string `json:",omitempty"`
		}{e, fmt.Sprint(e.Info.Error)})
		if err != nil {
			return n, err
		}
		m, err := w.Write(append(line, '\n'))
		n += int64(m)
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

// Check says what in the log breaks the guarantee, in all containers; nil if
// nothing does. With over, everything that started must have exited, too.
func (l *Log) Check(over bool) error {
	containers := map[string]*container{}
	var errs []error
	for _, e := range l.Events("") {
		c := containers[e.ID]
		if c == nil {
			c = &container{execs: map[string]*process{}}
			containers[e.ID] = c
		}
		if err := c.apply(e); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w; before it: %v", e, err, c.last()))
		}
		c.past = append(c.past, e)
	}
	if over {
		for id, c := range containers {
			if c.init.state == started {
				errs = append(errs, fmt.Errorf("container %q started and never exited: %v", id, c.last()))
			}
		}
	}
	return errors.Join(errs...)
}

// process is what the log has told of one so far.
type process struct {
	state state
	pid   uint32
}

type state string

const (
	none    state = ""
	added   state = "added"
	started state = "started"
	exited  state = "exited"
)

// container is the guarantee as a machine: an event that it has no step for breaks
// it.
type container struct {
	init   process
	paused bool
	execs  map[string]*process
	past   []Event
}

func (c *container) last() []Event { return c.past[max(0, len(c.past)-12):] }

func (c *container) apply(e Event) error {
	if e.Info.ProcessID != e.ID {
		return c.applyExec(e)
	}
	switch e.Type {
	case libcontainerd.EventCreate:
		if c.init.state == started {
			return errors.New("created while it runs")
		}
		c.init, c.paused, c.execs = process{state: added, pid: e.Info.Pid}, false, map[string]*process{}
		return nil
	case libcontainerd.EventStart, libcontainerd.EventExit:
		if e.Type == libcontainerd.EventExit {
			for id, p := range c.execs {
				if p.state == started {
					return fmt.Errorf("exited before its exec %q", id)
				}
			}
		}
		return c.init.step(e)
	}
	if c.init.state != started {
		return fmt.Errorf("the container is %q", c.init.state)
	}
	switch e.Type {
	case libcontainerd.EventPaused, libcontainerd.EventResumed:
		if paused := e.Type == libcontainerd.EventPaused; paused != c.paused {
			c.paused = paused
			return nil
		}
		return errors.New("it was so already")
	case libcontainerd.EventOOM:
		return nil
	}
	return errors.New("no event of a container")
}

func (c *container) applyExec(e Event) error {
	if c.init.state != started {
		return fmt.Errorf("the container is %q", c.init.state)
	}
	p := c.execs[e.Info.ProcessID]
	if e.Type == libcontainerd.EventExecAdded {
		if p != nil && p.state == started {
			return errors.New("the exec runs")
		}
		c.execs[e.Info.ProcessID] = &process{state: added}
		return nil
	}
	if p == nil {
		return errors.New("the exec was not added")
	}
	return p.step(e)
}

func (p *process) step(e Event) error {
	switch {
	case p.state == added && (e.Type == libcontainerd.EventStart || e.Type == libcontainerd.EventExecStarted):
		p.state, p.pid = started, e.Info.Pid
		return nil
	case p.state == started && e.Type == libcontainerd.EventExit:
		p.state = exited
		if e.Info.Pid != p.pid {
			return fmt.Errorf("exit of pid %d, which started as %d", e.Info.Pid, p.pid)
		}
		return nil
	}
	return fmt.Errorf("the process is %q", p.state)
}
