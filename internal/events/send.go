package events

import (
	"context"
	"fmt"
	"time"

	"github.com/containerd/containerd/api/types"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"google.golang.org/protobuf/proto"

	"caisson/internal/fault"
)

// send is the one sender: it hands over the oldest unsent event until the Forwarder takes
// it, marks it, goes on with the next, and owns the files' end.
func (j *Journal) send(ctx context.Context) {
	defer close(j.done)
	defer func() {
		j.mu.Lock()
		defer j.mu.Unlock()
		if err := j.closeFiles(); err != nil {
			log.L.WithError(err).WithField("path", j.path()).Error("event journal: close")
		}
	}()
	for {
		r, ok := j.next()
		if !ok {
			return
		}
		if !j.deliver(ctx, r) {
			return
		}
		if err := j.markSent(r.seq); err != nil {
			log.L.WithError(err).WithField("path", j.path()).
				Warn("event journal: mark not written; the event is sent again if the daemon is killed now")
		}
	}
}

// next waits for an unsent event; false means that the journal is being closed.
func (j *Journal) next() (record, bool) {
	for {
		select {
		case <-j.stop:
			return record{}, false
		default:
		}
		j.mu.Lock()
		if len(j.pending) > 0 {
			r := j.pending[0]
			j.mu.Unlock()
			return r, true
		}
		j.mu.Unlock()
		select {
		case <-j.wake:
		case <-j.stop:
		}
	}
}

// deliver tries until the event is taken or refused; false means that the journal is being
// closed and the event still owed.
func (j *Journal) deliver(ctx context.Context, r record) bool {
	envelope := &types.Envelope{}
	if err := proto.Unmarshal(r.envelope, envelope); err != nil {
		log.L.WithError(err).WithField("seq", r.seq).Error("event journal: event dropped: unreadable")
		return true
	}
	logger := log.L.WithField("topic", envelope.GetTopic()).WithField("namespace", envelope.GetNamespace())
	backoff := j.minBackoff
	for attempt := 0; ; attempt++ {
		err := j.attempt(ctx, envelope)
		switch {
		case err == nil:
			if attempt > 0 {
				logger.WithField("attempts", attempt+1).Info("event sent: containerd takes events again")
			}
			return true
		case errdefs.IsInvalidArgument(err):
			logger.WithError(err).Error("event dropped: containerd refuses it")
			return true
		case attempt == 0:
			// Once per outage, not per attempt.
			logger.WithError(err).Warn("event not sent yet; trying again until containerd takes it")
		}
		timer := time.NewTimer(backoff)
		select {
		case <-timer.C:
		case <-j.stop:
			timer.Stop()
			return false
		}
		backoff = min(2*backoff, j.maxBackoff)
	}
}

func (j *Journal) attempt(ctx context.Context, envelope *types.Envelope) error {
	ctx, cancel := context.WithTimeout(ctx, j.attemptTimeout)
	defer cancel()
	fault.Point("event:send")
	if err := j.forward(ctx, envelope); err != nil {
		return fmt.Errorf("forward: %w", err)
	}
	fault.Point("event:sent")
	return nil
}

func (j *Journal) markSent(seq uint64) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.dropSentLocked(seq)
	err := j.writeOwedLocked() // the mark means what is before it
	if err == nil {
		err = j.writeLocked(record{sentTo: seq})
	}
	j.maybeCompactLocked()
	return err
}
