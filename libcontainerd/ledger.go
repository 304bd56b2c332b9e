package libcontainerd

import (
	"maps"
	"slices"
	"sync"
	"time"
)

// ledger has, for a container or a sandbox, what is known of its processes and
// what the backend has been told of it. Whoever learns something writes it down
// here, in any order and as often as they like; the ledger puts each fact once,
// and in the order that the package promises, into the list of what is to be told.
//
//	facts (calls, Wait, the event stream, questions) ──▶ ledger ──▶ untold ──▶ teller ──▶ backend
type ledger struct {
	client *client

	id   string
	kind kind
	dir  string // the record and the FIFOs

	saving sync.Mutex // keeps the order of the record's writers; before mu

	mu      sync.Mutex
	runs    []*run // oldest first; only the last may be live
	gone    map[tombstone]time.Time
	untold  []notice // the first may be with the backend
	telling bool     // a goroutine tells
	room    chan struct{}
	deleted bool // no container of the id is left

	halfMade bool // there may be a task that nobody got the news of
}

// tombstone keeps late events of what was forgotten from bringing it back. It is
// a first process's pid, or an exec's id.
type tombstone struct {
	pid  uint32
	exec string
}

// tombstoneTime is how late an event can come: containerd's shims try to publish
// one for some seconds.
const tombstoneTime = time.Minute

type kind string

const (
	containers kind = "c"
	sandboxes  kind = "s"
)

// run is a task of the container, from its creation to its deletion.
type run struct {
	init   *process
	execs  []*process // in the order that they became known
	paused bool
}

// process is the first process of a run, or an exec.
type process struct {
	id  string // the exec's; empty for the first process
	pid uint32

	added    bool
	started  bool
	starting bool // its start was asked for, and what came of it is not known yet
	calling  bool // by a call of this program that has not returned
	exit     *exit
	exited   chan struct{} // closed when exit is set
	watched  bool          // a goroutine waits for its exit
	removed  bool          // the server has forgotten it

	queued, told phase
}

// phase is how much of a process was told: each is an event.
type phase int

const (
	phaseNone phase = iota
	phaseAdded
	phaseStarted
	phaseExited
)

// exit is how a process ended. Lost says why that is not known.
type exit struct {
	Code uint32
	At   time.Time
	Lost string `json:",omitempty"`
}

// notice is an event that the backend is to be told.
type notice struct {
	event EventType
	info  EventInfo
	proc  *process // nil for those that are no step of a process
	phase phase
}

func newProcess(id string, pid uint32) *process {
	return &process{id: id, pid: pid, exited: make(chan struct{})}
}

// current is the run that is live or was last; nil before the first.
func (l *ledger) currentLocked() *run {
	if len(l.runs) == 0 {
		return nil
	}
	return l.runs[len(l.runs)-1]
}

// withPid is the run whose first process has the pid. A run of a pid not seen
// before is begun, unless that pid's run is over and was forgotten. 0 stands for
// the current run.
func (l *ledger) withPidLocked(pid uint32) *run {
	r := l.currentLocked()
	if pid == 0 || r != nil && r.init.pid == pid {
		return r
	}
	for _, old := range l.runs {
		if old.init.pid == pid {
			return old
		}
	}
	if l.isGoneLocked(tombstone{pid: pid}) {
		return nil
	}
	r = &run{init: newProcess("", pid)}
	l.runs = append(l.runs, r)
	return r
}

func (r *run) exec(id string) *process {
	i := slices.IndexFunc(r.execs, func(p *process) bool { return p.id == id })
	if i < 0 {
		return nil
	}
	return r.execs[i]
}

// live says whether something may still become of the process.
func (p *process) live() bool { return p.exit == nil && (p.started || p.starting) }

func (p *process) exitLocked(e exit) {
	if p.exit != nil {
		return
	}
	p.exit = &e
	close(p.exited)
}

// queueLocked appends what has become due. It decides the order: a start needs its
// creation, an exit its start, an exec its container's start, and the exit of a
// container those of its execs.
func (l *ledger) queueLocked() {
	for _, r := range l.runs {
		l.queueProcessLocked(r.init, min(r.init.reached(), phaseStarted))
		if r.init.queued >= phaseStarted && r.init.queued < phaseExited {
			for _, p := range r.execs {
				l.queueProcessLocked(p, p.reached())
			}
			if !slices.ContainsFunc(r.execs, (*process).live) {
				l.queueProcessLocked(r.init, r.init.reached())
			}
		}
	}
}

