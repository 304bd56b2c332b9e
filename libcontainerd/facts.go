package libcontainerd

import (
	"fmt"
	"slices"

	"github.com/containerd/errdefs"
)

// maxForeign and maxRuns bound the execs and tasks of other programs that a ledger
// follows at a time.
const (
	maxForeign = 1024
	maxRuns    = 128
)

// update changes the ledger and sets going what follows: it is the one way in.
func (l *ledger) update(change func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	change()
	l.queueLocked()
	l.forgetLocked()
	l.watchLocked()
	l.tellLocked()
}

// created: there is a task whose first process has the pid. False: what is known
// contradicts that, so the server should be asked.
func (l *ledger) created(pid uint32) (believed bool) {
	l.update(func() { believed = l.createdLocked(pid) != nil || l.isGoneLocked("", pid) })
	return believed
}

// createdLocked believes in a new task if the one before is known to be over; else
// the event is late and about one that is not remembered any more, or others were
// missed.
func (l *ledger) createdLocked(pid uint32) *run {
	r := l.withPidLocked(pid)
	if r == nil {
		last := l.currentLocked()
		if last != nil && !last.init.removed && last.init.exit == nil || l.isGoneLocked("", pid) || len(l.runs) >= maxRuns || l.deleted {
			return nil
		}
		r = l.beginLocked(pid)
	}
	r.init.added, r.heard = true, true
	return r
}

// own: this client made a task, whatever was known of its pid.
func (l *ledger) own(pid uint32) (r *run) {
	l.update(func() {
		l.halfMade, l.fresh = false, false
		l.gone = slices.DeleteFunc(l.gone, func(t tombstone) bool { return t == tombstone{pid: pid} })
		if r = l.withPidLocked(pid); r == nil || r.init.removed || r.init.pid != pid {
			r = l.beginLocked(pid) // whose events come after those of the task before
		}
		r.init.added = true
	})
	return r
}

// beginMaking: a task is asked for, until endMaking is called. Should this program
// be killed before, the next one knows that the task which it may find was never
// started.
func (l *ledger) beginMaking() error {
	l.mu.Lock()
	l.making++
	l.mu.Unlock()
	return l.save()
}

func (l *ledger) endMaking() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.making--
}

// setHalfMade notes that a task may exist that nobody got the news of.
func (l *ledger) setHalfMade(is bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.halfMade = is
}

func (l *ledger) isHalfMade() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.halfMade
}

// started: the first process of the pid runs, or ran. False is as that of created.
func (l *ledger) started(pid uint32) (believed bool) {
	l.update(func() {
		r := l.createdLocked(pid)
		if r != nil {
			r.init.startedLocked(pid)
		}
		believed = r != nil || l.isGoneLocked("", pid)
	})
	return believed
}

func (p *process) startedLocked(pid uint32) {
	if p.removed && !p.started {
		return // what came after it may have been told
	}
	p.added, p.started, p.starting, p.absent = true, true, false, false
	if p.pid == 0 && p.queued < phaseStarted { // else it was told without
		p.pid = pid
	}
}

// ended: the first process of the pid has exited. Of a process not known to have
// started it says nothing until that is known.
func (l *ledger) ended(pid uint32, e exit) {
	l.update(func() {
		if r := l.withPidLocked(pid); r != nil && pid != 0 {
			r.init.exitLocked(e)
		}
	})
}

// taskDeleted: the server has forgotten the task of the pid.
func (l *ledger) taskDeleted(pid uint32, e exit) {
	l.update(func() {
		if r := l.withPidLocked(pid); r != nil && pid != 0 {
			r.init.exitLocked(e)
			l.removedLocked(r.init)
		}
	})
}

// execAdded, execStarted, execEnded: the same of an exec.
func (l *ledger) execAdded(id string) {
	l.update(func() {
		if p := l.execLocked(l.heardLocked(), id, 0); p != nil {
			p.added = true
		}
	})
}

func (l *ledger) execStarted(id string, pid uint32) {
	l.update(func() {
		if p := l.execLocked(l.heardLocked(), id, pid); p != nil {
			p.startedLocked(pid)
		}
	})
}

// execEnded ignores an exit whose process is not known to have started: it may be
// that of an earlier exec of the id, and who learns of the start asks for the exit.
func (l *ledger) execEnded(id string, pid uint32, e exit) {
	l.update(func() {
		for _, r := range l.runs {
			if p := r.exec(id, pid); p != nil && pid != 0 && p.pid == pid {
				p.exitLocked(e)
			}
		}
	})
}

