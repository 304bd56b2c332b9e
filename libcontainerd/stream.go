package libcontainerd

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"

	apievents "github.com/containerd/containerd/api/events"
	"github.com/containerd/containerd/v2/core/events"
	"github.com/containerd/typeurl/v2"
	"google.golang.org/protobuf/types/known/timestamppb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// markTopic is of events by which a client sees that its subscription is there:
// containerd does not say so.
const markTopic = "/libcontainerd/subscribed"

const markInterval = 100 * time.Millisecond

// listen follows containerd's events, which tell what other programs do and what
// cannot be asked for. What happens while they cannot be had is asked for when they
// can be had again.
func (c *client) listen(ctx context.Context) {
	for wait := retryFirst; ; wait = min(2*wait, retryLast) {
		begin := time.Now()
		err := c.follow(ctx)
		if ctx.Err() != nil {
			return
		}
		if time.Since(begin) > retryLast {
			wait = retryFirst
		}
		c.log.WithError(err).Info("event stream broke and is opened again")
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

// follow subscribes and applies events until the stream breaks.
func (c *client) follow(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	of := "namespace==" + c.ns + ",topic"
	stream, errs := c.server.EventService().Subscribe(ctx, of+"~=|^/tasks/|", of+"~=|^/sandboxes/|", of+"=="+strconv.Quote(markTopic))
	before := map[*ledger]*run{} // what is known before the mark is published
	for _, l := range c.all() {
		if r := l.current(); r != nil {
			before[l] = r
		}
	}
	mark := rand.Text()
	marked := make(chan struct{})
	if !c.spawn(func(context.Context) { c.mark(ctx, mark, marked) }) {
		return context.Canceled
	}
	for seen := false; ; {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-errs:
			if err == nil {
				err = io.EOF
			}
			return failed(err, "events")
		case ev := <-stream:
			if ev.Topic != markTopic {
				c.apply(ev)
				continue
			}
			if !seen && markOf(ev) == mark {
				seen = true
				close(marked)
				for l, r := range before {
					l.hear(r)
				}
				c.hears.Store(true)
				defer c.hears.Store(false)
				c.spawn(func(context.Context) { c.reconcileAll(ctx) })
			}
		}
	}
}

// mark publishes the mark until it is seen: one that came before the subscription
// is not delivered.
func (c *client) mark(ctx context.Context, mark string, seen <-chan struct{}) {
	for {
		if err := c.server.EventService().Publish(ctx, markTopic, wrapperspb.String(mark)); err != nil && ctx.Err() == nil {
			c.log.WithError(err).Debug("mark not published")
		}
		select {
		case <-seen:
			return
		case <-ctx.Done():
			return
		case <-time.After(markInterval):
		}
	}
}

func markOf(ev *events.Envelope) string {
	var s wrapperspb.StringValue
	if ev.Event == nil || typeurl.UnmarshalTo(ev.Event, &s) != nil {
		return ""
	}
	return s.Value
}

// reconcileAll asks for the state of everything, after events may have been missed.
// One that cannot be had is asked for again as long as the stream lasts.
func (c *client) reconcileAll(ctx context.Context) {
	todo := c.all()
	for wait := retryFirst; ; wait = min(2*wait, retryLast) {
		var again []*ledger
		for _, l := range todo {
			if err := c.reconcile(ctx, l); err != nil && ctx.Err() == nil {
				c.log.WithError(err).WithField("container", l.id).Debug("state not known yet")
				again = append(again, l)
			}
		}
		if todo = again; len(todo) == 0 {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

// apply writes an event down, if it is about something that the client knows.
func (c *client) apply(ev *events.Envelope) {
	if ev.Event == nil {
		return
	}
	v, err := typeurl.UnmarshalAny(ev.Event)
	if err != nil {
		c.log.WithError(err).WithField("topic", ev.Topic).Warn("event not understood")
		return
	}
	if err := c.applyEvent(v); err != nil && !errors.Is(err, errIgnored) {
		c.log.WithError(err).WithField("topic", ev.Topic).Warn("event not understood")
	}
}

// errIgnored: the event is about something that the client was not asked to follow.
var errIgnored = fmt.Errorf("not followed")

func (c *client) applyEvent(v any) error {
	switch e := v.(type) {
	case *apievents.SandboxStart:
		return c.sandboxStarted(e.SandboxID)
	case *apievents.SandboxCreate, *apievents.SandboxExit:
		return errIgnored // who creates one knows, and who knows one waits for its exit
	}
	named, ok := v.(interface{ GetContainerID() string })
	if !ok {
		return errIgnored
	}
	l := c.ledger(containers, named.GetContainerID())
	if l == nil {
		return errIgnored
	}
	switch e := v.(type) {
	case *apievents.TaskCreate:
		if !l.created(e.Pid) {
			c.ask(l)
		}
	case *apievents.TaskStart:
		if !l.started(e.Pid) {
			c.ask(l)
		}
	case *apievents.TaskExit:
		if e.ID == e.ContainerID {
			l.ended(e.Pid, exitOf(e.ExitStatus, e.ExitedAt))
		} else {
			l.execEnded(e.ID, e.Pid, exitOf(e.ExitStatus, e.ExitedAt))
		}
	case *apievents.TaskDelete:
		if e.ID == "" || e.ID == e.ContainerID {
			l.taskDeleted(e.Pid, exitOf(e.ExitStatus, e.ExitedAt))
		}
	case *apievents.TaskExecAdded:
		l.execAdded(e.ExecID)
	case *apievents.TaskExecStarted:
		l.execStarted(e.ExecID, e.Pid)
	case *apievents.TaskOOM:
		l.oom()
	case *apievents.TaskPaused:
		l.paused(true)
	case *apievents.TaskResumed:
		l.paused(false)
	}
	return nil
}

// sandboxStarted asks whether it is this sandbox that started, and for its pid: the
// event may be late and about an earlier one of the id.
func (c *client) sandboxStarted(id string) error {
	l := c.ledger(sandboxes, id)
	if l == nil {
		return errIgnored
	}
	var known bool
	l.sandbox(func(p *process) {
		known = p.calling || p.started
		p.starting = p.starting || !known
	})
	if !known {
		c.ask(l)
	}
	return nil
}

func exitOf(code uint32, at *timestamppb.Timestamp) exit {
	return exit{Code: code, At: at.AsTime()}
}
