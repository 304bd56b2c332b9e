package namespace

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"caisson/internal/isolation"
	"caisson/internal/monitor"
)

// These tests run real monitors and need root.
func TestMain(m *testing.M) {
	if os.Getuid() != 0 {
		fmt.Fprintln(os.Stderr, "namespace tests: need root, nothing was tested")
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// monitors are those that run the program, by what ps shows after its name.
func monitors(t *testing.T, program string) map[string]int {
	t.Helper()
	exes, err := filepath.Glob("/proc/[0-9]*/exe")
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]int{}
	for _, exe := range exes {
		if target, err := os.Readlink(exe); err != nil || target != program {
			continue
		}
		line, _ := os.ReadFile(filepath.Join(filepath.Dir(exe), "cmdline")) // it may have ended
		words := strings.Split(strings.TrimRight(string(line), "\x00"), "\x00")
		if len(words) == 2 && words[0] == "caisson-monitor" {
			var pid int
			if _, err := fmt.Sscanf(exe, "/proc/%d/exe", &pid); err != nil {
				t.Fatal(err)
			}
			found[words[1]] = pid
		}
	}
	return found
}

// poolRig has a program of its own, by which its monitors are told from others'.
type poolRig struct {
	t                  *testing.T
	program, dir, pool string
	n                  int
}

func newPoolRig(t *testing.T) *poolRig {
	t.Helper()
	dir, err := os.MkdirTemp("", "np")
	if err != nil {
		t.Fatal(err)
	}
	program, err := monitor.Install(filepath.Join(dir, "libexec"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if left := monitors(t, program); len(left) > 0 {
			t.Errorf("left over: %v", left)
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return &poolRig{t: t, program: program, dir: dir, pool: filepath.Join(dir, "pool")}
}

func (r *poolRig) open(size int) *Pool {
	r.t.Helper()
	p, err := OpenPool(r.t.Context(), r.program, r.pool, size)
	if err != nil {
		r.t.Fatal(err)
	}
	return p
}

// full waits until so many wait.
func (r *poolRig) full(size int) {
	r.t.Helper()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		sockets, err := filepath.Glob(filepath.Join(r.pool, "*", "monitor.sock"))
		if err == nil && len(sockets) == size {
			return
		}
		if time.Now().After(end) {
			r.t.Fatalf("%d wait, not %d: %v", len(sockets), size, err)
		}
	}
}

// start makes a sandbox's walls, and returns their monitor's pid.
func (r *poolRig) start(p *Pool) (pid int) {
	r.t.Helper()
	r.n++
	dir := filepath.Join(r.dir, fmt.Sprint("s", r.n))
	if err := os.Mkdir(dir, 0o700); err != nil {
		r.t.Fatal(err)
	}
	name := fmt.Sprint("test/s", r.n)
	inst, err := New(r.program, p).Start(r.t.Context(), isolation.Config{Name: name, Dir: dir, Walls: true, NewUTS: true, Hostname: "pooled"})
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() {
		if err := errors.Join(inst.End(context.Background()), inst.Close()); err != nil {
			r.t.Error(err)
		}
	})
	if shown := monitors(r.t, r.program)[name]; shown != inst.Host().Pid() {
		r.t.Errorf("process list: %v", monitors(r.t, r.program))
	}
	again, err := New(r.program, nil).Load(r.t.Context(), dir)
	if err != nil {
		r.t.Fatal(err)
	}
	if again.Pid() != inst.Pid() || again.Pid() == 0 {
		r.t.Errorf("loaded with holder %d, started with %d", again.Pid(), inst.Pid())
	}
	if err := again.Close(); err != nil {
		r.t.Error(err)
	}
	return inst.Host().Pid()
}

func (r *poolRig) close(p *Pool) {
	r.t.Helper()
	if err := errors.Join(p.Close(), p.Close()); err != nil {
		r.t.Error(err)
	}
	if left, err := os.ReadDir(r.pool); err != nil || len(left) > 0 {
		r.t.Errorf("left in the pool: %v, %v", left, err)
	}
}

// TestPool: sandboxes take what waits, others take their place, and none is left.
func TestPool(t *testing.T) {
	r := newPoolRig(t)
	p := r.open(3)
	for range 5 {
		r.full(3)
		waited := monitors(t, r.program)[poolName]
		if waited == 0 {
			t.Fatal("none waits")
		}
		r.start(p)
	}
	if c := p.Counts(); c.Size != 3 || c.Taken+c.Missed != 5 || c.Taken == 0 || c.Died != 0 || c.Waiting < 0 || c.Waiting > 3 {
		t.Errorf("counts: %+v", c)
	}
	// Without a program of its own, it can only be one that waits.
	taken := filepath.Join(r.dir, "taken")
	if err := os.Mkdir(taken, 0o700); err != nil {
		t.Fatal(err)
	}
	r.full(3)
	inst, err := New(filepath.Join(r.dir, "none"), p).Start(t.Context(), isolation.Config{Name: "test/taken", Dir: taken})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(inst.End(t.Context()), inst.Close()); err != nil {
		t.Error(err)
	}
	r.close(p)
	if pid := r.start(p); pid == 0 { // a closed pool has none
		t.Error("no monitor")
	}
}

// TestPoolTakesWhatWaits: with a pool of one, it is that one.
func TestPoolTakesWhatWaits(t *testing.T) {
	r := newPoolRig(t)
	p := r.open(1)
	for range 3 {
		r.full(1)
		waits := 0
		for waits == 0 { // its socket is there a moment before its title
			waits = monitors(t, r.program)[poolName]
		}
		var conn *monitor.Conn
		for conn == nil { // and before it can be taken
			conn = p.take(t.Context(), r.dir, "test/taken")
		}
		p.settled()
		pid := conn.Pid()
		if err := errors.Join(end(t.Context(), conn), conn.Close()); err != nil {
			t.Error(err)
		}
		if pid != waits {
			t.Errorf("took %d, %d waited", pid, waits)
		}
	}
	if c := p.Counts(); c.Taken != 3 {
		t.Errorf("counts: %+v", c)
	}
	r.close(p)
}

// TestPoolOfADeadDaemon: what it left is ended, whatever became of it.
func TestPoolOfADeadDaemon(t *testing.T) {
	r := newPoolRig(t)
	for i, leave := range []func(dir string){
		func(dir string) { // waits
			conn, err := monitor.Start(t.Context(), monitor.Config{Binary: r.program, Dir: dir, Name: poolName, Waits: true})
			if err != nil {
				t.Fatal(err)
			}
			if err := conn.Close(); err != nil {
				t.Error(err)
			}
		},
		func(string) {}, // was to be started, or was taken
		func(dir string) { // was killed
			conn, err := monitor.Start(t.Context(), monitor.Config{Binary: r.program, Dir: dir, Name: poolName, Waits: true})
			if err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(unix.Kill(conn.Pid(), unix.SIGKILL), conn.Close()); err != nil {
				t.Error(err)
			}
		},
	} {
		dir := filepath.Join(r.pool, fmt.Sprint(i))
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		leave(dir)
	}
	p := r.open(0)
	if left := monitors(t, r.program); len(left) > 0 {
		t.Errorf("they wait on: %v", left)
	}
	r.close(p)
}

// TestPoolIsKilled: a sandbox needs none of them.
func TestPoolIsKilled(t *testing.T) {
	r := newPoolRig(t)
	p := r.open(2)
	r.full(2)
	for range 3 {
		if pid := monitors(t, r.program)[poolName]; pid != 0 {
			if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
				t.Fatal(err)
			}
		}
		r.start(p)
	}
	r.close(p)
}

// TestPoolCannotBeFilled: that is no sandbox's business.
func TestPoolCannotBeFilled(t *testing.T) {
	r := newPoolRig(t)
	p, err := OpenPool(t.Context(), filepath.Join(r.dir, "none"), r.pool, 2)
	if err != nil {
		t.Fatal(err)
	}
	r.start(p)
	r.close(p)
}
