// Package task runs the containers of a sandbox, and further processes in them.
//
// A Set holds the tasks of one sandbox and answers containerd's Task API in
// plain Go; internal/service turns wire messages into its calls. What has to
// outlive the daemon is in small JSON files in the sandbox's run-time directory
// and in the sandbox's monitor: a new daemon calls Load, then Attach, and goes
// on where the old one ended.
//
// A call on one process never waits for a call on another one, with one
// exception that is the point of it: the exit of a container is told only after
// the exits of all its other processes.
package task

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/pkg/identifiers"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"caisson/internal/events"
	"caisson/internal/isolation"
	"caisson/internal/monitor"
	"caisson/internal/oci"
	"caisson/internal/subject"
)

// Publisher takes task events. Publish returns when the event is safe from a
// crash of the daemon; a key that was published before is not published again. Tell
// is for what cannot be taken back if that fails: it is sent all the same.
type Publisher interface {
	Publish(ctx context.Context, key, topic string, event any) error
	Tell(ctx context.Context, key, topic string, event any) error
}

// Config is what the tasks of one sandbox need to know.
type Config struct {
	Namespace string
	SandboxID string
	// Dir is the sandbox's run-time directory, short enough for sockets.
	Dir string
	// RuntimeName and RuntimeRoot are used where a client's options name none.
	RuntimeName func() string
	RuntimeRoot string
	// SystemdCgroup is the default for clients that say nothing.
	SystemdCgroup bool
	// Membership is what a container of the sandbox takes over from it.
	Membership func(containerID string) oci.Membership
	// UseFiles sees to it that the files which Membership names are there until done is
	// called.
	UseFiles func(ctx context.Context) (done func(), err error)
	// StdinStays tells that the client comes back for the stdin of its containers
	// after a restart, and says itself when it is closed.
	StdinStays func() bool
	// KeepsDeleted tells that how a deleted container ended can be asked for, and that
	// it can be deleted again, until the sandbox goes with it.
	KeepsDeleted func() bool
	Events       Publisher
	// Owes tells whether a request to an earlier daemon will be made again.
	Owes func(request string) bool
}

// Set is the tasks of one sandbox. It is safe for concurrent use.
type Set struct {
	cfg Config
	wg  sync.WaitGroup // the handling of exits

	ending  context.Context // over once End was called: nothing starts any more
	end     context.CancelFunc
	closing chan struct{} // closed by Close
	gone    chan struct{} // closed when the host is gone

	mu         sync.Mutex // guards the fields below; lock before container.mu
	host       isolation.Host
	closed     bool            // nothing runs in the background any more
	withheld   bool            // there may be containers that Load has not found yet
	unread     map[string]bool // containers whose files Load could not read
	containers map[string]*container
	deleted    map[string]Status            // see Config.KeepsDeleted
	runs       map[string]chan monitor.Exit // runtimes that somebody waits for, by tag
	before     uint64                       // the last process of an earlier daemon's
}

// NewSet returns an empty set. Nothing can be created in it before Attach.
func NewSet(cfg Config) *Set {
	s := &Set{
		cfg:        cfg,
		closing:    make(chan struct{}),
		gone:       make(chan struct{}),
		containers: map[string]*container{},
		deleted:    map[string]Status{},
		runs:       map[string]chan monitor.Exit{},
	}
	s.ending, s.end = context.WithCancel(context.Background())
	return s
}

// Attach gives the set the place where its processes run, of whose exits Exited is told
// from then on, those that are owed from before included, and last of all Gone. It is
// called once.
func (s *Set) Attach(host isolation.Host) {
	s.mu.Lock()
	s.host = host
	s.mu.Unlock()
}

// background runs what Close waits for; after Close, nothing.
func (s *Set) background(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed {
		s.wg.Go(f)
	}
}

// untilEnd returns the context of a call that End cuts short.
func (s *Set) untilEnd(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(s.ending, func() { cancel(s.errEnding()) })
	return ctx, func() { stop(); cancel(nil) }
}

