package chaos

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"log"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/pkg/namespaces"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"caisson/test/daemon"
	"caisson/test/harness"
	"caisson/test/leak"
)

var (
	length = flag.Duration("chaos", 0, "how long TestChaos takes; it is left out if 0")
	seed   = flag.Uint64("seed", 0, "what it decides by; a seed of its own if 0")
	engine = flag.String("engine", daemon.EngineEmbedded, "embedded, or stock for a containerd beside caissond")
	logs   = flag.String("logs", "", "directory for the logs of a run that fails; there are none if empty")
	only   = flag.String("only", "", "the disturbances to choose from, all if empty: "+strings.Join(kindNames(), ","))
)

const (
	workers = 16
	// patience is how long a worker repeats a call that fails because of what is
	// done to the daemon, or waits for a container's end.
	patience = 2 * time.Minute
	// space of the file systems of the daemon's root and state.
	space = 160 << 20
)

// chaos is one run.
type chaos struct {
	t    *testing.T
	h    *harness.Host
	cri  *harness.CRI
	seed uint64
	book book

	pods, undisturbed, containers, execs, bytes, repeated, answers atomic.Int64
}

// TestChaos is the whole of it.
func TestChaos(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	if *length == 0 {
		t.Skip("takes as long as it is told to: make chaos, or -chaos 2m")
	}
	if *seed == 0 {
		*seed = rand.Uint64N(1 << 32)
	}
	t.Logf("repeat with: make chaos CHAOS_DURATION=%s CHAOS_SEED=%d (engine %s)", *length, *seed, *engine)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the seed was %d", *seed)
		}
	})
	t.Cleanup(func() { close(finished) })
	h := harness.New(t, daemon.Options{Engine: *engine, Space: space, Config: "\n[pool]\nsize = 2\n"})
	h.StartDaemon()
	c := &chaos{t: t, h: h, cri: h.CRI(), seed: *seed}
	c.book.trace = c.traceFile()
	t.Cleanup(c.keepLogs)
	ctx, cancel := context.WithTimeout(interrupted, *length)
	defer cancel()
	c.run(ctx)
	c.expectNothing()
	c.t.Logf("%d pods, %d of them undisturbed; %d containers with %d bytes of output, %d execs; %d calls were repeated",
		c.pods.Load(), c.undisturbed.Load(), c.containers.Load(), c.bytes.Load(), c.execs.Load(), c.repeated.Load())
	c.t.Logf("disturbances: %s", c.book.tally())
	if c.undisturbed.Load() < workers/2 || c.execs.Load() < workers {
		t.Error("that is too little to tell anything")
	}
}

func (c *chaos) run(ctx context.Context) {
	var all sync.WaitGroup
	for i := range workers {
		if err := c.h.AddCgroup(c.cgroup(i)); err != nil {
			c.t.Fatal(err)
		}
		all.Go(func() {
			for n := 0; ctx.Err() == nil && !c.t.Failed(); n++ {
				c.live(c.plan(i, n))
			}
		})
	}
	all.Go(func() { c.disturb(ctx) })
	all.Wait()
}

// keepLogs keeps the logs of a run that failed, whole.
func (c *chaos) keepLogs() {
	if !c.t.Failed() || *logs == "" {
		return
	}
	dir := filepath.Join(*logs, c.h.Token)
	err := os.MkdirAll(dir, 0o700)
	for _, path := range []string{c.h.LogFile, filepath.Join(c.h.Dir, "containerd.log"), filepath.Join(c.h.Dir, "trace")} {
		text, rerr := os.ReadFile(path)
		if errors.Is(rerr, os.ErrNotExist) {
			continue
		}
		err = errors.Join(err, rerr, os.WriteFile(filepath.Join(dir, filepath.Base(path)), text, 0o600))
	}
	c.t.Logf("the logs are in %s (%v)", dir, err)
}

// traceFile says when what happened.
func (c *chaos) traceFile() *log.Logger {
	f, err := os.Create(filepath.Join(c.h.Dir, "trace"))
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { _ = f.Close() }) // it is read, if at all, before
	return log.New(f, "", log.Ltime|log.Lmicroseconds)
}

func (c *chaos) cgroup(worker int) string { return fmt.Sprintf("/%s/w%d", c.h.Token, worker) }

// rand is a source of its own for each use, so that none depends on how others went.
func (c *chaos) rand(of ...uint64) *rand.Rand {
	stream := uint64(0x9e3779b97f4a7c15)
	for _, n := range of {
		stream = stream*31 + n
	}
	return rand.New(rand.NewPCG(c.seed, stream))
}

// expectNothing looks for what is left of the pods, all of which were removed. A
// sandbox whose start was not answered has no owner, and goes after a while.
func (c *chaos) expectNothing() {
	c.t.Helper()
	ctx := namespaces.WithNamespace(c.h.Context(2*time.Minute), harness.CRINamespace)
	client := c.h.Client(harness.CRINamespace)
	err := daemon.Poll(ctx, time.Minute, func() error {
		left, err := leak.Left(filepath.Join(c.h.State, "s"))
		sandboxes, serr := client.SandboxStore().List(ctx)
		containers, cerr := client.Containers(ctx)
		if err := errors.Join(err, serr, cerr); err != nil {
			return err
		}
		for _, s := range sandboxes {
			left = append(left, "record of sandbox "+s.ID)
		}
		for _, ctr := range containers {
			if !c.forgotten(ctr.ID()) {
				left = append(left, "record of container "+ctr.ID())
			}
		}
		if len(left) > 0 {
			return fmt.Errorf("left of removed pods: %q", left)
		}
		return nil
	})
	if err != nil {
		c.t.Error(err)
	}
	pods, err := c.cri.ListPodSandbox(ctx, &runtime.ListPodSandboxRequest{})
	if err != nil || len(pods.Items) > 0 {
		c.t.Errorf("CRI lists pods: %v, %v", pods, err)
	}
}

// forgotten tells whether CRI could not take back a container that it had failed to
// create, since its own database had no room either, and said so: nobody gets to know of
// that container.
func (c *chaos) forgotten(id string) bool {
	path := filepath.Join(c.h.Dir, "containerd.log")
	if !c.h.Stock() {
		path = c.h.LogFile
	}
	f, err := os.Open(path)
	if err != nil {
		c.t.Error(err)
		return false
	}
	defer f.Close()
	for lines := bufio.NewReader(f); ; {
		line, err := lines.ReadString('\n')
		if strings.Contains(line, "Failed to delete containerd container") && strings.Contains(line, id) && strings.Contains(line, "no space left on device") {
			return true
		}
		if err != nil {
			return false
		}
	}
}

// chosen are the kinds of disturbances of this run, those that happen often more
// often.
func (c *chaos) chosen() (chosen []kind) {
	for _, k := range kinds {
		named := *only == "" || slices.Contains(strings.Split(*only, ","), k.name)
		if named && (!k.stock || c.h.Stock()) {
			chosen = append(chosen, slices.Repeat([]kind{k}, k.weight)...)
		}
	}
	if len(chosen) == 0 {
		c.t.Fatalf("no disturbance is called %q", *only)
	}
	return chosen
}
