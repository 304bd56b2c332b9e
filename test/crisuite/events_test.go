package crisuite

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/status"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// events subscribes to the server's, and returns when it is certain to get all
// that come.
func (s *server) events() <-chan *runtime.ContainerEventResponse {
	s.t.Helper()
	ctx, cancel := context.WithCancel(s.Host.Context(2 * time.Minute))
	s.t.Cleanup(cancel)
	stream, err := s.GetContainerEvents(ctx, &runtime.GetEventsRequest{})
	if err != nil {
		s.t.Fatalf("GetContainerEvents: %v", err)
	}
	events := make(chan *runtime.ContainerEventResponse, 10000) // other specs make events, too
	go func() {
		defer close(events)
		for {
			event, err := stream.Recv()
			if err != nil {
				if err != io.EOF && ctx.Err() == nil {
					s.t.Errorf("events: %s", status.Convert(err))
				}
				return
			}
			events <- event
		}
	}()
	marker := s.pod()
	s.poll(func() error { // the answer to the subscription is the first event
		s.removeContainer(marker.create("marker", "exit"))
		if len(events) == 0 {
			return fmt.Errorf("no events")
		}
		return nil
	})
	return events
}

// describe tells what an event says, without what differs from run to run.
func (p *pod) describe(e *runtime.ContainerEventResponse) string {
	who := "pod"
	if e.ContainerId != p.id {
		who = "container"
	}
	text := fmt.Sprintf("%s %s", who, strings.TrimSuffix(strings.TrimPrefix(e.ContainerEventType.String(), "CONTAINER_"), "_EVENT"))
	if e.PodSandboxStatus == nil {
		text += ", no pod"
	} else {
		text += ", pod " + strings.TrimPrefix(e.PodSandboxStatus.State.String(), "SANDBOX_")
	}
	for _, c := range e.ContainersStatuses {
		text += fmt.Sprintf(", %s %s", c.Metadata.Name, strings.TrimPrefix(c.State.String(), "CONTAINER_"))
		if c.State == stateExited {
			text += fmt.Sprintf(" %s %d", c.Reason, c.ExitCode)
		}
	}
	return text
}

// TestEvents follows a pod as kubelet does with evented PLEG: each change comes
// once, in order, with the status that it led to.
func TestEvents(t *testing.T) {
	compare(t, func(t *testing.T, s *server) []string {
		events := s.events()
		start := time.Now()
		p := s.pod()
		ids := []string{p.id, p.launch("short", "read line; exit 9", func(cfg *runtime.ContainerConfig) { cfg.Stdin = true })}
		var got []string
		expect := func(n int) { // the next n events of the pod
			for range n {
				select {
				case e := <-events:
					for !slices.Contains(ids, e.GetContainerId()) {
						if e == nil {
							t.Fatalf("the events end after\n%s", strings.Join(got, "\n"))
						}
						e = <-events
					}
					if at := time.Unix(0, e.CreatedAt); at.Before(start) || at.After(time.Now()) {
						t.Errorf("event of %s, at %s", at, time.Now())
					}
					if e.PodSandboxStatus != nil && e.PodSandboxStatus.Id != p.id {
						t.Errorf("event with the status of another pod: %v", e)
					}
					got = append(got, p.describe(e))
				case <-time.After(time.Minute):
					t.Fatalf("no event after\n%s", strings.Join(got, "\n"))
				}
			}
		}
		expect(4)
		s.say(s.attach(ids[1], false).Stdin, "end\n")
		expect(1)
		s.removeContainer(ids[1])
		expect(1)
		p.stop()
		expect(1)
		ask(s, s.RemovePodSandbox, &runtime.RemovePodSandboxRequest{PodSandboxId: p.id})
		expect(1)
		return got
	})
}

// TestEventsOfKilled: a container that StopContainer has to kill, and one that
// goes down with its pod, stop once.
func TestEventsOfKilled(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		events := s.events()
		p := s.pod()
		killed, dragged := p.sleeper("killed"), p.sleeper("dragged")
		s.stopContainer(killed, 0)
		p.stop()
		ask(s, s.RemovePodSandbox, &runtime.RemovePodSandboxRequest{PodSandboxId: p.id})
		got := map[string][]string{}
		for gone := false; !gone; {
			select {
			case e := <-events:
				if slices.Contains([]string{killed, dragged, p.id}, e.GetContainerId()) {
					kind := strings.TrimSuffix(strings.TrimPrefix(e.ContainerEventType.String(), "CONTAINER_"), "_EVENT")
					got[e.ContainerId] = append(got[e.ContainerId], kind)
					gone = e.ContainerId == p.id && kind == "DELETED"
				}
			case <-time.After(time.Minute):
				t.Fatalf("no event after %v", got)
			}
		}
		life := []string{"CREATED", "STARTED", "STOPPED", "DELETED"}
		equal(t, "events by who they are of", map[string][]string{killed: life, dragged: life, p.id: life}, got)
	})
}
