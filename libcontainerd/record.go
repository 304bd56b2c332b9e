package libcontainerd

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/containerd/v2/pkg/identifiers"
	"github.com/containerd/errdefs"

	"caisson/internal/statefile"
)

// A container has a directory in StateDir: c/<id>, a sandbox s/<id>.
//
//	record.json      what is known and what was told, see record
//	io/<process>/    the FIFOs of a process: stdin, stdout, stderr
const (
	recordName    = "record.json"
	recordVersion = 1
)

// record is what a ledger keeps for the next start of the program.
type record struct {
	Version  int
	Fresh    bool `json:",omitempty"` // this program made the container, and no task of it yet
	HalfMade bool `json:",omitempty"` // a task was asked for, and there is no answer
	Runs     []runRecord
}

type runRecord struct {
	Init    processRecord
	Paused  bool            `json:",omitempty"` // as it was told
	OOM     bool            `json:",omitempty"` // one is to be told
	OOMTold bool            `json:",omitempty"` // one was
	Execs   []processRecord `json:",omitempty"`
}

type processRecord struct {
	ID       string `json:",omitempty"`
	Pid      uint32 `json:",omitempty"`
	Added    bool   `json:",omitempty"`
	Started  bool   `json:",omitempty"`
	Starting bool   `json:",omitempty"`
	Own      bool   `json:",omitempty"`
	Removed  bool   `json:",omitempty"`
	Exit     *exit  `json:",omitempty"`
	Told     phase  `json:",omitempty"`
}

// save writes the record. What the server is about to forget must be in it first.
func (l *ledger) save() error {
	l.saving.Lock()
	defer l.saving.Unlock()
	l.mu.Lock()
	rec := record{Version: recordVersion, Fresh: l.fresh, HalfMade: l.halfMade || l.making > 0}
	for _, r := range l.runs {
		run := runRecord{Init: r.init.record(), Paused: r.pausedTold, OOM: r.oom || l.waitsLocked(r, EventOOM), OOMTold: r.oomTold}
		for _, p := range r.execs {
			run.Execs = append(run.Execs, p.record())
		}
		rec.Runs = append(rec.Runs, run)
	}
	over := l.deleted && len(l.untold) == 0
	l.mu.Unlock()
	if over {
		return nil // and its directory goes
	}
	if err := os.MkdirAll(l.dir, 0o700); err != nil {
		return local(err, "record of %q", l.id)
	}
	return local(statefile.Write(filepath.Join(l.dir, recordName), rec), "record of %q", l.id)
}

func (p *process) record() processRecord {
	e := p.exit
	if e == nil {
		e = p.learned
	}
	return processRecord{ID: p.id, Pid: p.pid, Added: p.added, Started: p.started, Starting: p.starting, Own: p.own, Removed: p.removed, Exit: e, Told: p.told}
}

// load reads the record of an earlier program; without one nothing is known.
func (l *ledger) load() error {
	var rec record
	err := statefile.Read(filepath.Join(l.dir, recordName), &rec)
	if errors.Is(err, errdefs.ErrNotFound) {
		return nil
	}
	if err != nil {
		return local(err, "record of %q", l.id)
	}
	runs, err := rec.runs()
	if err != nil {
		return fmt.Errorf("record of %q: %w", l.id, err)
	}
	old, err := filepath.Glob(filepath.Join(l.dir, "io", "*"))
	if err != nil {
		return local(err, "record of %q", l.id)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.runs, l.oldStdio, l.halfMade, l.fresh = runs, old, rec.HalfMade, rec.Fresh
	return nil
}

// runs are those of the record, if it is one that save could have written.
func (rec record) runs() ([]*run, error) {
	if rec.Version != recordVersion {
		return nil, fmt.Errorf("it has version %d, this program knows %d: %w", rec.Version, recordVersion, errdefs.ErrFailedPrecondition)
	}
	var runs []*run
	for _, rr := range rec.Runs {
		r := &run{heard: true, paused: rr.Paused, pausedQueued: rr.Paused, pausedTold: rr.Paused, oom: rr.OOM, oomTold: rr.OOMTold}
		var err error
		if r.init, err = rr.Init.process(false); err != nil {
			return nil, err
		}
		for _, pr := range rr.Execs {
			p, err := pr.process(true)
			if err != nil {
				return nil, err
			}
			r.execs = append(r.execs, p)
		}
		runs = append(runs, r)
	}
	return runs, nil
}

func (rec processRecord) process(exec bool) (*process, error) {
	p := newProcess(rec.ID, rec.Pid)
	p.added, p.started, p.starting, p.removed = rec.Added, rec.Started, rec.Starting, rec.Removed
	p.own = rec.Own
	p.told, p.queued, p.loaded = rec.Told, rec.Told, true
	if rec.Exit != nil {
		p.exitLocked(*rec.Exit)
	}
	if exec != (rec.ID != "") || exec && identifiers.Validate(rec.ID) != nil {
		return nil, fmt.Errorf("process id %q: %w", rec.ID, errdefs.ErrDataLoss)
	}
	if p.told < phaseNone || p.told > p.reached() {
		return nil, fmt.Errorf("process %q cannot be so: %w", rec.ID, errdefs.ErrDataLoss)
	}
	return p, nil
}

func (e exit) err() error {
	if e.Lost == "" {
		return nil
	}
	return fmt.Errorf("%s: %w", e.Lost, errdefs.ErrDataLoss)
}

// lostExit stands for an exit that nobody can know any more.
func lostExit(id, why string) exit {
	return exit{Code: 255, At: time.Now(), Lost: fmt.Sprintf("exit of a process of %q is not known: %s", id, why)}
}
