package cli

import (
	"encoding/json"
	"strings"
	"testing"

	eventtypes "github.com/containerd/containerd/api/events"
	"github.com/containerd/containerd/v2/core/events"
	"github.com/containerd/typeurl/v2"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

func envelope(t *testing.T, topic string, m proto.Message) *events.Envelope {
	t.Helper()
	e := &events.Envelope{Timestamp: now, Namespace: "default", Topic: topic}
	if m != nil {
		data, err := typeurl.MarshalAny(m)
		if err != nil {
			t.Fatal(err)
		}
		e.Event = data
	}
	return e
}

func TestEventRow(t *testing.T) {
	for _, c := range []struct {
		topic                     string
		event                     proto.Message
		container, sandbox, image string
		line                      string
	}{
		{"/tasks/exit", &eventtypes.TaskExit{ContainerID: "web", ID: "web", Pid: 7}, "web", "", "", "container_id=web exit_status=0 id=web pid=7"},
		{"/containers/create", &eventtypes.ContainerCreate{ID: "web", Image: "demo", Runtime: &eventtypes.ContainerCreate_Runtime{
			Name: "r", Options: &anypb.Any{TypeUrl: "nobody.knows"},
		}}, "web", "", "demo", "id=web image=demo"},
		{"/sandboxes/start", &eventtypes.SandboxStart{SandboxID: "pod1"}, "", "pod1", "", "sandbox_id=pod1"},
		{"/images/delete", &eventtypes.ImageDelete{Name: "a b\x1b"}, "", "", "a b\x1b", `name="a b\x1b"`},
		{"/custom", nil, "", "", "", ""},
	} {
		r := newEventRow(envelope(t, c.topic, c.event))
		if r.Container != c.container || r.Sandbox != c.sandbox || r.Image != c.image {
			t.Errorf("%s: %+v", c.topic, r)
		}
		if want := strings.TrimSpace("2026-08-01T12:00:00.000000000Z " + c.topic + " " + c.line); r.line() != want {
			t.Errorf("line %q, want %q", r.line(), want)
		}
	}
	unknown := envelope(t, "/x/y/z", nil)
	unknown.Event = &anypb.Any{TypeUrl: "nobody.knows"}
	if r := newEventRow(unknown); r.Type != "x" || r.Action != "y/z" || r.Event["typeUrl"] != "nobody.knows" {
		t.Errorf("of an unknown type: %+v", r)
	}
}

func TestEventFilters(t *testing.T) {
	exit := newEventRow(envelope(t, "/tasks/exit", &eventtypes.TaskExit{ContainerID: "web"}))
	image := newEventRow(envelope(t, "/images/create", &eventtypes.ImageCreate{Name: "docker.io/library/demo:latest"}))
	for _, c := range []struct {
		filters     string
		exit, image bool
	}{
		{"", true, true},
		{"container=web", true, false},
		{"container=web container=db", true, false},
		{"container=db", false, false},
		{"container=web event=start", false, false},
		{"type=tasks event=exit", true, false},
		{"topic=/tasks/exit", true, false},
		{"image=demo:latest", false, true},
		{"image=demo", false, true},
		{"image=docker.io/library/demo:latest", false, true},
	} {
		f := &filter[eventRow]{fields: eventFilters}
		err := f.parse(strings.Fields(c.filters))
		if err != nil {
			t.Fatal(err)
		}
		if f.match(exit) != c.exit || f.match(image) != c.image {
			t.Errorf("%s: exit %v, image %v", c.filters, f.match(exit), f.match(image))
		}
	}
	for _, bad := range []string{"web", "container=", "=x", "colour=red", ""} {
		if code, _, stderr := runCLI(t, "events", "--filter", bad); code != 1 || !strings.Contains(stderr, "the names are container, event") {
			t.Errorf("--filter %q: code %d, %q", bad, code, stderr)
		}
	}
	for args, want := range map[string]string{"--format yaml": "unknown format", "--format {{.x": "no Go template", "x": "takes no arguments", "--address /no/such.sock": "no caissond"} {
		if code, _, stderr := runCLI(t, append([]string{"events"}, strings.SplitN(args, " ", 2)...)...); code != 1 || !strings.Contains(stderr, want) {
			t.Errorf("events %s: code %d, %q", args, code, stderr)
		}
	}
}

func TestEventJSON(t *testing.T) {
	var out strings.Builder
	a := &app{sys: System{Stdout: &out}}
	row := newEventRow(envelope(t, "/tasks/exit", &eventtypes.TaskExit{ContainerID: "web", ExitStatus: 3}))
	if err := a.showEvent(row, output{format: "json"}); err != nil {
		t.Fatal(err)
	}
	var got map[string]any
	if err := json.Unmarshal([]byte(out.String()), &got); err != nil || strings.Count(out.String(), "\n") != 1 || got["action"] != "exit" {
		t.Errorf("%s, %v", out.String(), err)
	}
	out.Reset()
	if err := a.showEvent(row, output{format: "{{.action}} {{.container}} {{.event.exit_status}}"}); err != nil || out.String() != "exit web 3\n" {
		t.Errorf("%q, %v", out.String(), err)
	}
}
