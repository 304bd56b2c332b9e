package libcontainerd

import (
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
	gone    []tombstone
	untold  []notice // the first may be with the backend
	telling bool     // a goroutine tells
	room    chan struct{}
	deleted bool // no container of the id is left
	lives   int  // how many containers of the id were made by this client

	oldStdio []string // directories of an earlier program

	fresh    bool // this client made the container, and no task of it yet
	making   int  // calls for a new task that have not returned
	halfMade bool // one that returned may have made a task that nobody got the news of
	asking   bool // a goroutine asks for the state
	sweeping bool // a goroutine asks for execs that did not start
	pauses   int  // how many paused and resumed events came
}

// tombstone is a process that was forgotten. It keeps late events, which the answers
// to calls overtake, from bringing the process back.
type tombstone struct {
	exec string // empty for a first process
	pid  uint32
	run  *run // of an exec that was absent: should it have started, it was told as added
}

// maxTombstones is how many processes a late event may be behind.
const maxTombstones = 512

type kind string

const (
	containers kind = "c"
	sandboxes  kind = "s"
)

// run is a task of the container, from its creation to its deletion.
type run struct {
	init  *process
	execs []*process // in the order that they became known

	paused, pausedQueued, pausedTold bool // as is known, is to be told, was told

	heard bool     // events without a pid are about this run
	stdio []string // directories of its execs

	oom      bool // one is to be queued
	oomTold  bool // one was, ever
	oomFound bool // one was asked for, and its event may be late
}

