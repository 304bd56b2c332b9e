package events

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	taskevents "github.com/containerd/containerd/api/events"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/v2/core/runtime"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

const patience = 20 * time.Second // for what happens at once unless something is broken

func testContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(namespaces.WithNamespace(t.Context(), "test"), patience)
	t.Cleanup(cancel)
	return ctx
}

// sink is a Forwarder that notes what arrived. While away is set it takes nothing.
type sink struct {
	mu   sync.Mutex
	got  []string
	away error
	news chan struct{}
}

func newSink() *sink { return &sink{news: make(chan struct{}, 1)} }

func (s *sink) forward(_ context.Context, e *types.Envelope) error {
	ev, err := typeurl.UnmarshalAny(e.GetEvent())
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	defer func() {
		select {
		case s.news <- struct{}{}:
		default:
		}
	}()
	if s.away != nil {
		return s.away
	}
	s.got = append(s.got, ev.(*taskevents.TaskStart).GetContainerID())
	return nil
}

func (s *sink) setAway(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.away = err
}

func (s *sink) wait(ctx context.Context, t *testing.T, want ...string) {
	t.Helper()
	for {
		s.mu.Lock()
		got := append([]string(nil), s.got...)
		s.mu.Unlock()
		if len(got) >= len(want) {
			if diff := cmp.Diff(want, got); diff != "" {
				t.Fatalf("events (-want +got):\n%s", diff)
			}
			return
		}
		select {
		case <-s.news:
		case <-ctx.Done():
			t.Fatalf("got %d of %d events: %v", len(got), len(want), got)
		}
	}
}

func openJournal(t *testing.T, dir string, f Forwarder, opts ...Option) *Journal {
	t.Helper()
	j, err := Open(dir, f, append([]Option{WithBackoff(time.Millisecond, 4*time.Millisecond)}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeJournal(t, j) })
	return j
}

func closeJournal(t *testing.T, j *Journal) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := j.Close(ctx); err != nil {
		t.Error(err)
	}
}

func publish(ctx context.Context, t *testing.T, j *Journal, key, id string) {
	t.Helper()
	if err := j.Publish(ctx, key, runtime.TaskStartEventTopic, &taskevents.TaskStart{ContainerID: id, Pid: 1}); err != nil {
		t.Fatal(err)
	}
}

func ids(n int) (all []string) {
	for i := range n {
		all = append(all, fmt.Sprint("c", i))
	}
	return all
}

func TestEventsArriveInOrder(t *testing.T) {
	ctx, s := testContext(t), newSink()
	j := openJournal(t, filepath.Join(t.TempDir(), "new"), s.forward)
	for _, id := range ids(200) {
		publish(ctx, t, j, "", id)
	}
	s.wait(ctx, t, ids(200)...)
}

