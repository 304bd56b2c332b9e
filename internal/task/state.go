package task

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"caisson/internal/cgroup"
	"caisson/internal/fault"
	"caisson/internal/reap"
	"caisson/internal/request"
	"caisson/internal/stdio"
)

// Status is what a client is told of a process.
type Status struct {
	ID     string // of the container, or of the exec
	Bundle string
	State  State
	Paused bool
	Pid    int
	Stdio  stdio.Config
	Exit   Exit // zero unless Stopped
}

// State tells how a process is.
func (s *Set) State(ctx context.Context, id, execID string) (Status, error) {
	p, err := s.process(id, execID)
	if errdefs.IsNotFound(err) {
		if st, ok := s.wasDeleted(id, execID); ok {
			return st, nil
		}
	}
	if err != nil {
		return Status{}, err
	}
	p.awaitReader(ctx)
	return p.status(), nil
}

// readerPatience is how long after a daemon was first asked for a process its state may
// wait for the reader of its output.
const readerPatience = 2 * time.Second

// awaitReader gives a client that comes back the time to open the FIFOs that it is opening.
// containerd then asks for the state of a task, opens its FIFOs without waiting for that,
// asks again, and gives up what is not open yet if the task has ended: all of its output
// that nobody has read. So the first answer does not wait, and those after it do.
//
// Who has started a process through this daemon has the FIFOs open, and may read from them
// only when it is told the state.
func (p *process) awaitReader(ctx context.Context) {
	if !p.inherited {
		return
	}
	p.mu.Lock()
	waiting, asked := p.unread, p.asked
	if asked.IsZero() {
		p.asked = time.Now()
	}
	p.mu.Unlock()
	if len(waiting) == 0 || asked.IsZero() {
		return
	}
	patience := time.NewTimer(time.Until(asked.Add(readerPatience)))
	defer patience.Stop()
	for _, u := range waiting {
		select {
		case <-u.Opened():
		case <-u.Done():
		case <-patience.C:
			return
		case <-ctx.Done():
			return
		}
	}
}

func (p *process) status() Status {
	rec := p.snapshot()
	st := Status{ID: p.c.ID, Bundle: p.c.Bundle, State: rec.State, Pid: rec.Pid, Stdio: rec.Stdio}
	if p.execID != "" {
		st.ID = p.execID
	}
	switch rec.State {
	case Stopped:
		st.Exit = rec.exit()
	case Running:
		p.c.mu.Lock()
		st.Paused = p.c.paused
		p.c.mu.Unlock()
	}
	return st
}

// Wait returns when a process has ended, and how. It may be called before the
// process is started, and any number of times. A process that is taken away with its
// container before it has come to an end is not found.
func (s *Set) Wait(ctx context.Context, id, execID string) (Exit, error) {
	p, err := s.process(id, execID)
	if errdefs.IsNotFound(err) {
		if st, ok := s.wasDeleted(id, execID); ok {
			return st.Exit, nil
		}
	}
	if err != nil {
		return Exit{}, err
	}
	select {
	case <-p.done:
	case <-p.c.gone:
		if !p.finished() {
			return Exit{}, fmt.Errorf("%v: its container was deleted: %w", p, errdefs.ErrNotFound)
		}
	case <-ctx.Done():
		return Exit{}, fmt.Errorf("%v: wait: %w", p, ctx.Err())
	}
	return p.snapshot().exit(), nil
}

// Connection is who answers for a task.
type Connection struct {
	MonitorPid int
	TaskPid    int
}

// Connect tells the pid of the sandbox's monitor and of the container. It may be
// asked for a container that does not exist: its pid is 0 then.
func (s *Set) Connect(_ context.Context, id string) (Connection, error) {
	var conn Connection
	if host, err := s.attached(); err == nil {
		conn.MonitorPid = host.Pid()
	}
	if c, err := s.container(id); err == nil {
		conn.TaskPid = c.init.snapshot().Pid
	}
	return conn, nil
}

// Kill sends a signal to a process, or with all to every process of the
// container. NotFound: it has ended; FailedPrecondition: it was not started.
func (s *Set) Kill(ctx context.Context, id, execID string, signal uint32, all bool) error {
	p, err := s.process(id, execID)
	if err != nil {
		return err
	}
	if signal == 0 || signal > 64 {
		return fmt.Errorf("%v: kill: there is no signal %d: %w", p, signal, errdefs.ErrInvalidArgument)
	}
	sig := unix.Signal(signal)
	fault.Point("task:kill")
	last, wasSent := lastKilled(ctx) // or about to be, by the earlier daemon
	if wasSent && p.snapshot().State == Stopped {
		return nil
	}
	if state := p.snapshot().State; state == Created || state == Running {
		if err := noteKilled(ctx, last); err != nil {
			return fmt.Errorf("%v: kill: %w", p, err)
		}
	}
	if all && execID == "" {
		running := p.snapshot().State == Running
		if err := p.c.killAll(ctx, sig, last); err != nil {
			return fmt.Errorf("%v: kill all: %w", p, err)
		}
		if running && sig == unix.SIGKILL {
			return nil // The init was among them.
		}
	}
	if err := p.signal(ctx, sig); wasSent && errdefs.IsNotFound(err) {
		return nil // It has ended of it, of which the news is to come.
	} else if err != nil {
		return err
	}
	if execID != "" {
		return nil // An exec does not end the pause of all the others.
	}
	return p.c.thawToDie(ctx, sig)
}

