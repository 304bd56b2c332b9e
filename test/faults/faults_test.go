package faults

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// workers is how many worlds there are side by side: most of the time is spent
// waiting.
const workers = 4

// caseLimit bounds one case.
const caseLimit = time.Minute

// TestRelease: a release build has no fault points.
func TestRelease(t *testing.T) {
	points := read(t)
	release, err := os.ReadFile(filepath.Join(root, "bin/caissond"))
	if err != nil {
		t.Fatal(err)
	}
	withPoints, err := os.ReadFile(filepath.Join(root, "build", program))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range append(names(points), "CAISSON_FAULTS") {
		if strings.Contains(string(release), name) {
			t.Errorf("bin/caissond contains %s", name)
		}
		if !strings.Contains(string(withPoints), name) {
			t.Errorf("build/%s does not contain %s", program, name)
		}
	}
}

const (
	root = "../.."
)

func read(t *testing.T) []point {
	t.Helper()
	points, err := findPoints(root)
	if err != nil {
		t.Fatal(err)
	}
	return points
}

func names(points []point) []string {
	var names []string
	for _, p := range points {
		names = append(names, p.name)
	}
	return names
}

// one is a case: a fault at a hit of a point in a call of a life.
type one struct {
	life  *life
	call  int
	point string
	hit   int
	fault string
}

func (c one) String() string {
	return fmt.Sprintf("%s/%s/%s#%d/%s", c.life.name, c.life.calls[c.call].name, c.point, c.hit, c.fault)
}

// handOver is the fault after which the call is not made again: its client keeps its
// connection, and the next daemon answers.
const handOver = "handover"

// errNotReached is a case whose point was not reached.
var errNotReached = errors.New("the point was not reached")

func TestFaults(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	points := read(t)
	cases, spare := survey(t, points)
	t.Logf("%d points, %d cases", len(points), len(cases))
	results := sync.Map{}
	work := make(chan one)
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			var w *world
			for c := range work {
				var err error
				for _, c := range append([]one{c}, spare[c]...) {
					for range 3 { // What a call leaves to the daemon differs from time to time.
						if w, err = try(untilSignal, w, c); !errors.Is(err, errNotReached) {
							break
						}
					}
					if err != nil && !errors.Is(err, errNotReached) {
						t.Errorf("%v: %v", c, err)
					}
					if !errors.Is(err, errNotReached) {
						break
					}
				}
				results.Store(c, err)
			}
			if err := end(w); err != nil {
				t.Error(err)
			}
		})
	}
	for _, c := range cases {
		if untilSignal.Err() == nil {
			work <- c
		}
	}
	close(work)
	wg.Wait()
	table(t, points, cases, &results)
}

// spares is how many other ways to a point and fault there are at most.
const spares = 3

// survey lives every life without a fault, and makes the cases of what was
// reached: all, or each point and fault once. Some of those are reached by chance, so
// there are others for when one is not.
func survey(t *testing.T, points []point) (cases []one, spare map[one][]one) {
	t.Helper()
	spare = map[one][]one{}
	first := map[string]one{} // by point and fault
	byName := map[string]point{}
	for _, p := range points {
		byName[p.name] = p
	}
	w, err := fresh(untilSignal)
	defer func() {
		if err := end(w); err != nil {
			t.Error(err)
		}
	}()
	if err != nil {
		t.Fatal(err)
	}
	for i := range lives {
		l := &lives[i]
		for _, n := range l.armed {
			trace, err := w.live(untilSignal, one{life: l, call: n, fault: "none"})
			if err != nil {
				t.Fatalf("%s without a fault: %v\n%s", l.name, err, w.LogTail(8<<10))
			}
			hits := map[string]int{}
			for _, name := range trace {
				hits[name]++
			}
			for _, name := range slices.Sorted(maps.Keys(hits)) {
				p, ok := byName[name]
				if !ok {
					t.Fatalf("the daemon has a point %s, the source has not: build it again", name)
				}
				for hit := range hits[name] {
					faults := append(slices.Clone(p.faults), lasting(p, l.calls[n])...)
					if l.calls[n].kept {
						faults = append(faults, handOver)
					}
					for _, f := range faults {
						c := one{l, n, name, hit + 1, f}
						main, seen := first[name+f]
						switch {
						case *all || !seen:
							first[name+f] = c
							cases = append(cases, c)
						case len(spare[main]) < spares && (main.life != l || main.call != n):
							spare[main] = append(spare[main], c)
						}
					}
				}
			}
		}
	}
	for _, p := range points {
		if _, seen := first[p.name+"kill"]; !seen {
			t.Errorf("no life reaches %s (%s)", p.name, p.place)
		}
	}
	if *only != "" {
		cases = slices.DeleteFunc(cases, func(c one) bool { return !strings.Contains(c.String(), *only) })
	}
	return cases, spare
}

