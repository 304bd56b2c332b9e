package libcontainerd

import (
	"fmt"

	"github.com/containerd/errdefs"
)

// maxForeign bounds the execs of other programs that a ledger follows at a time.
const maxForeign = 1024

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

// created: there is a task whose first process has the pid.
func (l *ledger) created(pid uint32) (r *run) {
	l.update(func() {
		if r = l.withPidLocked(pid); r != nil {
			r.init.added = true
		}
	})
	return r
}

// own is created, for a task that this client made, whatever was known of its pid.
func (l *ledger) own(pid uint32) (r *run) {
	l.update(func() {
		delete(l.gone, tombstone{pid: pid})
		l.halfMade = false
		r = l.withPidLocked(pid)
		r.init.added = true
	})
	return r
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

// started: the first process of the pid runs, or ran.
func (l *ledger) started(pid uint32) {
	l.update(func() {
		if r := l.withPidLocked(pid); r != nil {
			r.init.startedLocked(pid)
		}
	})
}

func (p *process) startedLocked(pid uint32) {
	p.added, p.started, p.starting = true, true, false
	if pid != 0 && p.pid != pid { // a first process has its pid from its creation
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

// execAdded, execStarted, execEnded: the same of an exec of the current run.
func (l *ledger) execAdded(id string) {
	l.update(func() {
		if p := l.execLocked(id); p != nil {
			p.added = true
		}
	})
}

func (l *ledger) execStarted(id string, pid uint32) {
	l.update(func() {
		if p := l.execLocked(id); p != nil {
			p.startedLocked(pid)
		}
	})
}

func (l *ledger) execEnded(id string, pid uint32, e exit) {
	l.update(func() {
		r := l.currentLocked()
		if r == nil {
			return
		}
		if p := r.exec(id); p != nil && (p.pid == pid || p.pid == 0) {
			p.exitLocked(e)
		}
	})
}

// execLocked is the exec of the current run; one that another program made becomes
// known here.
func (l *ledger) execLocked(id string) *process {
	r := l.currentLocked()
	if r == nil || r.init.queued == phaseExited {
		return nil
	}
	if p := r.exec(id); p != nil {
		return p
	}
	if l.isGoneLocked(tombstone{exec: id}) {
		return nil
	}
	if len(r.execs) >= maxForeign {
		l.client.log.WithField("container", l.id).WithField("exec", id).Warn("too many execs to follow: the backend is not told of this one")
		return nil
	}
	p := newProcess(id, 0)
	r.execs = append(r.execs, p)
	return p
}

// ownExec begins an exec that this client asks for, whatever was known of its id.
func (l *ledger) ownExec(r *run, id string) (p *process, err error) {
	l.update(func() {
		if old := r.exec(id); old != nil {
			err = fmt.Errorf("exec %q of container %q: %w", id, l.id, errdefs.ErrAlreadyExists)
			return
		}
		delete(l.gone, tombstone{exec: id})
		p = newProcess(id, 0)
		p.starting, p.calling = true, true
		r.execs = append(r.execs, p)
	})
	return p, err
}

// exit is known of the process.
func (l *ledger) exit(p *process, e exit) { l.update(func() { p.exitLocked(e) }) }

// starting: the process may start from now on, until started or idle is called.
func (l *ledger) starting(p *process) { l.update(func() { p.starting, p.calling = true, true }) }

// returned: the call that was to start the process knows no more of it.
func (l *ledger) returned(p *process) { l.update(func() { p.calling = false }) }

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
	if p.started {
		p.exitLocked(lostExit(l.id, "it was deleted while nobody listened"))
	}
	for _, r := range l.runs {
		if r.init != p {
			continue
		}
		for _, e := range r.execs {
			if !e.live() {
				e.removed = true
			}
		}
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

func (l *ledger) paused(on bool) {
	l.update(func() {
		if r := l.currentLocked(); r != nil {
			l.pausedLocked(r, on)
		}
	})
}

func (l *ledger) oom() {
	l.update(func() {
		if r := l.currentLocked(); r != nil {
			l.oomLocked(r)
		}
	})
}

// sandbox changes the one process that a sandbox has.
func (l *ledger) sandbox(change func(*process)) {
	l.update(func() {
		if len(l.runs) == 0 {
			l.runs = []*run{{init: newProcess("", 0)}}
		}
		change(l.runs[0].init)
	})
}