// signal goes through the monitor, which is the parent and so knows for sure
// that the pid still is this process.
func (p *process) signal(ctx context.Context, sig unix.Signal) error {
	rec := p.snapshot()
	switch {
	case rec.State == Stopped:
		return fmt.Errorf("%v: it has ended: %w", p, errdefs.ErrNotFound)
	case rec.Serial == 0:
		return fmt.Errorf("%v: it was not started: %w", p, errdefs.ErrFailedPrecondition)
	}
	host, err := p.c.set.attached()
	if err != nil {
		return fmt.Errorf("%v: kill: %w", p, err)
	}
	if id := request.From(ctx).ID; id != "" {
		err = host.SignalOnce(ctx, rec.Serial, sig, token(id))
	} else {
		err = host.Signal(ctx, rec.Serial, sig)
	}
	if err != nil {
		return fmt.Errorf("%v: kill: %w", p, err)
	}
	return nil
}

// token is a number for a request.
func token(id string) uint64 {
	h := fnv.New64a()
	h.Write([]byte(id)) // never fails
	return h.Sum64()
}

// noteKilled notes which process is about to get the signal, as the last of those in
// order; 0: none yet, or it is for one process only. All notes have the same length,
// so that a daemon that is killed leaves this one or the one before.
func noteKilled(ctx context.Context, pid int) error {
	return request.From(ctx).Note(fmt.Appendf(nil, "kill %10d", pid))
}

// lastKilled is what an earlier daemon has noted of the same request.
func lastKilled(ctx context.Context) (pid int, noted bool) {
	req := request.From(ctx)
	if !req.Again || !strings.HasPrefix(string(req.Noted), "kill") {
		return 0, false
	}
	_, _ = fmt.Sscanf(string(req.Noted), "kill %d", &pid) // daemons of before noted no pid
	return pid, true
}

// killAll sends a signal to every process in the container's cgroup after the last
// that got it from an earlier daemon; the init gets it from the caller unless it is
// SIGKILL.
func (c *container) killAll(ctx context.Context, sig unix.Signal, last int) error {
	group, err := c.cgroup()
	if err != nil {
		return nil // Nothing was started yet.
	}
	if sig == unix.SIGKILL {
		if err := group.Kill(ctx); err != nil && !errdefs.IsNotFound(err) {
			return err
		}
		return nil
	}
	err = signalGroup(ctx, group, c.init.snapshot().Pid, sig, last)
	if errdefs.IsNotFound(err) {
		return nil
	}
	return err
}

// signalGroup sends a signal to every process in a group but one, in the order of the
// pids, beginning after last. Each is noted before it gets the signal, so that a daemon
// which does it again does not send it twice; one can miss it. A pid is held by
// a pidfd before the group is looked at once more: what is still listed then is
// the process that was meant, and not one that got its number since.
func signalGroup(ctx context.Context, group *cgroup.Group, except int, sig unix.Signal, last int) error {
	pids, err := group.Pids()
	if err != nil {
		return err
	}
	held := map[int]int{}
	defer func() {
		for _, fd := range held {
			unix.Close(fd)
		}
	}()
	for _, pid := range pids {
		if fd, err := reap.Open(pid); err == nil && pid != except {
			held[pid] = fd
		} else if err == nil {
			unix.Close(fd)
		}
	}
	if pids, err = group.Pids(); err != nil {
		return err
	}
	var errs []error
	for _, pid := range pids { // they are sorted
		fd, ok := held[pid]
		if !ok || pid <= last {
			continue
		}
		if err := noteKilled(ctx, pid); err != nil {
			errs = append(errs, err)
			break
		}
		fault.Point("task:kill:process")
		if err := unix.PidfdSendSignal(fd, sig, nil, 0); err != nil && err != unix.ESRCH {
			errs = append(errs, fmt.Errorf("process %d: %w", pid, err))
		}
	}
	return errors.Join(errs...)
}

// thawToDie resumes a paused container that was sent SIGKILL: on cgroup v1
// frozen processes do not die.
func (c *container) thawToDie(ctx context.Context, sig unix.Signal) error {
	c.mu.Lock()
	paused, group := c.paused, c.group
	c.mu.Unlock()
	if sig != unix.SIGKILL || !paused || group == nil {
		return nil
	}
	if err := group.Thaw(ctx); err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("task %q: kill: resume: %w", c.ID, err)
	}
	return nil
}