// lasting are the faults that go on until the call has returned: a disk that is
// full stays so.
func lasting(p point, c call) []string {
	waitedFor := strings.HasPrefix(p.name, "monitor:") || strings.HasPrefix(p.name, "request:")
	if len(p.faults) == 1 || c.restart || c.unasked || waitedFor {
		return nil
	}
	return []string{p.faults[1] + "+"}
}

// try runs a case in a world, and returns the world for the next: a new one if
// this one may be spoilt.
func try(ctx context.Context, w *world, c one) (*world, error) {
	if w == nil {
		var err error
		if w, err = fresh(ctx); err != nil {
			return nil, errors.Join(err, end(w))
		}
	}
	_, err := w.live(ctx, c)
	if err == nil {
		return w, nil
	}
	if *logDir != "" && !errors.Is(err, errNotReached) {
		name := strings.NewReplacer("/", "_", " ", "-", ",", "").Replace(c.String())
		text := fmt.Sprintf("%v\n\n%v\n\n%s", c, err, w.LogTail(64<<10))
		err = errors.Join(err, os.WriteFile(filepath.Join(*logDir, name+".log"), []byte(text), 0o600))
	}
	_ = end(w) // what is left is known
	return nil, err
}

// fresh makes a world; there is one also after an error.
func fresh(ctx context.Context) (*world, error) {
	ctx, cancel := context.WithTimeout(ctx, caseLimit)
	defer cancel()
	w, err := newWorld()
	if err != nil {
		return nil, err
	}
	return w, w.fill(ctx)
}

// end removes a world and its sandbox beside.
func end(w *world) error {
	if w == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), caseLimit)
	defer cancel()
	var err error
	if w.conn != nil && w.beside != nil {
		err = errors.Join(w.beside.sandboxShutdownAgain(ctx), w.beside.clear())
	}
	left, cerr := w.close(ctx)
	if len(left) > 0 {
		err = errors.Join(err, fmt.Errorf("left behind:\n  %s", strings.Join(left, "\n  ")))
	}
	return errors.Join(err, cerr)
}

// live lives a life with the fault, and looks at what is left.
func (w *world) live(ctx context.Context, c one) (trace []string, err error) {
	ctx, cancel := context.WithTimeout(ctx, caseLimit)
	defer cancel()
	w.serial++
	r := c.life.make(w)
	r.id = fmt.Sprintf("c%d", w.serial)
	if err := r.order("none", 0, "none"); err != nil {
		return nil, err
	}
	for i, call := range c.life.calls {
		if i == c.call {
			trace, err = r.armed(ctx, c)
		} else {
			err = call.do(r, ctx)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", call.name, err)
		}
	}
	if err := r.toldOnce(ctx); err != nil {
		return nil, err
	}
	if err := r.clear(); err != nil {
		return nil, err
	}
	if err := w.unnoticed(ctx); err != nil {
		return nil, err
	}
	return trace, w.unchanged(ctx)
}

// armed makes the call in which the fault happens, and the same once more.
func (r *run) armed(ctx context.Context, c one) ([]string, error) {
	call := c.life.calls[c.call]
	if call.restart {
		if err := r.Kill(); err != nil {
			return nil, err
		}
	} else if err := r.calm(ctx); err != nil {
		return nil, err
	}
	if c.fault == handOver {
		r.kills++
		return r.handOver(ctx, c)
	}
	if err := r.order(c.point, c.hit, c.fault); err != nil {
		return nil, err
	}
	if c.fault == "kill" {
		r.kills++
	}
	cctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if !call.restart {
		defer cancelWhen(r.Exited(), cancel)()
	}
	told := call.do(r, cctx)
	r.told = told
	if c.fault == "none" {
		if told != nil {
			return nil, told
		}
		return r.quiet(ctx)
	}
	// What the daemon does on its own comes a moment later.
	reached := pollFor(ctx, 2*time.Second, func() error {
		if !r.done() {
			return errNotReached
		}
		return nil
	})
	trace, err := r.relieve()
	if err != nil {
		return nil, err
	}
	if reached != nil {
		return nil, fmt.Errorf("%w; the call returned: %v; reached: %q", reached, told, trace)
	}
	if c.fault == "kill" {
		if err := errors.Join(r.Kill(), r.start(ctx)); err != nil {
			return nil, err
		}
		if call.restart {
			return trace, nil
		}
	} else if told == nil {
		return trace, nil // It was borne.
	}
	again := call.again
	if again == nil {
		again = call.do
	}
	if !strings.HasSuffix(c.fault, "+") {
		err = again(r, ctx)
	} else {
		// What could not be taken back is taken back in the background.
		err = pollFor(ctx, 10*time.Second, func() error { return again(r, ctx) })
	}
	if err != nil {
		return nil, fmt.Errorf("again: %w; the first time: %v", err, told)
	}
	return trace, nil
}

