package task

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"caisson/internal/cgroup"
	"caisson/internal/isolation"
	"caisson/internal/monitor"
	"caisson/internal/statefile"
	"caisson/internal/stdio"
)

// Load fills the set from the run-time directory after a restart of the daemon,
// and mends what the old daemon left half done: a container whose creation it
// did not finish is undone, since nobody was told of it; a start is taken to
// its end if the process is there. host is nil if the sandbox's monitor is
// gone: then whatever ran has ended in a way that nobody saw. Attach follows.
func (s *Set) Load(ctx context.Context, host isolation.Host) error {
	entries, err := os.ReadDir(filepath.Join(s.cfg.Dir, "t"))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("sandbox %q: %w", s.cfg.SandboxID, err)
	}
	alive := map[uint64]monitor.Record{}
	adopted := map[string]monitor.Record{}
	if host != nil {
		records, err := host.List(ctx)
		if err != nil {
			return fmt.Errorf("sandbox %q: list processes: %w", s.cfg.SandboxID, err)
		}
		for _, r := range records {
			alive[r.Serial] = r
			if r.Kind == monitor.Adopted {
				adopted[r.Tag] = r
			}
		}
	}
	s.mu.Lock()
	s.host = host
	s.mu.Unlock()
	for _, entry := range entries {
		c, err := s.loadContainer(entry.Name())
		if err != nil {
			// Kept for a person to look at: never remove what cannot be read.
			log.G(ctx).WithError(err).WithField("container_id", entry.Name()).Error("container not loaded")
			continue
		}
		s.settle(ctx, c, alive, adopted)
	}
	return nil
}

func (s *Set) loadContainer(id string) (*container, error) {
	if err := validID("task", id); err != nil {
		return nil, err
	}
	c := newContainer(s, containerRecord{ID: id})
	if err := statefile.Read(c.file("container.json"), &c.containerRecord); err != nil {
		return nil, err
	}
	if c.ID != id {
		return nil, fmt.Errorf("task %q: record of %q: %w", id, c.ID, errdefs.ErrDataLoss)
	}
	var err error
	if c.init, err = loadProcess(c, ""); err != nil {
		return nil, err
	}
	names, err := filepath.Glob(c.file("exec-*.json"))
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		execID := strings.TrimSuffix(strings.TrimPrefix(filepath.Base(name), "exec-"), ".json")
		p, err := loadProcess(c, execID)
		if err != nil {
			return nil, err
		}
		c.execs[execID] = p
	}
	return c, nil
}

func loadProcess(c *container, execID string) (*process, error) {
	p := newProcess(c, execID, stdio.Config{}, Adding)
	err := statefile.Read(p.path, &p.rec)
	if errdefs.IsNotFound(err) && execID == "" {
		return p, nil // The daemon died between the two records of a creation.
	}
	return p, err
}

// settle brings a loaded container and the monitor's view of it together.
func (s *Set) settle(ctx context.Context, c *container, alive map[uint64]monitor.Record, adopted map[string]monitor.Record) {
	ctx = log.WithLogger(ctx, log.G(ctx).WithField("container_id", c.ID))
	if c.init.rec.State == Adding {
		log.G(ctx).Info("undo the creation that the last daemon did not finish")
		err := errors.Join(c.Runtime.Delete(ctx, c.ID, c.file("undo.log"), true), c.unmountRootfs(), s.dropIO(ctx, c.init), c.removeDir())
		if err != nil {
			log.G(ctx).WithError(err).Error("undo creation")
		}
		return
	}
	s.mu.Lock()
	s.containers[c.ID] = c
	s.mu.Unlock()
	if c.init.rec.State == Starting {
		c.init.finishStart(ctx, adopted)
	}
	for _, p := range c.execs {
		if p.rec.State == Starting {
			p.finishStart(ctx, adopted)
		}
	}
	if c.init.rec.Pid != 0 && c.init.rec.State != Stopped {
		c.openCgroup(ctx)
	}
	// Execs first: their exits are told before the container's.
	for _, p := range append(c.allExecs(), c.init) {
		p.resume(ctx, alive)
	}
}

func (s *Set) dropIO(ctx context.Context, p *process) error {
	host, err := s.attached()
	if err != nil {
		return nil
	}
	return host.DropPrefix(ctx, p.keptPrefix())
}

// finishStart decides what became of a start that the last daemon did not see
// through.
func (p *process) finishStart(ctx context.Context, adopted map[string]monitor.Record) {
	to := Stopped
	var change func(*record)
	switch r, ok := adopted[p.tag()]; {
	case ok:
		to, change = Running, func(rec *record) { rec.Pid, rec.Serial = r.Pid, r.Serial }
		if p.execID == "" && p.c.Restore == nil && p.c.Runtime.Waiting(ctx, p.c.ID, p.c.log("")) {
			to, change = Created, nil
		}
	case p.execID == "" && p.c.Restore != nil:
		to = Created
	default:
		change = func(rec *record) { rec.ExitStatus, rec.ExitedAt = unknownExit, time.Now() }
	}
	if err := p.move(to, change); err != nil {
		log.G(ctx).WithError(err).Error("recover start")
	}
}

func (c *container) openCgroup(ctx context.Context) {
	group, err := cgroup.Load(c.init.rec.CgroupPath)
	if err != nil {
		log.G(ctx).WithError(err).Warn("cgroup of a loaded container")
		return
	}
	if frozen, err := group.Frozen(); err == nil {
		c.mu.Lock()
		c.paused = frozen
		c.mu.Unlock()
	}
	c.watch(ctx, group)
}

// resume goes on with a process: its terminal is copied again, and one that the
// monitor does not know any more has ended unseen. The ends that the monitor
// knows come through Attach.
func (p *process) resume(ctx context.Context, alive map[uint64]monitor.Record) {
	rec := p.snapshot()
	_, known := alive[rec.Serial]
	switch {
	case rec.State == Stopped:
		if !known {
			p.finish() // Published and acknowledged.
		}
	case rec.Serial == 0:
	case !known:
		log.G(ctx).WithField("process", p.String()).Warn("ended while nobody watched")
		p.ended(monitor.Exit{Process: monitor.Process{Serial: rec.Serial, Pid: rec.Pid}, Status: unknownExit << 8, ExitedAt: time.Now()})
	default:
		hangup, err := stdio.WatchStdin(rec.Stdio)
		if err != nil {
			log.G(ctx).WithError(err).Warn("stdin of a loaded process")
		}
		p.onHangup(hangup)
		if !rec.Stdio.Terminal {
			return
		}
		if err := p.reopenTerminal(ctx); err != nil {
			log.G(ctx).WithError(err).Error("terminal of a loaded process")
		}
	}
}

func (p *process) reopenTerminal(ctx context.Context) error {
	host, err := p.c.set.attached()
	if err != nil {
		return err
	}
	kept := map[string]*os.File{}
	defer func() {
		for _, f := range kept {
			f.Close()
		}
	}()
	for _, stream := range []string{masterStream, stdio.Stdin, stdio.Stdout, stdio.Stderr} {
		files, err := host.Fetch(ctx, p.kept(stream))
		if errdefs.IsNotFound(err) {
			continue
		}
		if err != nil {
			return err
		}
		for _, f := range files {
			kept[stream] = f // one per name
		}
	}
	master := kept[masterStream]
	if master == nil {
		return fmt.Errorf("%v: the monitor does not have its terminal: %w", p, errdefs.ErrNotFound)
	}
	delete(kept, masterStream)
	return p.copyTerminal(master, kept)
}
