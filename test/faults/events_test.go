package faults

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"

	"github.com/containerd/containerd/api/events"
	ttrpcevents "github.com/containerd/containerd/api/services/ttrpc/events/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/ttrpc"
	"github.com/containerd/typeurl/v2"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"
)

// receiver takes the daemon's events as containerd does.
type receiver struct {
	srv    *ttrpc.Server
	served chan error

	mu   sync.Mutex // guards all below
	all  []*types.Envelope
	more chan struct{} // closed and replaced when all grows
}

func receive(path string) (*receiver, error) {
	srv, err := ttrpc.NewServer()
	if err != nil {
		return nil, err
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	r := &receiver{srv: srv, served: make(chan error, 1), more: make(chan struct{})}
	ttrpcevents.RegisterTTRPCEventsService(srv, r)
	go func() { r.served <- srv.Serve(context.Background(), l) }()
	return r, nil
}

// Forward is containerd's.
func (r *receiver) Forward(_ context.Context, req *ttrpcevents.ForwardRequest) (*emptypb.Empty, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.all = append(r.all, req.GetEnvelope())
	close(r.more)
	r.more = make(chan struct{})
	return &emptypb.Empty{}, nil
}

func (r *receiver) close() error {
	err := r.srv.Close()
	if served := <-r.served; !errors.Is(served, ttrpc.ErrServerClosed) {
		err = errors.Join(err, served)
	}
	return err
}

// of returns what was told of a container, oldest first, as words. Envelopes that
// came again are in again.
func (r *receiver) of(container string) (words []string, again int, more <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var seen []*types.Envelope
	for _, e := range r.all {
		id, word := describe(e)
		if id != container {
			continue
		}
		if slices.ContainsFunc(seen, func(other *types.Envelope) bool { return proto.Equal(other, e) }) {
			again++
			continue
		}
		seen = append(seen, e)
		words = append(words, word)
	}
	return words, again, r.more
}

// describe tells whose an event is, and what it says.
func describe(e *types.Envelope) (container, word string) {
	any, err := typeurl.UnmarshalAny(e.GetEvent())
	if err != nil {
		return "", err.Error()
	}
	word = strings.TrimPrefix(e.GetTopic(), "/tasks/")
	switch ev := any.(type) {
	case *events.TaskCreate:
		return ev.ContainerID, word
	case *events.TaskStart:
		return ev.ContainerID, word
	case *events.TaskExit:
		if ev.ID != ev.ContainerID {
			return ev.ID, fmt.Sprintf("%s %d", word, ev.ExitStatus)
		}
		return ev.ContainerID, fmt.Sprintf("%s %d", word, ev.ExitStatus)
	case *events.TaskDelete:
		return ev.ContainerID, fmt.Sprintf("%s %d", word, ev.ExitStatus)
	case *events.TaskPaused:
		return ev.ContainerID, word
	case *events.TaskResumed:
		return ev.ContainerID, word
	case *events.TaskCheckpointed:
		return ev.ContainerID, word
	case *events.TaskExecAdded:
		return ev.ExecID, word
	case *events.TaskExecStarted:
		return ev.ExecID, word
	}
	return "", word
}

// await waits until the last that was told of a container is word.
func (r *receiver) await(ctx context.Context, container, word string) error {
	for {
		words, _, more := r.of(container)
		if len(words) > 0 && words[len(words)-1] == word {
			return nil
		}
		select {
		case <-more:
		case <-ctx.Done():
			return fmt.Errorf("no event %q of %s: %q", word, container, words)
		}
	}
}