// reached is the phase that is known of the process, whether told or not.
func (p *process) reached() phase {
	switch {
	case p.started && p.exit != nil:
		return phaseExited
	case p.started:
		return phaseStarted
	case p.added:
		return phaseAdded
	}
	return phaseNone
}

func (l *ledger) queueProcessLocked(p *process, upTo phase) {
	for p.queued < upTo {
		p.queued++
		l.untold = append(l.untold, l.notice(p, p.queued))
	}
}

func (l *ledger) notice(p *process, ph phase) notice {
	n := notice{info: l.info(p.id), proc: p, phase: ph}
	if ph > phaseAdded || p.id == "" {
		n.info.Pid = p.pid
	}
	switch {
	case ph == phaseAdded && p.id == "":
		n.event = EventCreate
	case ph == phaseAdded:
		n.event = EventExecAdded
	case ph == phaseStarted && p.id == "":
		n.event = EventStart
	case ph == phaseStarted:
		n.event = EventExecStarted
	default:
		n.event = EventExit
		n.info.ExitCode, n.info.ExitedAt, n.info.Error = p.exit.Code, p.exit.At, p.exit.err()
	}
	return n
}

func (l *ledger) info(exec string) EventInfo {
	ei := EventInfo{ProcessID: l.id}
	if exec != "" {
		ei.ProcessID = exec
	}
	if l.kind == sandboxes {
		ei.SandboxID = l.id
	} else {
		ei.ContainerID = l.id
	}
	return ei
}

// pausedLocked notes that the run is paused or goes on. One that the backend does
// not know yet and the opposite of it cancel each other.
func (l *ledger) pausedLocked(r *run, paused bool) {
	if r.paused == paused || r.init.exit != nil {
		return
	}
	r.paused = paused
	event := EventResumed
	if paused {
		event = EventPaused
	}
	if i := l.waitingLocked(EventPaused, EventResumed); i >= 0 {
		l.untold = slices.Delete(l.untold, i, i+1)
		return
	}
	l.stateLocked(r, event)
}

func (l *ledger) oomLocked(r *run) {
	if l.waitingLocked(EventOOM) < 0 && r.init.queued < phaseExited {
		l.stateLocked(r, EventOOM)
	}
}

func (l *ledger) stateLocked(r *run, event EventType) {
	n := notice{event: event, info: l.info("")}
	n.info.Pid = r.init.pid
	l.untold = append(l.untold, n)
}

// waitingLocked is the place of an event that the backend does not have yet, not
// even as the one that it is at.
func (l *ledger) waitingLocked(events ...EventType) int {
	for i, n := range l.untold {
		if slices.Contains(events, n.event) && (i > 0 || !l.telling) {
			return i
		}
	}
	return -1
}

// forgetLocked drops what is over: runs and execs that the server has forgotten and
// of which nothing is left to tell.
func (l *ledger) forgetLocked() {
	for _, r := range l.runs {
		ended := r.init.queued == phaseExited
		r.execs = slices.DeleteFunc(r.execs, func(p *process) bool {
			over := p.overLocked() || ended && p.removed && p.told == p.queued
			if over {
				l.buryLocked(tombstone{exec: p.id})
			}
			return over
		})
	}
	l.runs = slices.DeleteFunc(l.runs, func(r *run) bool {
		over := r.init.overLocked() && len(r.execs) == 0
		if over {
			l.buryLocked(tombstone{pid: r.init.pid})
		}
		return over
	})
}

func (p *process) overLocked() bool {
	return p.removed && !p.starting && p.told == p.queued && (p.queued == phaseExited || !p.started)
}

func (l *ledger) buryLocked(t tombstone) {
	now := time.Now()
	maps.DeleteFunc(l.gone, func(_ tombstone, at time.Time) bool { return now.Sub(at) > tombstoneTime })
	if l.gone == nil {
		l.gone = map[tombstone]time.Time{}
	}
	l.gone[t] = now
}

func (l *ledger) isGoneLocked(t tombstone) bool {
	at, ok := l.gone[t]
	return ok && time.Since(at) <= tombstoneTime
}
