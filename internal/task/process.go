package task

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/api/events"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/timestamppb"

	"caisson/internal/fault"
	"caisson/internal/monitor"
	"caisson/internal/statefile"
	"caisson/internal/stdio"
)

// State of a process:
//
//	Adding ──► Created ──► Starting ──► Running ──► Stopped
//	             │             │                       ▲
//	             └─────────────┴───────────────────────┘
//
// A container's init is Adding while the OCI runtime creates it and Created when
// its process waits to be started; an exec is Created when it is described.
// Whatever has ended, or never can start again, is Stopped. Deleted processes
// are gone and need no state.
type State string

// The states of a process.
const (
	Adding   State = "adding"
	Created  State = "created"
	Starting State = "starting"
	Running  State = "running"
	Stopped  State = "stopped"
)

var allowed = map[State][]State{
	Adding:   {Created, Stopped},
	Created:  {Starting, Stopped},
	Starting: {Running, Created, Stopped},
	Running:  {Stopped},
	Stopped:  {},
}

// unknownExit is the status of a process whose end nobody saw.
const unknownExit = 255

// record is what the run-time directory says of a process.
type record struct {
	State      State
	Pid        int
	Serial     uint64 // the monitor's name for the process
	ExitStatus uint32
	ExitedAt   time.Time
	Stdio      stdio.Config
	// AddedAt is when an exec was described.
	AddedAt time.Time `json:",omitzero"`
	// CgroupPath is where the init process runs.
	CgroupPath string `json:",omitempty"`
	// OOMKills were counted in that cgroup before the container ran in it.
	OOMKills uint64 `json:",omitempty"`
	// Added and Started are the requests Exec and Start; empty if they cannot
	// come again.
	Added, Started string `json:",omitempty"`
	// Turn is the pause or resume that is under way.
	Turn *turn `json:",omitempty"`
}

// process is the init process of a container or an exec in it.
type process struct {
	c      *container
	execID string
	path   string // of its record

	op   chan struct{} // held by the verb that is under way
	done chan struct{} // closed when Stopped is recorded and published

	inherited bool // an earlier daemon started it; never changes

	drained sync.Once // the end of the terminal

	mu     sync.Mutex // guards the fields below
	rec    record
	ahead  bool // rec is ahead of what is written down
	term   *stdio.Terminal
	unread []*unread     // output that waits for its reader; nil if all is released
	asked  time.Time     // when this daemon was first asked for the state
	hangup *stdio.Hangup // of the client at stdin; nil if there is none to watch
}

func newProcess(c *container, execID string, io stdio.Config, state State) *process {
	name := "init.json"
	if execID != "" {
		name = "exec-" + execID + ".json"
	}
	return &process{
		c:      c,
		execID: execID,
		path:   c.file(name),
		op:     make(chan struct{}, 1),
		done:   make(chan struct{}),
		rec:    record{State: state, Stdio: io},
	}
}

// tag is the process's name in the monitor.
func (p *process) tag() string {
	if p.execID == "" {
		return p.c.ID
	}
	return p.c.ID + "/" + p.execID
}

func splitTag(tag string) (id, execID string) {
	id, execID, _ = strings.Cut(tag, "/")
	return id, execID
}

// kept is the name of one of the process's descriptors in the monitor.
func (p *process) kept(stream string) string { return p.keptPrefix() + stream }

// keptPrefix ends with a character that no ID contains.
func (p *process) keptPrefix() string { return p.c.ID + "/" + p.execID + ":" }

func (p *process) String() string {
	if p.execID == "" {
		return fmt.Sprintf("task %q", p.c.ID)
	}
	return fmt.Sprintf("exec %q in task %q", p.execID, p.c.ID)
}

// lock waits until no other verb works on the process.
func (p *process) lock(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("%v: %w", p, err)
	}
	select {
	case p.op <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%v: another call is under way: %w", p, ctx.Err())
	}
}

func (p *process) unlock() { <-p.op }

func (p *process) snapshot() record {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.rec
}

func (p *process) terminal() *stdio.Terminal {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.term
}

func (p *process) setTerminal(t *stdio.Terminal) {
	p.mu.Lock()
	p.term = t
	p.mu.Unlock()
}

// move takes the process to another state and writes that down. The caller
// holds op, so that the file follows the states in order; on an error the state
// is as before.
func (p *process) move(to State, change func(*record)) error {
	p.mu.Lock()
	next := p.rec
	p.mu.Unlock()
	if !slices.Contains(allowed[next.State], to) {
		return fmt.Errorf("%v: %s to %s: %w", p, next.State, to, errdefs.ErrFailedPrecondition)
	}
	next.State = to
	if change != nil {
		change(&next)
	}
	if err := statefile.Write(p.path, next); err != nil {
		return fmt.Errorf("%v: %w", p, err)
	}
	p.mu.Lock()
	p.rec, p.ahead = next, false
	p.mu.Unlock()
	log.G(p.context()).WithField("state", to).Debug("process changed state")
	return nil
}