// process is the first process of a run, or an exec.
type process struct {
	id  string // the exec's; empty for the first process
	pid uint32

	added    bool
	started  bool
	starting bool // its start was asked for, and what came of it is not known yet
	calling  bool // by a call of this program that has not returned
	calls    int  // how many such calls began or returned
	own      bool // this program made the exec, or called for the start of the sandbox
	loaded   bool // an earlier program knew it
	exit     *exit
	exited   chan struct{} // closed when exit is set
	learned  *exit         // that will be the exit if no event comes soon
	watched  bool          // a goroutine waits for its exit
	askAgain func()        // has that goroutine ask anew; nil before it asks
	removed  bool          // the server has forgotten it
	absent   bool          // so it seems, but the news of its start may be late

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
	run   *run // of paused, resumed and oom
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

// heard is the run that events without its pid are about. They come later than the
// answers to calls, so it may be one before the current.
func (l *ledger) heardLocked() *run {
	for _, r := range slices.Backward(l.runs) {
		if r.heard {
			return r
		}
	}
	return nil
}

// withPid is the run whose first process has the pid, or nil; 0 stands for the
// current run.
func (l *ledger) withPidLocked(pid uint32) *run {
	if pid == 0 {
		return l.currentLocked()
	}
	for _, r := range slices.Backward(l.runs) {
		if r.init.pid == pid {
			return r
		}
	}
	return nil
}

// begin adds a run. A container has one task at a time, so what came before is over.
func (l *ledger) beginLocked(pid uint32) *run {
	for _, old := range l.runs {
		if old.init.removed = true; !old.init.started {
			l.removedLocked(old.init)
		}
		for _, p := range append([]*process{old.init}, old.execs...) {
			if p.askAgain != nil {
				p.askAgain() // its exit would be the new one's
			}
		}
	}
	r := &run{init: newProcess("", pid)}
	l.runs = append(l.runs, r)
	return r
}

// exec is the one of the id that has the pid, or the last whose pid is not known yet: an
// event may be late, and about one that had the id before. 0 stands for any pid.
func (r *run) exec(id string, pid uint32) (found *process) {
	for _, p := range slices.Backward(r.execs) {
		if p.id != id {
			continue
		}
		if pid == 0 || p.pid == pid {
			return p
		}
		if p.pid == 0 && found == nil {
			found = p
		}
	}
	return found
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
// creation, an exit its start, an exec its container's start and the exit of the
// exec that had its id, the exit of a container those of its execs, and a run the
// exit of the one before.
func (l *ledger) queueLocked() {
	l.settleLocked()
	for _, r := range l.runs {
		l.queueProcessLocked(r.init, min(r.init.reached(), phaseStarted))
		if r.init.queued < phaseStarted || r.init.queued == phaseExited {
			continue
		}
		live := map[string]bool{}
		for _, p := range r.execs {
			if !live[p.id] { // else it waits for the exit of the id's last
				l.queueProcessLocked(p, p.reached())
			}
			if p.live() {
				live[p.id] = true
			}
		}
		l.queueStateLocked(r)
		if len(live) > 0 {
			return
		}
		l.queueProcessLocked(r.init, r.init.reached())
		if r.init.queued < phaseExited {
			return
		}
	}
}

// settleLocked gives up the starts of execs whose run has another after it: a container
// has one task at a time, so they will not come any more, nobody can be asked whether
// they did, and all that is later would wait for them. A call that is under way knows
// better, until it returns.
func (l *ledger) settleLocked() {
	for _, r := range l.runs[:max(0, len(l.runs)-1)] {
		for _, p := range r.execs {
			p.starting = p.starting && p.calling
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
	if ph > phaseAdded || p.id == "" && l.kind == containers {
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

// queueStateLocked appends what the backend does not know of the run's state. If it
// does not know of a pause yet, the resume after it takes that back.
func (l *ledger) queueStateLocked(r *run) {
	if r.paused != r.pausedQueued && r.init.exit == nil {
		r.pausedQueued = r.paused
		if i := l.waitingLocked(r, EventPaused, EventResumed); i >= 0 {
			l.untold = slices.Delete(l.untold, i, i+1)
		} else if r.paused {
			l.stateLocked(r, EventPaused)
		} else {
			l.stateLocked(r, EventResumed)
		}
	}
	if r.oom {
		if r.oom, r.oomTold = false, true; l.waitingLocked(r, EventOOM) < 0 {
			l.stateLocked(r, EventOOM)
		}
	}
}

func (l *ledger) stateLocked(r *run, event EventType) {
	n := notice{event: event, info: l.info(""), run: r}
	n.info.Pid = r.init.pid
	l.untold = append(l.untold, n)
}

// waitsLocked: the backend is still to take the event of the run.
func (l *ledger) waitsLocked(r *run, event EventType) bool {
	return slices.ContainsFunc(l.untold, func(n notice) bool { return n.run == r && n.event == event })
}

// waitingLocked is the place of one of the run's events that the backend does not have yet, not
// even as the one that it is at.
func (l *ledger) waitingLocked(r *run, events ...EventType) int {
	for i, n := range l.untold {
		if n.run == r && slices.Contains(events, n.event) && (i > 0 || !l.telling) {
			return i
		}
	}
	return -1
}

// forgetLocked drops what is over: execs whose exit was told, and runs that the
// server has forgotten, too.
func (l *ledger) forgetLocked() {
	for _, r := range l.runs {
		ended := r.init.queued == phaseExited
		r.execs = slices.DeleteFunc(r.execs, func(p *process) bool {
			over := p.told == phaseExited || p.told == p.queued && (ended || !p.started && (p.removed || p.absent))
			if over {
				l.buryLocked(r, p)
			}
			return over
		})
	}
	l.runs = slices.DeleteFunc(l.runs, func(r *run) bool {
		p := r.init
		over := p.removed && len(r.execs) == 0 && p.told == p.queued && (p.told == phaseExited || !p.started)
		if over {
			l.buryLocked(r, p)
		}
		return over
	})
}

func (l *ledger) buryLocked(r *run, p *process) {
	if p.told == phaseNone {
		return // so there is nothing to tell twice
	}
	if len(l.gone) == maxTombstones {
		l.gone = slices.Delete(l.gone, 0, 1)
	}
	t := tombstone{exec: p.id, pid: p.pid}
	if p.absent && !p.removed && !p.started {
		t.run = r
	}
	l.gone = append(l.gone, t)
}

// unburyLocked says whether the run had an exec of the id that was absent. It is not
// gone any more.
func (l *ledger) unburyLocked(r *run, exec string) bool {
	n := len(l.gone)
	l.gone = slices.DeleteFunc(l.gone, func(t tombstone) bool { return t.exec == exec && t.run == r })
	return len(l.gone) < n
}

// isGone: a process of the exec id, or a first process if that is empty, was
// forgotten that had the pid; 0 stands for any.
func (l *ledger) isGoneLocked(exec string, pid uint32) bool {
	return slices.ContainsFunc(l.gone, func(t tombstone) bool { return t.exec == exec && (pid == 0 || t.pid == pid) })
}
