package libcontainerd

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

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
	Version int
	Runs    []runRecord
}

type runRecord struct {
	Init   processRecord
	Paused bool            `json:",omitempty"`
	Execs  []processRecord `json:",omitempty"`
}

type processRecord struct {
	ID       string `json:",omitempty"`
	Pid      uint32 `json:",omitempty"`
	Added    bool   `json:",omitempty"`
	Started  bool   `json:",omitempty"`
	Starting bool   `json:",omitempty"`
	Removed  bool   `json:",omitempty"`
	Exit     *exit  `json:",omitempty"`
	Told     phase  `json:",omitempty"`
}

// save writes the record. What the server is about to forget must be in it first.
func (l *ledger) save() error {
	l.saving.Lock()
	defer l.saving.Unlock()
	l.mu.Lock()
	rec := record{Version: recordVersion}
	for _, r := range l.runs {
		run := runRecord{Init: r.init.record(), Paused: r.paused}
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
		return fmt.Errorf("record of %q: %w", l.id, err)
	}
	return statefile.Write(filepath.Join(l.dir, recordName), rec)
}

func (p *process) record() processRecord {
	return processRecord{ID: p.id, Pid: p.pid, Added: p.added, Started: p.started, Starting: p.starting, Removed: p.removed, Exit: p.exit, Told: p.told}
}

// load reads the record of an earlier program; without one nothing is known. A
// process whose start was on its way may have started.
func (l *ledger) load() error {
	var rec record
	switch err := statefile.Read(filepath.Join(l.dir, recordName), &rec); {
	case errors.Is(err, errdefs.ErrNotFound):
		return nil
	case err != nil:
		return err
	case rec.Version != recordVersion:
		return fmt.Errorf("record of %q has version %d, this program knows %d: %w", l.id, rec.Version, recordVersion, errdefs.ErrFailedPrecondition)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, rr := range rec.Runs {
		r := &run{init: rr.Init.process(), paused: rr.Paused}
		for _, p := range rr.Execs {
			r.execs = append(r.execs, p.process())
		}
		l.runs = append(l.runs, r)
	}
	return nil
}

func (rec processRecord) process() *process {
	p := newProcess(rec.ID, rec.Pid)
	p.added, p.started, p.starting, p.removed = rec.Added, rec.Started, rec.Starting, rec.Removed
	p.told = min(max(rec.Told, phaseNone), phaseExited)
	p.queued = p.told
	if rec.Exit != nil {
		p.exitLocked(*rec.Exit)
	}
	return p
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
