package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	eventtypes "github.com/containerd/containerd/api/events"
	"github.com/containerd/containerd/v2/core/events"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/typeurl/v2"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// eventRow is an event as `events` shows it.
type eventRow struct {
	Time      *time.Time     `json:"time"`
	Namespace string         `json:"namespace"`
	Topic     string         `json:"topic"`
	Type      string         `json:"type"`   // the topic's first word: tasks, containers, sandboxes, ...
	Action    string         `json:"action"` // and the rest of it: start, exit, ...
	Container string         `json:"container"`
	Sandbox   string         `json:"sandbox"`
	Image     string         `json:"image"`
	Event     map[string]any `json:"event"` // all that came with it
}

func (a *app) eventsCommand() *cobra.Command {
	var wanted *filter[eventRow]
	var o output
	cmd := &cobra.Command{
		Use:   "events",
		Short: "Show what happens, as it happens",
		Long: "Show the daemon's events of the namespace from now on, until it is interrupted. A filter is one of\n" +
			"container, sandbox, image, type (tasks, containers, sandboxes, ...), event (start, exit, ...) or\n" +
			"topic (/tasks/start). " + filterHelp,
		Example: "  caisson events\n  caisson events --filter container=web --filter event=exit --format json\n" +
			"  caisson events --filter type=tasks --format '{{.action}} {{.container}}'",
		Args: atMost(0, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if isTable(o.format) {
				return advise(errdefs.ErrInvalidArgument, "events come one by one, so there is no table of them: leave %q out of --format", strings.TrimSpace(tablePrefix))
			}
			if o.format != "" {
				if err := o.check(); err != nil {
					return err
				}
			}
			return a.events(cmd.Context(), wanted, o)
		},
	}
	wanted = addFilter(cmd, eventFilters)
	cmd.Flags().StringVar(&o.format, "format", "", "how to show it: lines if empty, json, or a Go template of the JSON's names, such as '{{.action}}'")
	return cmd
}

var eventFilters = filterFields[eventRow]{
	"container": oneOf(func(r eventRow) string { return r.Container }),
	"sandbox":   oneOf(func(r eventRow) string { return r.Sandbox }),
	"image":     anImage(func(r eventRow) string { return r.Image }),
	"type":      oneOf(func(r eventRow) string { return r.Type }),
	"event":     oneOf(func(r eventRow) string { return r.Action }),
	"topic":     oneOf(func(r eventRow) string { return r.Topic }),
}

func (a *app) events(ctx context.Context, wanted *filter[eventRow], o output) error {
	ctx, c, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	return a.whileRead(ctx, func(ctx context.Context) error { return c.showEvents(ctx, wanted, o) })
}

func (c *client) showEvents(ctx context.Context, wanted *filter[eventRow], o output) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	envelopes, errs := c.Subscribe(ctx, "namespace=="+c.app.namespace)
	for {
		select {
		case e := <-envelopes:
			row := newEventRow(e)
			if !wanted.match(row) {
				continue
			}
			if err := c.app.showEvent(row, o); err != nil {
				return err
			}
		case err := <-errs:
			if ctx.Err() != nil {
				return nil // how one ends it
			}
			return fmt.Errorf("events: %w", errgrpc.ToNative(err))
		case <-ctx.Done():
			return nil
		}
	}
}

func (a *app) showEvent(r eventRow, o output) error {
	switch {
	case o.format == "json":
		enc := json.NewEncoder(a.sys.Stdout)
		enc.SetEscapeHTML(false)
		return enc.Encode(r)
	case isTemplate(o.format):
		return writeEach(a.sys.Stdout, o.format, []eventRow{r})
	}
	_, err := fmt.Fprintln(a.sys.Stdout, r.line())
	return err
}

// line is an event for people: when, what, to whom and the rest in a fixed order.
func (r eventRow) line() string {
	at := "-"
	if r.Time != nil {
		at = r.Time.Format("2006-01-02T15:04:05.000000000Z07:00")
	}
	words := []string{at, printable(r.Topic)}
	for _, key := range slices.Sorted(maps.Keys(r.Event)) {
		switch v := r.Event[key].(type) {
		case nil, map[string]any, []any:
		case string:
			if strings.ContainsAny(v, " \"") {
				v = fmt.Sprintf("%q", v)
			}
			words = append(words, key+"="+printable(v))
		default:
			words = append(words, fmt.Sprintf("%s=%v", key, v))
		}
	}
	return strings.Join(words, " ")
}

func newEventRow(e *events.Envelope) eventRow {
	row := eventRow{Time: stamp(e.Timestamp), Namespace: e.Namespace, Topic: e.Topic, Event: map[string]any{}}
	row.Type, row.Action, _ = strings.Cut(strings.TrimPrefix(e.Topic, "/"), "/")
	if e.Event == nil {
		return row
	}
	data, err := typeurl.UnmarshalAny(e.Event)
	if err != nil {
		row.Event["typeUrl"] = e.Event.GetTypeUrl() // of somebody's own: no less an event
		return row
	}
	message, ok := data.(proto.Message)
	if !ok {
		return row
	}
	row.Event = eventFieldsOf(message)
	switch m := data.(type) {
	case *eventtypes.ContainerCreate:
		row.Container, row.Image = m.GetID(), m.GetImage()
	case *eventtypes.ContainerUpdate:
		row.Container, row.Image = m.GetID(), m.GetImage()
	case *eventtypes.ContainerDelete:
		row.Container = m.GetID()
	case *eventtypes.ImageCreate:
		row.Image = m.GetName()
	case *eventtypes.ImageUpdate:
		row.Image = m.GetName()
	case *eventtypes.ImageDelete:
		row.Image = m.GetName()
	case interface{ GetContainerID() string }:
		row.Container = m.GetContainerID()
	case interface{ GetSandboxID() string }:
		row.Sandbox = m.GetSandboxID()
	}
	return row
}

// eventFieldsOf is a message as JSON has it, with the numbers that are zero: an exit
// status of 0 is news.
func eventFieldsOf(message proto.Message) map[string]any {
	// Options are of a type that perhaps only the runtime knows, which has no JSON.
	if m, ok := message.(*eventtypes.ContainerCreate); ok && m.GetRuntime().GetOptions() != nil {
		m = proto.CloneOf(m)
		m.Runtime.Options = nil
		message = m
	}
	fields := map[string]any{}
	blob, err := protojson.MarshalOptions{UseProtoNames: true, EmitDefaultValues: true}.Marshal(message)
	if err == nil {
		err = json.Unmarshal(blob, &fields)
	}
	if err != nil {
		return map[string]any{"typeUrl": string(message.ProtoReflect().Descriptor().FullName())}
	}
	for _, key := range slices.Collect(maps.Keys(fields)) {
		if s, ok := fields[key].(string); ok && s == "" {
			delete(fields, key)
		}
	}
	return fields
}