// handOver makes the call, lets the daemon be killed in it, and starts the next one,
// which must answer as if nothing had happened.
func (r *run) handOver(ctx context.Context, c one) ([]string, error) {
	if err := r.order(c.point, c.hit, "kill"); err != nil {
		return nil, err
	}
	exited, told := r.Exited(), make(chan error, 1)
	go func() { told <- c.life.calls[c.call].do(r, ctx) }()
	var answer error
	answered := false
	select {
	case <-exited:
	case answer = <-told:
		answered = true
		select { // What the daemon does on its own comes a moment later.
		case <-exited:
		case <-time.After(2 * time.Second):
		}
	}
	reached := r.done()
	trace, err := r.relieve()
	if err != nil {
		return nil, err
	}
	if !reached {
		return nil, fmt.Errorf("%w; the call returned: %v; reached: %q", errNotReached, answer, trace)
	}
	if err := errors.Join(r.Kill(), r.start(ctx)); err != nil {
		return nil, err
	}
	if !answered {
		answer = <-told // or ctx is over
	}
	if answer != nil {
		return nil, fmt.Errorf("answered by the next daemon: %w", answer)
	}
	return trace, nil
}

// cancelWhen ends calls to a daemon that has ended: nobody answers them.
func cancelWhen(exited <-chan struct{}, cancel func()) (stop func()) {
	over := make(chan struct{})
	go func() {
		select {
		case <-exited:
			cancel()
		case <-over:
		}
	}()
	return func() { close(over) }
}

// calm waits until the daemon has sent all events and taken note of that, so that
// what is reached from then on belongs to what comes.
func (r *run) calm(ctx context.Context) error {
	return pollFor(ctx, 5*time.Second, func() error {
		text, err := os.ReadFile(filepath.Join(r.dir, "trace"))
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		n := map[string]int{}
		for _, name := range strings.Fields(string(text)) {
			n[name]++
		}
		if err == nil && (n["event:written"] != n["event:sent"] || n["event:write"] < n["event:written"]+n["event:sent"]) {
			err = fmt.Errorf("events are under way: %v", n)
		}
		return err
	})
}

// quiet waits until no more points are reached, and returns those that were.
func (r *run) quiet(ctx context.Context) ([]string, error) {
	last := int64(-1)
	for {
		info, err := os.Stat(filepath.Join(r.dir, "trace"))
		if err == nil && info.Size() == last {
			return r.relieve()
		}
		if err == nil {
			last = info.Size()
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// table prints a line for each point.
func table(t *testing.T, points []point, cases []one, results *sync.Map) {
	var out strings.Builder
	passed, skipped := 0, 0
	for _, p := range points {
		n, bad, missed := 0, 0, 0
		faults, where := map[string]bool{}, map[string]bool{}
		for _, c := range cases {
			if c.point != p.name {
				continue
			}
			err, _ := results.Load(c)
			if err, ok := err.(error); ok && errors.Is(err, errNotReached) {
				missed++ // this time; fewer hits than in the survey
				continue
			}
			if n++; err != nil {
				bad++
			}
			faults[c.fault] = true
			where[c.life.calls[c.call].name] = true
		}
		result := "ok"
		if n == 0 && *only == "" {
			t.Errorf("%s (%s) was not reached in any case", p.name, p.place)
		}
		skipped += missed
		if bad > 0 || n == 0 {
			result = fmt.Sprintf("FAILED %d", bad)
		} else {
			passed++
		}
		list := slices.Sorted(maps.Keys(faults))
		fmt.Fprintf(&out, "%-22s %-34s %4d cases  %-40s %-9s in %s\n", p.name, p.place, n, strings.Join(list, " "), result, strings.Join(slices.Sorted(maps.Keys(where)), ", "))
	}
	fmt.Fprintf(&out, "%d points in the code, %d passed; %d cases, in %d of which the call did not come by the point that often\n", len(points), passed, len(cases), skipped)
	if *all {
		fmt.Printf("Against the sandboxer itself (engine none), through Controller, Store, Task API and shim binary:\n%s", out.String())
	}
}
