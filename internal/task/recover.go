package task

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"golang.org/x/sys/unix"

	"caisson/internal/cgroup"
	"caisson/internal/fault"
	"caisson/internal/isolation"
	"caisson/internal/monitor"
	"caisson/internal/statefile"
	"caisson/internal/stdio"
	"caisson/internal/subject"
	"caisson/internal/undo"
)

// Load fills the set from the run-time directory after a restart of the daemon,
// and mends what the old daemon left half done: a container whose creation it
// did not finish is undone, since nobody was told of it; a start is taken to
// its end if the process is there. host is nil if the sandbox's monitor is
// gone: then whatever ran has ended in a way that nobody saw. Attach follows. A Load
// that failed can be repeated.
func (s *Set) Load(ctx context.Context, host isolation.Host) error {
	entries, err := os.ReadDir(filepath.Join(s.cfg.Dir, "t"))
	if errors.Is(err, os.ErrNotExist) {
		s.loaded(nil)
		return nil
	}
	if err != nil {
		return fmt.Errorf("sandbox %q: %w", s.cfg.SandboxID, err)
	}
	known, err := s.survey(ctx, host)
	if err != nil {
		return fmt.Errorf("sandbox %q: %w", s.cfg.SandboxID, err)
	}
	s.mu.Lock()
	s.host, s.before = host, known.last
	s.mu.Unlock()
	if err := stdio.RemoveStale(s.cfg.Dir); err != nil {
		log.G(ctx).WithError(err).Warn("console sockets of the last daemon")
	}
	unread := map[string]bool{}
	for _, entry := range entries {
		name := entry.Name()
		if s.has(name) {
			continue // Load is repeated.
		}
		if strings.HasPrefix(name, gravePrefix) {
			if err := s.loadGrave(ctx, name); err != nil {
				log.G(ctx).WithError(err).WithField("container_id", name[1:]).Error("forget a deleted container")
				s.retry(func() error { return s.loadGrave(s.context(), name) })
			}
			continue
		}
		fault.Point("task:load")
		var c *container
		err := undo.Try(ctx, func() (err error) {
			c, err = s.loadContainer(name)
			return err
		})
		if errdefs.IsNotFound(err) && s.removeUnborn(name) == nil {
			continue
		}
		if err != nil && !errdefs.IsDataLoss(err) && !errdefs.IsInvalidArgument(err) && !errdefs.IsNotFound(err) {
			return fmt.Errorf("sandbox %q: %w", s.cfg.SandboxID, err) // for want of something
		}
		if err != nil {
			// Kept for a person to look at: never remove what cannot be read.
			log.G(ctx).WithError(err).WithField("container_id", name).Error("container not loaded")
			unread[name] = true
			continue
		}
		s.settle(ctx, c, known)
	}
	s.killStrays(ctx, host, known, unread)
	s.loaded(unread)
	return nil
}

// removeUnborn removes the directory of a container of which the last daemon had not
// written the first record, and nothing else.
func (s *Set) removeUnborn(id string) error {
	err := os.Remove(filepath.Join(s.dir(id), "container.json"+statefile.TempSuffix))
	if err == nil || errors.Is(err, os.ErrNotExist) {
		err = os.Remove(s.dir(id))
	}
	return err
}

// loaded ends Withhold.
func (s *Set) loaded(unread map[string]bool) {
	s.mu.Lock()
	s.withheld, s.unread = false, unread
	s.mu.Unlock()
}

// survey is what the monitor knows: its records by serial, the latest OCI runtime of
// each tag, and the latest process that one left behind.
type survey struct {
	alive   map[uint64]monitor.Record
	spawned map[string]monitor.Record
	adopted map[string]monitor.Record
	last    uint64 // serial
}

// survey waits until the OCI runtimes that the last daemon started have ended,
// since what they make belongs to what is settled; those that take long are killed.
func (s *Set) survey(ctx context.Context, host isolation.Host) (survey, error) {
	known := survey{alive: map[uint64]monitor.Record{}, spawned: map[string]monitor.Record{}, adopted: map[string]monitor.Record{}}
	if host == nil {
		return known, nil
	}
	records, err := host.List(ctx)
	patience := time.Now().Add(runtimePatience)
	for pause := time.Millisecond; err == nil; pause = min(2*pause, 50*time.Millisecond) {
		busy := slices.DeleteFunc(slices.Clone(records), func(r monitor.Record) bool {
			return !r.Running || r.Kind != monitor.Spawned || strings.HasPrefix(r.Tag, loggerTag)
		})
		if len(busy) == 0 {
			break
		}
		if time.Now().After(patience) {
			for _, r := range busy {
				if err := host.Signal(ctx, r.Serial, unix.SIGKILL); err != nil && !errdefs.IsNotFound(err) {
					return known, fmt.Errorf("stop OCI runtime: %w", err)
				}
			}
		}
		select {
		case <-time.After(pause):
			records, err = host.List(ctx)
		case <-ctx.Done():
			err = ctx.Err()
		}
	}
	if err != nil {
		return known, fmt.Errorf("list processes: %w", err)
	}
	for _, r := range records {
		known.alive[r.Serial] = r
		known.last = max(known.last, r.Serial)
		switch r.Kind {
		case monitor.Spawned:
			known.spawned[r.Tag] = r
		case monitor.Adopted:
			known.adopted[r.Tag] = r
		}
	}
	return known, nil
}

