package libcontainerd_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/sirupsen/logrus"

	"caisson/libcontainerd"
	"caisson/libcontainerd/eventtest"
)

const namespace = "fakes"

var seedFlag = flag.Uint64("seed", 0, "seed of TestRandom; 0 for a new one")

func testContext() context.Context { return namespaces.WithNamespace(context.Background(), namespace) }

func newClient(t *testing.T, f *fake, dir string, backend libcontainerd.Backend) libcontainerd.Client {
	t.Helper()
	quiet := logrus.New()
	quiet.SetOutput(io.Discard)
	c, err := libcontainerd.New(testContext(), f.connect(t), libcontainerd.Options{
		Namespace: namespace, StateDir: dir, Backend: backend, Logger: quiet.WithFields(nil),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

func spec() *specs.Spec {
	return &specs.Spec{Version: "1.0.2", Root: &specs.Root{Path: "rootfs"}, Process: &specs.Process{Args: []string{"true"}, Cwd: "/"}}
}

// life is a random life of one container: started, with execs, ended from inside
// or by a kill, deleted, some started again. Whatever call fails because the server
// is away is repeated, as an engine would.
type life struct {
	t      *testing.T
	fake   *fake
	random *rand.Rand
	id     string
	client func() libcontainerd.Client
	log    *eventtest.Log
	pipes  *pipes
}

// pipes are a program's ends of its containers' FIFOs, which its end closes.
type pipes struct {
	mu  sync.Mutex
	all []*cio.DirectIO
}

func (p *pipes) attach(dio *cio.DirectIO) (cio.IO, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.all = append(p.all, dio)
	return dio, nil
}

func (p *pipes) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, dio := range p.all {
		dio.Cancel()
		_ = dio.Close() // perhaps again
	}
	p.all = nil
}

func (l *life) run(ctx context.Context) error {
	var ctr libcontainerd.Container
	if err := l.repeat(ctx, func() (err error) {
		ctr, err = l.client().NewContainer(ctx, l.id, spec(), "fake", nil)
		if errdefs.IsAlreadyExists(err) {
			ctr, err = l.client().LoadContainer(ctx, l.id)
		}
		return err
	}); err != nil {
		return fmt.Errorf("new container: %w", err)
	}
	for range 1 + l.random.IntN(3) {
		if err := l.once(ctx, ctr); err != nil {
			return err
		}
	}
	return l.repeat(ctx, func() error {
		ctr, err := l.client().LoadContainer(ctx, l.id)
		if err == nil {
			err = ctr.Delete(ctx)
		}
		if errdefs.IsNotFound(err) {
			return nil
		}
		return err
	})
}

// once is one task of the container.
func (l *life) once(ctx context.Context, ctr libcontainerd.Container) error {
	var task libcontainerd.Task
	fresh := func() (err error) {
		ctr, err = l.client().LoadContainer(ctx, l.id)
		return err
	}
	if err := l.repeat(ctx, func() error {
		if err := fresh(); err != nil {
			return err
		}
		t, err := ctr.Start(ctx, "", l.random.IntN(2) == 0, l.pipes.attach)
		if errdefs.IsAlreadyExists(err) { // of an attempt that a closed client made
			t, err = ctr.Task(ctx)
			if err == nil {
				err = t.ForceDelete(ctx)
			}
			return errors.Join(err, errAgain)
		}
		task = t
		return err
	}); err != nil {
		return fmt.Errorf("start: %w", err)
	}
	if l.random.IntN(3) == 0 {
		l.foreign(ctx)
	}
	if l.random.IntN(3) == 0 && task.Pause(ctx) == nil && l.random.IntN(2) == 0 {
		_ = task.Resume(ctx)
	}
	for i := range l.random.IntN(4) {
		exec := fmt.Sprintf("exec%d", i)
		p, err := task.Exec(ctx, exec, &specs.Process{Args: []string{"true"}}, false, l.pipes.attach)
		if err != nil {
			l.t.Logf("%s: exec %s: %v", l.id, exec, err) // the client was closed, or the container ended
			continue
		}
		if l.random.IntN(2) == 0 {
			l.fake.end(l.id, exec, uint32(l.random.IntN(100)))
			if l.random.IntN(2) == 0 {
				_, _ = p.Delete(ctx)
			}
		}
	}
	if l.random.IntN(2) == 0 {
		l.fake.end(l.id, "", uint32(l.random.IntN(100)))
	}
	return l.repeat(ctx, func() error {
		if err := fresh(); err != nil {
			return err
		}
		t, err := ctr.Task(ctx)
		if errdefs.IsNotFound(err) {
			return nil
		}
		if err != nil {
			return err
		}
		return t.ForceDelete(ctx)
	})
}

// foreign is an exec of another program's.
func (l *life) foreign(ctx context.Context) {
	other := l.fake.other()
	if _, err := other.Exec(ctx, &tasks.ExecProcessRequest{ContainerID: l.id, ExecID: foreign}); err != nil {
		return // the server is away
	}
	if _, err := other.Start(ctx, &tasks.StartRequest{ContainerID: l.id, ExecID: foreign}); err == nil && l.random.IntN(2) == 0 {
		l.fake.end(l.id, foreign, 77)
	}
}

const foreign = "foreign"

// runSandbox is a random life of a sandbox.
func (l *life) runSandbox(ctx context.Context) error {
	for range 2 {
		if err := l.repeat(ctx, func() error {
			sb, err := l.client().NewSandbox(ctx, sandbox.Sandbox{ID: l.id, Sandboxer: sandboxer})
			if err == nil {
				err = sb.Start(ctx)
			}
			if errdefs.IsAlreadyExists(err) { // of an attempt that got no answer
				return errors.Join(l.shutdown(ctx), errAgain)
			}
			return err
		}); err != nil {
			return fmt.Errorf("start: %w", err)
		}
		if l.random.IntN(2) == 0 {
			l.fake.endSandbox(l.id, uint32(l.random.IntN(100)))
		}
		if err := l.repeat(ctx, func() error { return l.shutdown(ctx) }); err != nil {
			return fmt.Errorf("shutdown: %w", err)
		}
	}
	return nil
}

func (l *life) shutdown(ctx context.Context) error {
	sb, err := l.client().LoadSandbox(ctx, l.id)
	if err == nil {
		err = sb.Shutdown(ctx)
	}
	if errdefs.IsNotFound(err) {
		return nil
	}
	return err
}

var errAgain = fmt.Errorf("again: %w", errdefs.ErrUnavailable)

func (l *life) repeat(ctx context.Context, do func() error) error {
	for {
		err := do()
		again := errdefs.IsUnavailable(err) || errors.Is(err, libcontainerd.ErrClosed) || errors.Is(err, context.Canceled) ||
			errors.Is(err, os.ErrNotExist) // of a killed program, which lost its directory
		if !again || ctx.Err() != nil {
			return err
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Millisecond):
		}
	}
}

// TestRandom lets containers live while the server crashes, answers and events get
// lost and the calling program restarts, and checks the guarantee against what
// happened in truth.
func TestRandom(t *testing.T) {
	seed := *seedFlag
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("seed %d (run it again with -seed)", seed)
	for round := range uint64(6) {
		t.Run(fmt.Sprint(round), func(t *testing.T) {
			t.Parallel()
			randomRound(t, seed+round)
		})
	}
}

func randomRound(t *testing.T, seed uint64) {
	random := rand.New(rand.NewPCG(seed, 1))
	f := newFake(seed)
	f.lost, f.spoils = 0.05, 0.2
	dir := t.TempDir()
	events := &eventtest.Log{Next: &moody{random: rand.New(rand.NewPCG(seed, 2))}}
	prog := &program{next: events, last: map[string][]eventtest.Event{}}
	ctx, cancel := context.WithTimeout(testContext(), time.Minute)
	defer cancel()

	fifos := &pipes{}
	defer fifos.close()
	var mu sync.Mutex
	current := newClient(t, f, dir, prog)
	client := func() libcontainerd.Client {
		mu.Lock()
		defer mu.Unlock()
		return current
	}
	var ids []string
	var lives sync.WaitGroup
	for i := range 9 {
		l := &life{t: t, fake: f, random: rand.New(rand.NewPCG(seed, uint64(10+i))), id: fmt.Sprintf("c%d", i), client: client, log: events, pipes: fifos}
		ids = append(ids, l.id)
		run := l.run
		if i >= 7 {
			run = l.runSandbox
		}
		lives.Go(func() {
			if err := run(ctx); err != nil {
				t.Errorf("%s: %v", l.id, err)
			}
		})
	}
	restart := func() {
		if err := current.Close(); err != nil {
			t.Error(err)
		}
		fifos.close()
		current = newClient(t, f, dir, prog)
	}
	done := make(chan struct{})
	go func() { lives.Wait(); close(done) }()
	for over := false; !over; {
		select {
		case <-done:
			over = true
		case <-time.After(time.Duration(random.IntN(40)) * time.Millisecond):
			switch random.IntN(4) {
			case 0:
				f.crash()
				time.AfterFunc(time.Duration(random.IntN(30))*time.Millisecond, f.restart)
			case 1:
				f.breakStreams()
			case 2: // the program restarts and loads what it knows
				mu.Lock()
				restart()
				mu.Unlock()
				for _, id := range ids {
					_, _ = client().LoadContainer(ctx, id)
				}
			case 3: // it is killed: what it does from now on nobody sees
				mu.Lock()
				prog = prog.kill(events)
				f.cut(true)
				if err := os.Rename(dir, dir+"'"); err != nil {
					t.Error(err)
				}
				dir += "'"
				restart()
				mu.Unlock()
			}
		}
	}
	f.restart()
	settle(ctx, t, f, client(), ids, events, dir)
}

// settle loads what is left until everything is told, and compares.
func settle(ctx context.Context, t *testing.T, f *fake, c libcontainerd.Client, ids []string, events *eventtest.Log, dir string) {
	t.Helper()
	for _, id := range ids {
		if _, err := c.LoadContainer(ctx, id); !errdefs.IsNotFound(err) {
			t.Errorf("container %s is left: %v", id, err)
		}
		if _, err := c.LoadSandbox(ctx, id); !errdefs.IsNotFound(err) {
			t.Errorf("sandbox %s is left: %v", id, err)
		}
		want := f.truth(id)
		known := 0 // those that nobody could miss
		for _, e := range want {
			if e.process != foreign {
				known++
			}
		}
		ownExits := func() int {
			return len(slices.DeleteFunc(exits(events, id), func(e fakeExit) bool { return e.process == foreign }))
		}
		_, err := events.Wait(ctx, func(eventtest.Event) bool { return ownExits() >= known })
		got := exits(events, id)
		without := func(all, others []fakeExit) []fakeExit {
			return slices.DeleteFunc(slices.Clone(all), func(a fakeExit) bool {
				return slices.ContainsFunc(others, func(b fakeExit) bool { return a == b })
			})
		}
		missing := slices.DeleteFunc(without(want, got), func(e fakeExit) bool { return e.process == foreign })
		wrong := without(got, want)
		if len(missing)+len(wrong) > 0 || ownExits() != known || len(got) > len(want) {
			t.Errorf("container %s: %d exits, want %d: %v; missing %v, wrong %v; told %v", id, len(got), len(want), err, missing, wrong, events.Events(id))
		}
	}
	if err := events.Check(true); err != nil {
		t.Error(err)
	}
	for _, id := range ids { // what is left to tell may not be an exit
		for libcontainerd.LedgerSize(c, id) > 0 && ctx.Err() == nil {
			time.Sleep(time.Millisecond)
		}
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if left, err := filepath.Glob(filepath.Join(dir, "*", "*")); err != nil || len(left) > 0 {
		t.Errorf("left in the state directory: %v %v", left, err)
	}
}

func exits(log *eventtest.Log, id string) []fakeExit {
	var all []fakeExit
	for _, e := range log.Events(id) {
		if e.Type == libcontainerd.EventExit {
			pid := e.Info.Pid
			if e.Info.SandboxID != "" {
				pid = 0 // nobody says the pid of one that has ended
			}
			all = append(all, fakeExit{e.ID, e.Info.ProcessID, pid, e.Info.ExitCode, e.Info.ExitedAt.UnixNano()})
		}
	}
	return all
}

// moody is a backend that fails now and then.
type moody struct {
	mu     sync.Mutex
	random *rand.Rand
}

func (m *moody) ProcessEvent(string, libcontainerd.EventType, libcontainerd.EventInfo) error {
	m.mu.Lock()
	mood := m.random.IntN(60)
	m.mu.Unlock()
	switch mood {
	case 0:
		return errors.New("bad mood")
	case 1:
		panic("very bad mood")
	}
	return nil
}