func (s *Set) errEnding() error {
	return fmt.Errorf("sandbox %q is stopping: %w", s.cfg.SandboxID, errdefs.ErrFailedPrecondition)
}

// Close ends what the daemon runs for the set, and returns when that has ended.
// The instance behind the set must be closed before. It may be repeated.
func (s *Set) Close() {
	s.mu.Lock()
	if !s.closed {
		s.closed = true
		close(s.closing)
	}
	all := s.allLocked()
	s.mu.Unlock()
	for _, c := range all {
		c.release()
	}
	s.wg.Wait()
}

// Len is the number of containers that were not deleted.
func (s *Set) Len() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.containers)
}

// IDs of the containers in the set.
func (s *Set) IDs() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	ids := make([]string, 0, len(s.containers))
	for id := range s.containers {
		ids = append(ids, id)
	}
	return ids
}

func (s *Set) allLocked() []*container {
	all := make([]*container, 0, len(s.containers))
	for _, c := range s.containers {
		all = append(all, c)
	}
	return all
}

// context returns a context for work that no caller waits for.
func (s *Set) context() context.Context {
	ctx := namespaces.WithNamespace(context.Background(), s.cfg.Namespace)
	return subject.With(ctx, subject.Subject{Namespace: s.cfg.Namespace, SandboxID: s.cfg.SandboxID})
}

// context is the same for a container.
func (c *container) context() context.Context {
	return subject.With(c.set.context(), subject.Subject{ContainerID: c.ID})
}

// context is the same for a process.
func (p *process) context() context.Context {
	return subject.With(p.c.context(), subject.Subject{ExecID: p.execID})
}

func (s *Set) dir(containerID string) string {
	return filepath.Join(s.cfg.Dir, "t", containerID)
}

// attached returns the host, or why there is none.
func (s *Set) attached() (isolation.Host, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.host == nil {
		return nil, fmt.Errorf("sandbox %q is not running: %w", s.cfg.SandboxID, errdefs.ErrFailedPrecondition)
	}
	return s.host, nil
}

func (s *Set) container(id string) (*container, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c, ok := s.containers[id]
	switch {
	case ok:
		return c, nil
	case s.withheld:
		return nil, fmt.Errorf("task %q: sandbox %q was not taken over from the last caissond, see the log: %w", id, s.cfg.SandboxID, errdefs.ErrUnavailable)
	case s.unread[id]:
		return nil, fmt.Errorf("task %q: its files cannot be read, see the log: %w", id, errdefs.ErrUnavailable)
	}
	return nil, fmt.Errorf("task %q: %w", id, errdefs.ErrNotFound)
}

// wasDeleted is the last that is known of a container that was deleted: its client may
// not have got the answer, and asks again.
func (s *Set) wasDeleted(id, execID string) (Status, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	st, ok := s.deleted[id]
	return st, ok && execID == ""
}

func (s *Set) has(id string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.containers[id] != nil
}

// Withhold keeps the set from saying that a container does not exist until Load has
// found out which do: clients, and containerd first of all, forget one then.
func (s *Set) Withhold() {
	s.mu.Lock()
	s.withheld = true
	s.mu.Unlock()
}

// process finds the init process of a container, or one of its execs.
func (s *Set) process(id, execID string) (*process, error) {
	c, err := s.container(id)
	if err != nil {
		return nil, err
	}
	return c.process(execID)
}

// acquire finds a process and holds its op. What it returns was not deleted while
// it waited for that.
func (s *Set) acquire(ctx context.Context, id, execID string) (*process, error) {
	p, err := s.process(id, execID)
	if err != nil {
		return nil, err
	}
	if err := p.lock(ctx); err != nil {
		return nil, err
	}
	if !p.current() {
		p.unlock()
		return nil, fmt.Errorf("%v: %w", p, errdefs.ErrNotFound)
	}
	return p, nil
}

// current tells whether the process is still what its IDs name.
func (p *process) current() bool {
	now, err := p.c.set.process(p.c.ID, p.execID)
	return err == nil && now == p
}