// save writes the record as it is. The caller holds op.
func (p *process) save() error {
	if err := statefile.Write(p.path, p.snapshot()); err != nil {
		return fmt.Errorf("%v: %w", p, err)
	}
	p.mu.Lock()
	p.ahead = false
	p.mu.Unlock()
	return nil
}

// unwritten tells whether the record says less than what is known.
func (p *process) unwritten() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.ahead
}

// ended handles the end of the process as the monitor tells it. It may be told
// twice, by a monitor whose acknowledgement a dead daemon did not send.
func (p *process) ended(e monitor.Exit) {
	p.op <- struct{}{} // a verb under way is bounded by its own context
	defer p.unlock()
	fault.Point("task:ended")
	if p.snapshot().Serial != e.Serial || !p.current() {
		p.c.set.ack(e.Serial) // its start was taken back
		return
	}
	p.settleEnd(e)
}

// lost handles the end of a process that nobody saw: it was killed.
func (p *process) lost() {
	p.op <- struct{}{}
	defer p.unlock()
	rec := p.snapshot()
	if rec.Serial == 0 || rec.State == Stopped && p.finished() {
		return
	}
	p.settleEnd(monitor.Exit{
		Process:  monitor.Process{Serial: rec.Serial, Pid: rec.Pid},
		Status:   sigkill, // as wait(2) tells it
		ExitedAt: time.Now(),
	})
}

// settleEnd records an end, tells it, and lets it go. The caller holds op.
func (p *process) settleEnd(e monitor.Exit) {
	ctx := p.context()
	rec := p.snapshot()
	if rec.State != Stopped {
		if p.execID == "" {
			p.c.initEnded(ctx)
		}
		p.stop(ctx, exitStatus(e.Status), e.ExitedAt)
	}
	if rec.Stdio.Terminal {
		p.c.set.background(func() { p.drain(ctx) })
	}
	if err := p.letGo(ctx, e.Serial); err != nil {
		// Until it is acknowledged, the next daemon is told again.
		log.G(ctx).WithError(err).Error("publish exit")
		p.c.set.retry(func() error {
			p.op <- struct{}{}
			defer p.unlock()
			return p.letGo(ctx, e.Serial)
		})
	}
	p.finish()
}

// letGo tells the exit, and acknowledges it once it is also written down: else the
// next daemon would find a process that ran, and nobody who knows how it ended. The
// caller holds op.
func (p *process) letGo(ctx context.Context, serial uint64) error {
	err := p.publishExit(ctx)
	if err == nil && p.unwritten() && p.current() {
		err = p.save()
	}
	if err == nil {
		p.c.set.ack(serial)
	}
	return err
}

// stop records the end of the process.
func (p *process) stop(ctx context.Context, status uint32, at time.Time) {
	p.releaseIO(ctx)
	p.note(ctx, Stopped, func(r *record) {
		r.ExitStatus, r.ExitedAt = status, at
	})
}

// note records a fact. One that cannot be written is logged and kept in memory;
// the next daemon finds it out anew.
func (p *process) note(ctx context.Context, to State, change func(*record)) {
	err := p.move(to, change)
	if err == nil {
		return
	}
	log.G(ctx).WithError(err).Error("record the state of a process")
	p.remember(to, change)
}

// remember is a move that is not written down.
func (p *process) remember(to State, change func(*record)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.rec.State, p.ahead = to, true
	change(&p.rec)
}

// finished tells whether the exit was told.
func (p *process) finished() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// finish wakes those who wait for the process. The caller holds op.
func (p *process) finish() {
	select {
	case <-p.done:
	default:
		close(p.done)
	}
}

// key names an event of the process once and for all: the IDs may be used again.
func (p *process) key(event string, serial uint64) string {
	return fmt.Sprintf("%s/%s/%s/%d/%s/%d", event, p.c.set.cfg.Namespace, p.c.ID, p.c.CreatedAt.UnixNano(), p.execID, serial)
}

// publishStart tells that the process runs.
func (p *process) publishStart(ctx context.Context, rec record) error {
	var event any = &events.TaskStart{ContainerID: p.c.ID, Pid: uint32(rec.Pid)}
	if p.execID != "" {
		event = &events.TaskExecStarted{ContainerID: p.c.ID, ExecID: p.execID, Pid: uint32(rec.Pid)}
	}
	return p.c.set.tell(ctx, p.key("start", rec.Serial), event)
}

