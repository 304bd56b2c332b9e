package events

import (
	"context"
	"fmt"

	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/v2/pkg/identifiers"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"caisson/internal/fault"
)

// Publish records the event for the namespace of ctx, with the present time, and returns
// when it is recorded; it is sent later. An event whose non-empty key is known is not
// recorded again, which is a success. After an error the event is not recorded and its key
// not known: ResourceExhausted means a full file system or an oversized event, Unavailable
// a closed journal, InvalidArgument an event or topic that containerd would refuse.
func (j *Journal) Publish(ctx context.Context, key, topic string, event any) error {
	return j.publish(ctx, key, topic, event, false)
}

// Tell is Publish for a fact, which has a key: if it cannot be written, it is kept in
// memory, sent in its turn, and written before the next record. The error, of the same
// classes, says that it is not safe from a kill yet; to tell it again is to ask whether it
// is now.
func (j *Journal) Tell(ctx context.Context, key, topic string, event any) error {
	return j.publish(ctx, key, topic, event, true)
}

func (j *Journal) publish(ctx context.Context, key, topic string, event any, fact bool) error {
	envelope, err := newEnvelope(ctx, topic, event)
	if err != nil {
		return fmt.Errorf("event %q: publish: %w", topic, err)
	}
	if err := j.append(key, envelope, fact); err != nil {
		return fmt.Errorf("event %q: publish: %w", topic, err)
	}
	return nil
}

func newEnvelope(ctx context.Context, topic string, event any) ([]byte, error) {
	ns, err := namespaces.NamespaceRequired(ctx)
	if err != nil {
		return nil, err
	}
	if err := checkTopic(topic); err != nil {
		return nil, err
	}
	switch event.(type) {
	case proto.Message, typeurl.Any:
	default: // typeurl panics on some
		return nil, fmt.Errorf("%T is no protobuf message: %w", event, errdefs.ErrInvalidArgument)
	}
	body, err := typeurl.MarshalAnyToProto(event)
	if err != nil {
		return nil, fmt.Errorf("marshal %T: %w: %w", event, err, errdefs.ErrInvalidArgument)
	}
	return proto.Marshal(&types.Envelope{
		Timestamp: timestamppb.Now(),
		Namespace: ns,
		Topic:     topic,
		Event:     body,
	})
}

// checkTopic finds early, where the caller can still be told, what containerd would refuse.
func checkTopic(topic string) error {
	if len(topic) < 2 || topic[0] != '/' {
		return fmt.Errorf("topic must start with '/' and have a component: %w", errdefs.ErrInvalidArgument)
	}
	for start := 1; start <= len(topic); {
		end := start
		for end < len(topic) && topic[end] != '/' {
			end++
		}
		if err := identifiers.Validate(topic[start:end]); err != nil {
			return fmt.Errorf("topic: %w", err)
		}
		start = end + 1
	}
	return nil
}

func (j *Journal) append(key string, envelope []byte, fact bool) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.closed {
		return fmt.Errorf("journal is closed: %w", errdefs.ErrUnavailable)
	}
	owed := j.writeOwedLocked()
	if _, ok := j.known[key]; ok || key == "" && j.forward == nil {
		return owed
	}
	r := record{seq: j.lastSeq + 1, key: key, envelope: envelope}
	if j.forward == nil {
		r = record{key: key} // owed to nobody
	}
	err := owed
	if err == nil {
		err = j.writeLocked(r)
	}
	if err != nil && !fact {
		return err
	}
	if err != nil {
		j.unwritten = append(j.unwritten, r)
	}
	fault.Point("event:written")
	j.addKeyLocked(key)
	if j.forward != nil {
		j.lastSeq = r.seq
		j.pending = append(j.pending, r)
		select {
		case j.wake <- struct{}{}:
		default:
		}
	}
	j.maybeCompactLocked()
	return err
}

// writeOwedLocked writes what Tell could not write.
func (j *Journal) writeOwedLocked() error {
	for len(j.unwritten) > 0 {
		if err := j.writeLocked(j.unwritten[0]); err != nil {
			return err
		}
		j.unwritten = j.unwritten[1:]
	}
	return nil
}