// execLocked is the exec of the run that has the pid, which is 0 if it has not
// started; one that another program made becomes known here. It is nil if the news
// is late and about an exec that is over.
func (l *ledger) execLocked(r *run, id string, pid uint32) *process {
	if r == nil || r.init.queued == phaseExited {
		return nil
	}
	gone := l.isGoneLocked(id, pid)
	if pid != 0 && (gone || l.ofAnotherLocked(r, id, pid)) {
		return nil
	}
	if p := r.exec(id, pid); p != nil || gone {
		return p
	}
	if len(r.execs) >= maxForeign {
		l.client.log.WithField("container", l.id).WithField("exec", id).Warn("too many execs to follow: the backend is not told of this one")
		return nil
	}
	p := newProcess(id, 0)
	if l.unburyLocked(r, id) {
		p.added, p.queued, p.told = true, phaseAdded, phaseAdded
	}
	r.execs = append(r.execs, p)
	return p
}

// ofAnother: the exec is known to be of another run.
func (l *ledger) ofAnotherLocked(r *run, id string, pid uint32) bool {
	return slices.ContainsFunc(l.runs, func(other *run) bool {
		return other != r && slices.ContainsFunc(other.execs, func(p *process) bool { return p.id == id && p.pid == pid })
	})
}

// ownExec begins an exec that this client asks for.
func (l *ledger) ownExec(r *run, id string) (p *process, err error) {
	l.update(func() {
		if r.init.exit != nil || r.init.removed {
			err = fmt.Errorf("exec %q of container %q, whose process has exited: %w", id, l.id, errdefs.ErrFailedPrecondition)
			return
		}
		if old := r.exec(id, 0); old != nil && old.live() {
			err = fmt.Errorf("exec %q of container %q: %w", id, l.id, errdefs.ErrAlreadyExists)
			return
		}
		l.unburyLocked(r, id) // another of the id cannot start any more
		p = newProcess(id, 0)
		p.own, p.calling = true, true
		r.execs = append(r.execs, p)
	})
	return p, err
}

// exit is known of the process.
func (l *ledger) exit(p *process, e exit) { l.update(func() { p.exitLocked(e) }) }

// starting: the process may start from now on, until started or idle is called. It
// says whether an earlier call may have started it.
func (l *ledger) starting(p *process) (before bool) {
	l.update(func() {
		before = p.starting
		p.starting, p.calling = true, true
		p.calls++
	})
	return before
}

// returned: the call that was to start the process knows no more of it.
func (l *ledger) returned(p *process) {
	l.update(func() {
		p.calling = false
		p.calls++
	})
}

func (l *ledger) mayHaveStarted(p *process) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return p.starting || p.started
}

// idle: the process did not start.
func (l *ledger) idle(p *process) { l.update(func() { p.starting = false }) }

// removed: the server knows the process no more. If it started and its exit was
// not learned, that is lost.
func (l *ledger) removed(p *process) {
	l.update(func() { l.removedLocked(p) })
}

func (l *ledger) removedLocked(p *process) {
	p.removed, p.starting = true, false
	switch {
	case p.learned != nil:
		p.exitLocked(*p.learned)
	case p.started:
		p.exitLocked(lostExit(l.id, "it was deleted while nobody listened"))
	}
}

// containerGone: nothing of the container is on the server any more. The rest of
// its events is told, and then it is forgotten.
func (l *ledger) containerGone() {
	l.update(func() {
		l.deleted = true
		for _, r := range l.runs {
			for _, p := range r.execs {
				l.removedLocked(p)
			}
			l.removedLocked(r.init)
		}
	})
}

// made: this client made the container. What is found of a task before it makes one
// is left of an earlier container of the id, whose creation came late.
func (l *ledger) made() {
	l.exists()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.fresh = true
	l.lives++
}

// exists: the server has the container. It may have been taken for gone, by a call
// that could not undo what it did.
func (l *ledger) exists() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.deleted = false
}

// paused is what an event says; calls do not, for their events come later.
func (l *ledger) paused(on bool) {
	l.update(func() {
		l.pauses++
		if r := l.heardLocked(); r != nil {
			r.paused = on
		}
	})
}

func (l *ledger) oom() {
	l.update(func() {
		if r := l.heardLocked(); r != nil {
			r.oom = !r.oomFound
			r.oomFound = false
		}
	})
}

// hear: the event stream is past the creation of the run.
func (l *ledger) hear(r *run) {
	l.mu.Lock()
	defer l.mu.Unlock()
	r.heard = true
}

func (l *ledger) current() *run {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.currentLocked()
}

// sandbox changes the one process that a sandbox has. What is learned of one that is
// gone is late.
func (l *ledger) sandbox(change func(*process)) {
	l.update(func() {
		switch {
		case len(l.runs) == 0 && l.deleted:
			change(newProcess("", 0))
			return
		case len(l.runs) == 0:
			l.beginLocked(0)
		}
		change(l.currentLocked().init)
	})
}