func (p *process) publishExit(ctx context.Context) error {
	rec := p.snapshot()
	if rec.Serial == 0 {
		return nil // never ran
	}
	id := p.execID
	if id == "" {
		id = p.c.ID
	}
	return p.c.set.tell(ctx, p.key("exit", rec.Serial), &events.TaskExit{
		ContainerID: p.c.ID,
		ID:          id,
		Pid:         uint32(rec.Pid),
		ExitStatus:  rec.ExitStatus,
		ExitedAt:    timestamppb.New(rec.ExitedAt),
	})
}

// unread is output of an ended process that was not read yet.
type unread struct {
	*stdio.Unread
	stream   string
	released chan struct{} // closed when the monitor has dropped it
}

// releaseIO lets the readers of the process's output see its end, as soon as they
// have everything: the reader may be a part of the last daemon, and not be back yet.
// A stream does not wait for the other one. Who has given up one may wait for the end
// of the other: containerd does, which cancels what it has not opened yet when it finds
// a task that has ended.
func (p *process) releaseIO(ctx context.Context) {
	p.unwatchStdin()
	cfg := p.snapshot().Stdio
	var waiting []*unread
	for stream, only := range map[string]stdio.Config{
		stdio.Stdout: {Stdout: cfg.Stdout, Terminal: cfg.Terminal},
		stdio.Stderr: {Stderr: cfg.Stderr, Terminal: cfg.Terminal},
	} {
		watch, err := stdio.WatchUnread(only)
		if err != nil {
			log.G(ctx).WithError(err).Warn("look for unread output")
		}
		if watch != nil {
			waiting = append(waiting, &unread{Unread: watch, stream: stream, released: make(chan struct{})})
		}
	}
	if len(waiting) == 0 {
		if err := p.dropKept(ctx); err != nil {
			log.G(ctx).WithError(err).Warn("release stdio")
		}
		return
	}
	for _, stream := range []string{stdio.Stdin, stdio.Stdout, stdio.Stderr} {
		if !slices.ContainsFunc(waiting, func(u *unread) bool { return u.stream == stream }) {
			p.endStream(ctx, stream)
		}
	}
	p.mu.Lock()
	p.unread = waiting
	p.mu.Unlock()
	for _, u := range waiting {
		p.c.set.background(func() {
			defer close(u.released)
			select {
			case <-u.Done():
				p.endStream(p.context(), u.stream)
			case <-p.c.set.closing: // the next daemon sees to it
			}
			u.Close()
		})
	}
}

func (p *process) endStream(ctx context.Context, stream string) {
	if err := p.dropStream(ctx, stream); err != nil {
		log.G(ctx).WithError(err).Warn("release stdio")
	}
}

// dropStream closes what the monitor keeps of one stream.
func (p *process) dropStream(ctx context.Context, stream string) error {
	host, err := p.c.set.attached()
	if err != nil {
		return nil // The monitor is gone, with what it kept.
	}
	if err := host.Drop(ctx, p.kept(stream)); err != nil && !errdefs.IsUnavailable(err) {
		return fmt.Errorf("%v: close %s: %w", p, stream, err)
	}
	return nil
}

// giveUpIO releases what nobody has read, because the process is deleted.
func (p *process) giveUpIO() {
	p.mu.Lock()
	waiting := p.unread
	p.unread = nil
	p.mu.Unlock()
	for _, u := range waiting {
		u.Close()
		select {
		case <-u.released:
		case <-p.c.set.closing:
		}
	}
}

// dropStdio takes back the stdio of a process that was not started.
func (p *process) dropStdio(ctx context.Context) error {
	p.unwatchStdin()
	var err error
	if t := p.terminal(); t != nil {
		err = t.Close()
		p.setTerminal(nil)
	}
	return errors.Join(err, p.dropKept(ctx))
}

// dropKept closes what the monitor keeps for the process.
func (p *process) dropKept(ctx context.Context) error {
	host, err := p.c.set.attached()
	if err != nil {
		return nil // The monitor is gone, with what it kept.
	}
	if err := host.DropPrefix(ctx, p.keptPrefix()); err != nil && !errdefs.IsUnavailable(err) {
		return fmt.Errorf("%v: release stdio: %w", p, err)
	}
	return nil
}

func exitStatus(ws unix.WaitStatus) uint32 {
	if ws.Signaled() {
		return 128 + uint32(ws.Signal())
	}
	return uint32(ws.ExitStatus())
}