// Exited routes the end of one process. Handlers run on their own, since an
// exit waits for the verb that is under way on its process.
func (s *Set) Exited(e monitor.Exit) {
	if e.Kind == monitor.Spawned {
		s.runEnded(e)
		return
	}
	id, execID := splitTag(e.Tag)
	p, err := s.process(id, execID)
	if errdefs.IsNotFound(err) {
		// What it belonged to was undone or deleted.
		s.ack(e.Serial)
		return
	}
	if err != nil {
		return // It is kept for a daemon that can read what it belongs to.
	}
	s.background(func() { p.ended(e) })
}

// runEnded hands the end of an OCI runtime to who waits for it. Those of loggers
// and of runtimes whose daemon died have nobody.
func (s *Set) runEnded(e monitor.Exit) {
	s.mu.Lock()
	ch := s.runs[e.Tag]
	waited := ch != nil && e.Serial > s.before // one before may have had the same tag
	if waited {
		ch <- e // has room for one, and is used once
		delete(s.runs, e.Tag)
	}
	s.mu.Unlock()
	if !waited || !strings.HasSuffix(e.Tag, checkpointTag) {
		s.ack(e.Serial)
	}
}

// expect announces a runtime that is about to be spawned under a tag, so that
// its end is not missed however soon it comes.
func (s *Set) expect(tag string) (<-chan monitor.Exit, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.host == nil {
		return nil, ErrMonitorGone
	}
	ch := make(chan monitor.Exit, 1)
	s.runs[tag] = ch
	return ch, nil
}

func (s *Set) unexpect(tag string) {
	s.mu.Lock()
	delete(s.runs, tag)
	s.mu.Unlock()
}

// ErrMonitorGone says that nobody can start, signal or watch a process of the
// sandbox any more. Lost settles what ran.
var ErrMonitorGone = fmt.Errorf("the sandbox's monitor is gone: %w", errdefs.ErrUnavailable)

// Gone is called when the monitor is gone: nobody can start anything here
// any more, and who waits for a runtime waits in vain.
func (s *Set) Gone() {
	s.mu.Lock()
	s.host = nil
	for tag, ch := range s.runs {
		close(ch)
		delete(s.runs, tag)
	}
	s.mu.Unlock()
	close(s.gone)
}

func (s *Set) ack(serial uint64) {
	host, err := s.attached()
	if err == nil {
		err = host.Ack(s.context(), serial)
	}
	if err != nil && !errdefs.IsNotFound(err) && !errdefs.IsUnavailable(err) && !errdefs.IsFailedPrecondition(err) {
		log.G(s.context()).WithError(err).WithField("serial", serial).Warn("acknowledge exit")
	}
}

func (s *Set) publish(ctx context.Context, key string, event any) error {
	topic, err := events.Topic(event)
	if err != nil {
		return err
	}
	if err := s.cfg.Events.Publish(ctx, key, topic, event); err != nil {
		return fmt.Errorf("publish %s: %w", topic, err)
	}
	return nil
}

// tell publishes a fact.
func (s *Set) tell(ctx context.Context, key string, event any) error {
	topic, err := events.Topic(event)
	if err != nil {
		return err
	}
	if err := s.cfg.Events.Tell(ctx, key, topic, event); err != nil {
		return fmt.Errorf("tell %s: %w", topic, err)
	}
	return nil
}

// retryPause is the time between two attempts of retry.
const retryPause = time.Second

// retry does again what failed for want of something, until it works. What the
// daemon does not live to see done, the next one does.
func (s *Set) retry(f func() error) {
	s.background(func() {
		for {
			select {
			case <-time.After(retryPause):
			case <-s.closing:
				return
			}
			if f() == nil {
				return
			}
		}
	})
}

// validID refuses what could be used as a path.
func validID(kind, id string) error {
	if err := identifiers.Validate(id); err != nil {
		return fmt.Errorf("%s ID %q: %w", kind, id, err)
	}
	return nil
}