// killStrays ends the processes of containers and execs that are no container's:
// their start failed as far as anybody was told, or was undone.
func (s *Set) killStrays(ctx context.Context, host isolation.Host, known survey, unread map[string]bool) {
	for _, r := range known.alive {
		id, execID := splitTag(r.Tag)
		if !r.Running || r.Kind != monitor.Adopted || unread[id] {
			continue
		}
		if p, err := s.process(id, execID); err == nil && p.snapshot().Serial == r.Serial {
			continue
		}
		ctx := subject.With(ctx, subject.Subject{ContainerID: id, ExecID: execID})
		log.G(ctx).WithField("pid", r.Pid).Warn("kill a process whose start was not finished")
		if err := host.Signal(ctx, r.Serial, unix.SIGKILL); err != nil && !errdefs.IsNotFound(err) {
			log.G(ctx).WithError(err).Error("kill stray process")
		}
	}
}

// loadGrave finishes what a daemon that died began to delete.
func (s *Set) loadGrave(ctx context.Context, name string) error {
	c := newContainer(s, containerRecord{})
	dir := s.dir(name)
	err := statefile.Read(filepath.Join(dir, "container.json"), &c.containerRecord)
	if err == nil {
		c.init = newProcess(c, "", stdio.Config{}, Stopped)
		err = c.init.read(filepath.Join(dir, "init.json"))
	}
	if err != nil && !errdefs.IsNotFound(err) && !errdefs.IsDataLoss(err) {
		return fmt.Errorf("task %q: %w", name, err) // for want of something: there is an end to tell
	}
	if err == nil && c.init.rec.State == Stopped && gravePrefix+c.ID == name {
		c.keepDeleted()
		return c.mourn(ctx, c.init.rec.exit())
	}
	// Its end was told already, or nobody ever knew of it.
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("task %q: %w", name, err)
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
	if err := c.removeUnfinished(); err != nil {
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

// removeUnfinished removes what the last daemon had written for records that it did
// not live to write.
func (c *container) removeUnfinished() error {
	names, err := filepath.Glob(c.file("*" + statefile.TempSuffix))
	if err != nil {
		return err
	}
	specs, err := filepath.Glob(c.file("exec-*.spec"))
	if err != nil {
		return err
	}
	for _, spec := range specs {
		if _, err := os.Stat(strings.TrimSuffix(spec, ".spec") + ".json"); errors.Is(err, os.ErrNotExist) {
			names = append(names, spec)
		}
	}
	return removeFiles(names...)
}

func loadProcess(c *container, execID string) (*process, error) {
	p := newProcess(c, execID, stdio.Config{}, Adding)
	err := p.read(p.path)
	if errdefs.IsNotFound(err) && execID == "" {
		return p, nil // The daemon died between the two records of a creation.
	}
	p.inherited = p.rec.State != Adding && p.rec.State != Created
	return p, err
}

// read takes over a record that the last daemon wrote.
func (p *process) read(path string) error {
	if err := statefile.Read(path, &p.rec); err != nil {
		return err
	}
	if _, known := allowed[p.rec.State]; !known || p.rec.Pid < 0 {
		return fmt.Errorf("%v: record of pid %d in state %q: %w", p, p.rec.Pid, p.rec.State, errdefs.ErrDataLoss)
	}
	return nil
}

// settle brings a loaded container and the monitor's view of it together.
func (s *Set) settle(ctx context.Context, c *container, known survey) {
	ctx = subject.With(ctx, subject.Subject{ContainerID: c.ID})
	if c.init.rec.State == Adding {
		log.G(ctx).Info("undo the creation that the last daemon did not finish")
		err := undo.Try(ctx, func() error { return c.undoCreate(ctx) })
		if err == nil {
			return
		}
		// As after a Create that could not be undone: Delete tries again.
		log.G(ctx).WithError(err).Error("undo creation")
		s.enter(c)
		c.init.stop(ctx, unknownExit, time.Now())
		c.init.finish()
		return
	}
	s.enter(c)
	if c.init.rec.State == Created {
		c.retell(ctx, c.publishCreate)
	}
	if c.init.rec.State == Starting {
		c.init.finishStart(ctx, known.adopted)
	}
	for _, p := range c.execs {
		switch p.rec.State {
		case Created:
			c.retell(ctx, p.publishAdded)
		case Starting:
			p.finishStart(ctx, known.adopted)
		}
	}
	c.finishCheckpoint(ctx, known)
	if c.init.rec.Pid != 0 && c.init.rec.State != Stopped {
		c.openCgroup(ctx)
		if _, err := s.attached(); err != nil {
			c.killGroup(ctx) // Nobody could wait for it any more.
		}
	}
	// Execs first: their exits are told before the container's.
	for _, p := range append(c.allExecs(), c.init) {
		p.resume(ctx, known.alive)
	}
}

func (s *Set) enter(c *container) {
	s.mu.Lock()
	s.containers[c.ID] = c
	s.mu.Unlock()
}

// undoCreate takes back what the last daemon made of a container.
func (c *container) undoCreate(ctx context.Context) error {
	err := errors.Join(c.undoRuntime(ctx), c.unmountRootfs(ctx))
	if !c.set.owes(c.Request) {
		// Else it is created again, and the reader of its output must not see an end.
		err = errors.Join(err, c.init.dropKept(ctx))
	}
	if err == nil {
		err = c.bury()
	}
	if err == nil {
		err = c.removeGrave()
	}
	return err
}

// retell publishes what the last daemon wrote down first and may not have told.
// Whatever was done since was asked for by somebody who knew.
func (c *container) retell(ctx context.Context, publish func(context.Context) error) {
	if err := publish(ctx); err != nil {
		log.G(ctx).WithError(err).Error("publish what the last daemon did")
		c.set.retry(func() error { return publish(c.context()) })
	}
}

// owes tells whether a request will be made again; none has no ID.
func (s *Set) owes(request string) bool {
	return request != "" && s.cfg.Owes != nil && s.cfg.Owes(request)
}

// finishStart decides what became of a start that the last daemon did not see
// through. What left no process behind can be started again.
func (p *process) finishStart(ctx context.Context, adopted map[string]monitor.Record) {
	r, ok := adopted[p.tag()]
	switch {
	case ok && (p.execID != "" || p.c.Restore != nil || !p.c.Runtime.Waiting(ctx, p.c.ID, p.c.log(""))):
		p.runs(ctx, record{Pid: r.Pid, Serial: r.Serial})
	case ok || p.execID != "" || p.c.Restore != nil:
		p.note(ctx, Created, func(*record) {})
	default:
		p.note(ctx, Stopped, func(rec *record) { rec.ExitStatus, rec.ExitedAt = unknownExit, time.Now() })
	}
}

func (c *container) openCgroup(ctx context.Context) {
	var group *cgroup.Group
	err := undo.Try(ctx, func() (err error) {
		group, err = cgroup.Load(c.init.rec.CgroupPath)
		if errdefs.IsNotFound(err) {
			err = nil // It has ended.
		}
		return err
	})
	if group == nil {
		log.G(ctx).WithError(err).Warn("cgroup of a loaded container")
		return
	}
	c.settleTurn(ctx, group)
	c.watch(group)
}

// resume goes on with a process: its terminal is copied again, and one that the
// monitor does not know any more has ended unseen. The ends that the monitor
// knows come through Attach.
func (p *process) resume(ctx context.Context, alive map[uint64]monitor.Record) {
	rec := p.snapshot()
	_, known := alive[rec.Serial]
	switch {
	case rec.State == Stopped:
		p.releaseIO(ctx)
		if !known {
			p.finish() // Published and acknowledged.
		}
	case rec.Serial == 0:
	case !known:
		log.G(p.context()).Warn("ended while nobody watched")
		p.ended(monitor.Exit{Process: monitor.Process{Serial: rec.Serial, Pid: rec.Pid}, Status: unknownExit << 8, ExitedAt: time.Now()})
	default:
		if p.execID != "" || rec.State == Created {
			hangup, err := p.watchStdin(rec.Stdio)
			if err != nil {
				log.G(ctx).WithError(err).Warn("stdin of a loaded process")
			}
			p.onHangup(hangup)
		}
		if !rec.Stdio.Terminal {
			return
		}
		if err := undo.Try(ctx, func() error { return p.reopenTerminal(ctx) }); err != nil {
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
	delete(kept, masterStream)
	if master == nil { // The last daemon did not come to take it.
		if master, err = p.sentTerminal(ctx, host); err == nil {
			err = p.keepTerminal(ctx, host, master)
		}
		if err != nil {
			return fmt.Errorf("%v: its terminal: %w", p, err)
		}
	}
	return p.copyTerminal(master, kept)
}
