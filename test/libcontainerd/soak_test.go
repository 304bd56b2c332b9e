package libcontainerd

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/errdefs"

	"caisson/libcontainerd"
	"caisson/libcontainerd/eventtest"
	"caisson/test/daemon"
	"caisson/test/harness"
)

// The soak's flags.
var (
	soakTime   = flag.Duration("soak", 15*time.Second, "how long TestSoak takes, all servers together")
	soakSeed   = flag.Uint64("seed", 0, "seed of TestSoak's decisions; one of its own if 0")
	soakServer = flag.String("server", "", "name of the only server of TestSoak")
	soakLogs   = flag.String("logs", "", "directory for the log of a soak that fails; the system's for temporary files if empty")
)

const (
	soakWorkers = 8
	// soakWait is how long an event may take, servers being restarted.
	soakWait = 90 * time.Second
)

// TestSoak churns containers and execs on eight workers while the server is killed
// and told to stop, connections are cut, the program restarts and its backend
// fails. Then every event must keep the guarantee, every exit must have its code,
// and nothing may be left. What each worker does, and what happens around them, is
// decided by the seed alone.
func TestSoak(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	seed := *soakSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	var chosen []place
	for _, p := range places {
		if *soakServer == p.Name || *soakServer == "" && !p.sandbox {
			chosen = append(chosen, p)
		}
	}
	if len(chosen) == 0 {
		t.Fatalf("there is no server %q", *soakServer)
	}
	for _, p := range chosen {
		t.Run(p.Name, func(t *testing.T) {
			t.Logf("repeat with: -seed %d -server %q", seed, p.Name)
			k := newSoak(t, p.start(t), seed)
			k.run(*soakTime / time.Duration(len(chosen)))
		})
	}
}

// start starts a server of the soak's own. What runc's shims leave behind when
// containerd is killed while it makes a task is containerd's; Caisson leaves nothing.
func (p place) start(t *testing.T) *server {
	t.Helper()
	d, err := daemon.New(daemon.Options{Engine: p.engine})
	must(t, "make a daemon", err)
	t.Cleanup(func() {
		caissond, containerd := d.LogTail(4<<20), d.ContainerdLogTail(4<<20) // Close removes them
		defer func() {
			if t.Failed() {
				t.Logf("log of caissond:\n%s\nlog of containerd:\n%s", caissond, containerd)
			}
		}()
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		defer cancel()
		left, err := d.Close(ctx)
		if err != nil {
			t.Errorf("stop: %v", err)
		}
		for _, what := range left {
			if p.runtime == runcRuntime {
				t.Logf("left behind by containerd: %s", what)
			} else {
				t.Errorf("left behind: %s", what)
			}
		}
	})
	h := harness.Share(t, d)
	h.StartDaemon()
	return &server{Host: h, place: p, t: t}
}

// soak is one run on one server.
type soak struct {
	s     *server
	t     *testing.T
	seed  uint64
	dir   string
	root  string // what all containers have as their root, read-only
	proxy *proxy
	log   *eventtest.Log
	book  book
	other *containerd.Client // of a program that does not use the library
	out   *os.File           // what the library logs

	lives, finished, starts, breaks atomic.Int64

	mu      sync.Mutex        // guards those below
	alive   map[string]string // containers to load after a restart, and the sandboxes they are in
	program *program
	exits   map[string]time.Time   // when they were told
	ended   map[string]time.Time   // of each process name, what the last exit that was told says
	thrown  map[string][]time.Time // when containerd threw the container's task away
	changed chan struct{}
}

func (k *soak) run(length time.Duration) {
	ctx, cancel := context.WithTimeout(context.Background(), length)
	defer cancel()
	k.open()
	var workers, chaos sync.WaitGroup
	for i := range soakWorkers {
		workers.Go(func() { k.work(ctx, i) })
	}
	calm := make(chan struct{})
	chaos.Go(func() { k.disturb(ctx) })
	go func() {
		chaos.Wait()
		close(calm)
	}()
	workers.Wait()
	<-calm
	if err := daemon.Poll(context.Background(), soakWait, func() error { return nothingLeft(k.dir) }); err != nil {
		k.t.Error(err)
	}
	k.closeProgram()
	events := k.log.Events("")
	if err := errors.Join(k.log.Check(true), k.book.check(events, k.told, k.excused)); err != nil {
		k.t.Error(err)
	}
	k.t.Logf("%d containers, %d of them undisturbed to their end, %d processes started, %d events, %d disturbances",
		k.lives.Load(), k.finished.Load(), k.starts.Load(), len(events), k.breaks.Load())
	if k.finished.Load() < soakWorkers || k.breaks.Load() < 2 {
		k.t.Error("that is too little to tell anything")
	}
	if k.t.Failed() {
		k.write()
	}
}