func TestConcurrentPublishersLoseNothing(t *testing.T) {
	ctx, s := testContext(t), newSink()
	j := openJournal(t, t.TempDir(), s.forward, WithCompactAt(2000))
	var wg sync.WaitGroup
	for p := range 8 {
		wg.Go(func() {
			for i := range 50 {
				ev := &taskevents.TaskStart{ContainerID: fmt.Sprintf("%d/%d", p, i)}
				if err := j.Publish(ctx, fmt.Sprintf("k%d/%d", p, i), "/tasks/start", ev); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	next := make([]int, 8)
	for n := 0; n < 400; {
		s.mu.Lock()
		n = len(s.got)
		s.mu.Unlock()
		if n < 400 {
			select {
			case <-s.news:
			case <-ctx.Done():
				t.Fatalf("%d of 400 events", n)
			}
		}
	}
	for _, id := range s.got {
		var p, i int
		if _, err := fmt.Sscanf(id, "%d/%d", &p, &i); err != nil || next[p] != i {
			t.Fatalf("event %q of publisher %d, want number %d (%v)", id, p, next[p], err)
		}
		next[p]++
	}
}

func TestUnsentEventsSurviveARestart(t *testing.T) {
	ctx, dir := testContext(t), t.TempDir()
	s := newSink()
	j := openJournal(t, dir, s.forward)
	publish(ctx, t, j, "", "c0")
	s.wait(ctx, t, "c0")
	s.setAway(errdefs.ErrUnavailable)
	publish(ctx, t, j, "", "c1")
	publish(ctx, t, j, "k2", "c2")
	closeJournal(t, j)
	if err := j.Publish(ctx, "", "/tasks/start", &taskevents.TaskStart{}); !errdefs.IsUnavailable(err) {
		t.Errorf("publish after close: %v, want Unavailable", err)
	}

	s = newSink()
	j = openJournal(t, dir, s.forward)
	publish(ctx, t, j, "k2", "again")
	publish(ctx, t, j, "", "c3")
	s.wait(ctx, t, "c1", "c2", "c3")
}

// A kill leaves no time to close: the files alone must tell. The copy stands for what the
// next daemon finds.
func TestJournalIsCompleteWithoutClose(t *testing.T) {
	ctx, dir := testContext(t), t.TempDir()
	s := newSink()
	s.setAway(errdefs.ErrUnavailable)
	j := openJournal(t, dir, s.forward)
	publish(ctx, t, j, "k", "c0")
	b, err := os.ReadFile(filepath.Join(dir, journalName))
	if err != nil {
		t.Fatal(err)
	}
	for cut := range 9 { // with the beginning of one more record behind it
		next := t.TempDir()
		torn := record{seq: 2, envelope: []byte("x")}.appendTo(b)[:len(b)+cut]
		if err := os.WriteFile(filepath.Join(next, journalName), torn, 0o600); err != nil {
			t.Fatal(err)
		}
		s := newSink()
		j := openJournal(t, next, s.forward)
		publish(ctx, t, j, "", "c1")
		s.wait(ctx, t, "c0", "c1")
		closeJournal(t, j)
	}
}

func TestKeyIsRecordedOnce(t *testing.T) {
	ctx, s := testContext(t), newSink()
	j := openJournal(t, t.TempDir(), s.forward)
	for range 3 {
		publish(ctx, t, j, "a", "c0")
		publish(ctx, t, j, "b", "c1")
	}
	publish(ctx, t, j, "", "c2")
	publish(ctx, t, j, "", "c3")
	s.wait(ctx, t, ids(4)...)
	publish(ctx, t, j, "a", "again")
	publish(ctx, t, j, "", "c4")
	s.wait(ctx, t, ids(5)...)
}

func TestKeysSurviveCompaction(t *testing.T) {
	ctx, dir, s := testContext(t), t.TempDir(), newSink()
	j := openJournal(t, dir, s.forward, WithCompactAt(64<<10))
	const n = keepKeys + 1000
	for i := range n {
		publish(ctx, t, j, fmt.Sprint("key", i), fmt.Sprint("c", i))
	}
	s.wait(ctx, t, ids(n)...)
	closeJournal(t, j)
	info, err := os.Stat(filepath.Join(dir, journalName))
	if err != nil {
		t.Fatal(err)
	}
	if most := int64(n * 80); info.Size() > most {
		t.Errorf("journal has %d bytes, want at most %d", info.Size(), most)
	}

	s = newSink()
	j = openJournal(t, dir, s.forward)
	for i := n - keepKeys; i < n; i++ {
		publish(ctx, t, j, fmt.Sprint("key", i), "again")
	}
	publish(ctx, t, j, "", "last")
	s.wait(ctx, t, "last")
}

func TestCompactionKeepsUnsentEvents(t *testing.T) {
	ctx, dir, s := testContext(t), t.TempDir(), newSink()
	s.setAway(errdefs.ErrUnavailable)
	j := openJournal(t, dir, s.forward, WithCompactAt(512))
	for i, id := range ids(300) {
		publish(ctx, t, j, fmt.Sprint(i), id)
	}
	closeJournal(t, j)
	s = newSink()
	openJournal(t, dir, s.forward, WithCompactAt(512))
	s.wait(ctx, t, ids(300)...)
}

func TestInvalidEventIsDropped(t *testing.T) {
	ctx, s := testContext(t), newSink()
	refused := make(chan struct{})
	j := openJournal(t, t.TempDir(), func(ctx context.Context, e *types.Envelope) error {
		if e.GetTopic() == "/bad" {
			close(refused) // a second attempt would panic
			return fmt.Errorf("no: %w", errdefs.ErrInvalidArgument)
		}
		return s.forward(ctx, e)
	})
	if err := j.Publish(ctx, "", "/bad", &taskevents.TaskStart{ContainerID: "bad"}); err != nil {
		t.Fatal(err)
	}
	publish(ctx, t, j, "", "c0")
	s.wait(ctx, t, "c0")
	<-refused
}

func TestWithoutForwarderEventsAreDropped(t *testing.T) {
	ctx, dir, s := testContext(t), t.TempDir(), newSink()
	s.setAway(errdefs.ErrUnavailable)
	j := openJournal(t, dir, s.forward)
	publish(ctx, t, j, "old", "c0")
	closeJournal(t, j)
	j = openJournal(t, dir, nil)
	publish(ctx, t, j, "k", "c1")
	publish(ctx, t, j, "", "c2")
	if n := j.Unsent(); n != 0 {
		t.Errorf("%d events unsent", n)
	}
	closeJournal(t, j)
	s = newSink()
	j = openJournal(t, dir, s.forward)
	publish(ctx, t, j, "old", "c3")
	publish(ctx, t, j, "k", "c4")
	publish(ctx, t, j, "", "c5")
	s.wait(ctx, t, "c5")
}

func TestPublishRefusesBadEvents(t *testing.T) {
	ctx := testContext(t)
	j := openJournal(t, t.TempDir(), newSink().forward)
	for name, tc := range map[string]struct {
		ctx   context.Context
		topic string
		event any
		is    func(error) bool
	}{
		"no namespace":     {t.Context(), "/t", &taskevents.TaskStart{}, errdefs.IsFailedPrecondition},
		"no topic":         {ctx, "", &taskevents.TaskStart{}, errdefs.IsInvalidArgument},
		"relative topic":   {ctx, "tasks", &taskevents.TaskStart{}, errdefs.IsInvalidArgument},
		"empty component":  {ctx, "/tasks/", &taskevents.TaskStart{}, errdefs.IsInvalidArgument},
		"bad component":    {ctx, "/tasks/..", &taskevents.TaskStart{}, errdefs.IsInvalidArgument},
		"no event":         {ctx, "/t", nil, errdefs.IsInvalidArgument},
		"unknown type":     {ctx, "/t", struct{ A int }{}, errdefs.IsInvalidArgument},
		"oversized record": {ctx, "/t", &taskevents.TaskStart{ContainerID: string(make([]byte, maxRecord))}, errdefs.IsResourceExhausted},
	} {
		if err := j.Publish(tc.ctx, "key", tc.topic, tc.event); !tc.is(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if n := j.Unsent(); n != 0 {
		t.Errorf("%d events recorded", n)
	}
}

func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	j := openJournal(t, dir, nil)
	if _, err := Open(dir, nil); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("second journal on one directory: %v, want FailedPrecondition", err)
	}
	closeJournal(t, j)
	path := filepath.Join(dir, journalName)
	const content = "csnevt9\nfrom the future"
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir, nil); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("newer format: %v, want FailedPrecondition", err)
	}
	if b, err := os.ReadFile(path); err != nil || string(b) != content {
		t.Errorf("refused journal was changed: %q, %v", b, err)
	}
	if _, err := Open(dir, nil, WithBackoff(2, 1)); !errdefs.IsInvalidArgument(err) {
		t.Errorf("bad option: %v, want InvalidArgument", err)
	}
}

// Needs root, for a file system that can be filled up.
func TestFullFileSystem(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=32k,mode=0700"); err != nil {
		t.Skipf("mount tmpfs (needs root): %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	ctx, s := testContext(t), newSink()
	s.setAway(errdefs.ErrUnavailable)
	j := openJournal(t, dir, s.forward)
	var want []string
	var err error
	for i := 0; err == nil && i < 10000; i++ {
		id := fmt.Sprintf("%0300d", i)
		if err = j.Publish(ctx, "", "/tasks/start", &taskevents.TaskStart{ContainerID: id}); err == nil {
			want = append(want, id)
		}
	}
	if !errdefs.IsResourceExhausted(err) || !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("after %d events: %v, want ENOSPC as ResourceExhausted", len(want), err)
	}
	// What has happened is sent all the same, in its turn.
	fact := fmt.Sprintf("%0300d", len(want))
	tell := func() error {
		return j.Tell(ctx, "fact", "/tasks/start", &taskevents.TaskStart{ContainerID: fact})
	}
	for range 2 {
		if err := tell(); !errdefs.IsResourceExhausted(err) {
			t.Errorf("told to a full file system: %v, want ResourceExhausted", err)
		}
	}
	want = append(want, fact)
	s.setAway(nil)
	s.wait(ctx, t, want...)
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT, "size=1m"); err != nil {
		t.Fatal(err)
	}
	if err := tell(); err != nil {
		t.Errorf("told when there is room: %v", err)
	}
	publish(ctx, t, j, "", "room")
	want = append(want, "room")
	s.wait(ctx, t, want...) // which marks all of them as sent
	closeJournal(t, j)
	j = openJournal(t, dir, s.forward)
	if err := tell(); err != nil {
		t.Error(err)
	}
	publish(ctx, t, j, "", "last")
	s.wait(ctx, t, append(want, "last")...)
	closeJournal(t, j)
}

func TestTopic(t *testing.T) {
	all := []any{
		&taskevents.TaskCreate{}, &taskevents.TaskStart{}, &taskevents.TaskOOM{}, &taskevents.TaskExit{},
		&taskevents.TaskDelete{}, &taskevents.TaskExecAdded{}, &taskevents.TaskExecStarted{},
		&taskevents.TaskPaused{}, &taskevents.TaskResumed{}, &taskevents.TaskCheckpointed{},
	}
	for _, ev := range all {
		got, err := Topic(ev)
		if want := runtime.GetTopic(ev); err != nil || got != want || got == runtime.TaskUnknownTopic {
			t.Errorf("%T: %q, %v; containerd says %q", ev, got, err, want)
		}
	}
	for _, ev := range []any{nil, "x", &taskevents.ContainerCreate{}} {
		if topic, err := Topic(ev); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%T: %q, %v, want InvalidArgument", ev, topic, err)
		}
	}
}