// write keeps the logs of a run that failed.
func (k *soak) write() {
	f, err := os.CreateTemp(*soakLogs, "soak-*.jsonl")
	if err != nil {
		k.t.Error(err)
		return
	}
	_, err = k.log.WriteTo(f)
	out, rerr := os.ReadFile(k.out.Name())
	if err = errors.Join(err, f.Close(), rerr, os.WriteFile(f.Name()+".log", out, 0o600)); err != nil {
		k.t.Error(err)
	}
	k.t.Errorf("seed %d: the events are in %s, the library's log is in %[2]s.log", k.seed, f.Name())
}

// outage ends the server and starts it again.
func (k *soak) outage(end func() error) error {
	err := end()
	ended := time.Now()
	err = errors.Join(err, k.s.again())
	if k.s.runtime != runcRuntime {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	for id, at := range thrownAway(k.s.ContainerdLogTail(1<<20), ended) {
		k.thrown[id] = append(k.thrown[id], at...)
	}
	return err
}

// throws is what containerd logs before it throws a task away, when it starts: its shim
// has no process any more, or does not answer.
var throws = regexp.MustCompile(`^time="([^"]+)" level=\w+ msg="(?:cleaning leaked shim process|cleaning up after shim disconnected)".* id=(\S+)`)

// thrownAway are the times since then at which the log says that of each container. A
// containerd that runs says it, too, when a task was deleted.
func thrownAway(log string, since time.Time) map[string][]time.Time {
	thrown := map[string][]time.Time{}
	for line := range strings.Lines(log) {
		m := throws.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		if at, err := time.Parse(time.RFC3339Nano, m[1]); err == nil && at.After(since) {
			thrown[m[2]] = append(thrown[m[2]], at)
		}
	}
	return thrown
}

// excused: containerd, when it starts, throws the task of a runc whose processes
// have all ended away and tells 137 itself; its exit and those of its execs are gone.
// That it did so since the process was asked for is in its log. When the library finds
// it out depends on how busy the machine is.
func (k *soak) excused(e eventtest.Event, asked time.Time) bool {
	madeUp := e.Info.ProcessID == e.ID && e.Info.ExitCode == 137
	if !madeUp && !errdefs.IsDataLoss(e.Info.Error) {
		return false
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.ContainsFunc(k.thrown[e.ID], func(at time.Time) bool { return at.After(asked) && at.Before(e.Info.ExitedAt) })
}

// plan is what a worker does with a container. It is made of the seed before
// anything happens.
type plan struct {
	id    string
	box   string // the sandbox it is in; empty if in none
	end   ending
	execs []execPlan
	pause bool
}

type ending string

const (
	byItself ending = "by itself" // at once or soon, with its code
	byTerm   ending = "by term"   // told to, with its code
	byKill   ending = "by kill"
	byForce  ending = "by force" // with ForceDelete, whatever runs
)

type execPlan struct {
	id     string
	millis int
	end    ending
	others bool // started by another program
}

func (k *soak) rand(of ...uint64) *rand.Rand {
	stream := uint64(0x9e3779b97f4a7c15)
	for _, n := range of {
		stream = stream*31 + n
	}
	return rand.New(rand.NewPCG(k.seed, stream))
}

func (k *soak) plan(worker, n int) plan {
	r := k.rand(uint64(worker), uint64(n))
	// Ids are used again soon after their container went.
	p := plan{id: fmt.Sprintf("w%d-%d", worker, n%3), pause: r.IntN(8) == 0}
	if r.IntN(3) == 0 && k.s.caisson() {
		p.box = "box-" + p.id
	}
	p.end = []ending{byItself, byTerm, byTerm, byTerm, byKill, byForce}[r.IntN(6)]
	if p.end == byItself {
		return p
	}
	for i := range r.IntN(5) {
		x := execPlan{id: fmt.Sprintf("x%d", i%3), millis: r.IntN(60), end: byItself, others: r.IntN(6) == 0}
		switch r.IntN(6) {
		case 0:
			x.end = byKill
		case 1:
			x.end = byForce // with its container
		}
		if x.end != byItself || x.others {
			x.id = fmt.Sprintf("y%d", i)
		}
		p.execs = append(p.execs, x)
	}
	return p
}

// code is of the process, whatever happens.
func (k *soak) code(id, exec string) uint32 {
	r := k.rand(3, hash(id), hash(exec))
	return uint32(1 + r.IntN(120))
}

func hash(s string) (h uint64) {
	for _, c := range s {
		h = h*131 + uint64(c)
	}
	return h
}

// work does one plan after another until the time is over, and ends what it began.
func (k *soak) work(ctx context.Context, worker int) {
	for n := 0; ctx.Err() == nil; n++ {
		k.lives.Add(1)
		if !k.live(k.plan(worker, n)) {
			return
		}
	}
}

// live is the life of a container. What fails because something is broken around it
// ends the life early; that the container can be removed in the end is certain.
func (k *soak) live(p plan) bool {
	w := &life{k: k, plan: p}
	k.setAlive(p.id, p.box)
	err := w.through()
	if err == nil {
		k.finished.Add(1)
	} else if cerr := classed(err); cerr != nil {
		k.t.Errorf("%s: %v", p.id, cerr)
	}
	ctx, cancel := context.WithTimeout(context.Background(), soakWait)
	defer cancel()
	if rerr := w.remove(ctx); rerr != nil {
		k.t.Errorf("%s cannot be removed after %v: %v", p.id, err, rerr)
		return false
	}
	if !w.owed(p.id) && (p.box == "" || !w.owed(p.box)) {
		k.setDead(p.id)
	}
	return true
}

// retry repeats a step that failed because something was broken.
func retry(ctx context.Context, f func() error) error {
	return daemon.Poll(ctx, soakWait, f)
}

// disturb breaks what can be broken until the time is over, and leaves all whole.
func (k *soak) disturb(ctx context.Context) {
	r := k.rand(1 << 32)
	for {
		wait := time.Duration(200+r.IntN(1500)) * time.Millisecond
		what := r.IntN(10)
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
		k.breaks.Add(1)
		var err error
		switch {
		case what < 2:
			err = k.outage(k.s.kill)
		case what < 3:
			err = k.outage(k.s.term)
		case what < 7:
			k.proxy.cut()
		default:
			k.restart()
		}
		if err != nil {
			k.t.Errorf("disturbance %d: %v", what, err)
			return
		}
	}
}

func newSoak(t *testing.T, s *server, seed uint64) *soak {
	k := &soak{
		s: s, t: t, seed: seed, dir: filepath.Join(s.Dir, "soak"), root: filepath.Join(s.Dir, "soakroot"), proxy: newProxy(t, s.Address),
		other: s.Client(""), alive: map[string]string{}, exits: map[string]time.Time{}, ended: map[string]time.Time{}, thrown: map[string][]time.Time{}, changed: make(chan struct{}),
	}
	makeRoot(t, k.root)
	var err error
	if k.out, err = os.Create(filepath.Join(s.Dir, "library.log")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = k.out.Close() })
	var mu sync.Mutex
	moods := k.rand(1 << 33)
	k.log = &eventtest.Log{Next: backendFunc(func(string, libcontainerd.EventType, libcontainerd.EventInfo) error {
		mu.Lock()
		mood := moods.IntN(60)
		mu.Unlock()
		switch mood {
		case 0:
			return errors.New("not now")
		case 1:
			panic("a bug of the engine")
		}
		return nil
	})}
	return k
}

// ProcessEvent keeps the event, and wakes up who waits for an exit.
func (k *soak) ProcessEvent(id string, event libcontainerd.EventType, ei libcontainerd.EventInfo) error {
	if err := k.log.ProcessEvent(id, event, ei); err != nil || event != libcontainerd.EventExit {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.exits[exitKey(id, ei.ProcessID, ei.Pid)] = time.Now()
	k.ended[exitKey(id, ei.ProcessID, 0)] = ei.ExitedAt
	close(k.changed)
	k.changed = make(chan struct{})
	return nil
}

func exitKey(id, process string, pid uint32) string { return fmt.Sprintf("%s/%s/%d", id, process, pid) }

func (k *soak) told(e eventtest.Event) time.Time {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.exits[exitKey(e.ID, e.Info.ProcessID, e.Info.Pid)]
}

// endedSince says whether an exit of the process was told that is later.
func (k *soak) endedSince(id, process string, since time.Time) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.ended[exitKey(id, process, 0)].After(since)
}

// exited waits until an exit was told.
func (k *soak) exited(ctx context.Context, id, process string, pid uint32) error {
	for {
		k.mu.Lock()
		told, changed := k.exits[exitKey(id, process, pid)], k.changed
		k.mu.Unlock()
		if !told.IsZero() {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("exit of %s/%s, pid %d, is not told: %w", id, process, pid, context.Cause(ctx))
		}
	}
}

// script is what a process runs: it ends with its code, by itself or when told to.
func script(end ending, code uint32, millis int) string {
	if end == byItself {
		return fmt.Sprintf("usleep %d; exit %d", millis*1000, code)
	}
	return fmt.Sprintf("trap 'exit %d' TERM; echo ready; while :; do usleep 20000; done", code)
}
