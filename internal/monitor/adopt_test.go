package monitor

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// fakeRuntimes leave a process behind as OCI runtimes do. The arguments are
// those of playRuntime: it ends before the runtime, at about the same time,
// or later.
var fakeRuntimes = map[string][]string{
	"child, dead first":      {"child", "0", "20000"},
	"child, both at once":    {"child", "300", "0"},
	"child, runtime first":   {"child", "20000", "0"},
	"orphan, dead first":     {"orphan", "0", "20000"},
	"orphan, both at once":   {"orphan", "0", "0"},
	"orphan, runtime first":  {"orphan", "20000", "0"},
	"orphan, a little later": {"orphan", "1000", "0"},
}

// playRuntime is a fake runtime: kind, how long the process that it leaves
// behind and how long the runtime itself take to end (in yields), pid file.
func playRuntime(args []string) int {
	child, err := strconv.Atoi(args[1])
	if err != nil {
		return 90
	}
	own, err := strconv.Atoi(args[2])
	if err != nil {
		return 91
	}
	var pipe [2]int
	if err := unix.Pipe(pipe[:]); err != nil {
		return 92
	}
	pid := 0
	if args[0] == "child" {
		pid = rawFork(child, -1)
	} else {
		middle := rawFork(child, pipe[1])
		buf := make([]byte, 8)
		if n, err := unix.Read(pipe[0], buf); n != len(buf) {
			return 93 + int(err.(unix.Errno))
		}
		pid = int(binary.NativeEndian.Uint64(buf))
		if _, err := unix.Wait4(middle, nil, 0, nil); err != nil {
			return 94
		}
	}
	if err := os.WriteFile(args[3], []byte(strconv.Itoa(pid)), 0o600); err != nil {
		return 95
	}
	for range own {
		unix.RawSyscall(unix.SYS_SCHED_YIELD, 0, 0, 0)
	}
	return 0
}

// rawFork forks a process that yields so many times and exits with 5. With a
// pipe it forks once more, and the first one writes the pid and exits. The
// children make system calls and nothing else: the runtime of Go is not there.
//
//go:norace
//go:noinline
func rawFork(yields, pipe int) int {
	pid, _, _ := unix.RawSyscall6(unix.SYS_CLONE, uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0)
	if pid != 0 {
		return int(pid)
	}
	if pipe >= 0 {
		if pid, _, _ = unix.RawSyscall6(unix.SYS_CLONE, uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0); pid != 0 {
			unix.RawSyscall(unix.SYS_WRITE, uintptr(pipe), uintptr(unsafe.Pointer(&pid)), unsafe.Sizeof(pid))
			unix.RawSyscall(unix.SYS_EXIT_GROUP, 0, 0, 0)
		}
	}
	for range yields {
		unix.RawSyscall(unix.SYS_SCHED_YIELD, 0, 0, 0)
	}
	unix.RawSyscall(unix.SYS_EXIT_GROUP, 5, 0, 0)
	return 0
}

func runtimeRequest(tag, script, pidFile string) SpawnRequest {
	return SpawnRequest{Tag: tag, Args: append(sh(script), "runtime", pidFile), PidFile: pidFile, Env: []string{"PATH=/usr/bin:/bin"}}
}

// TestAdoptRaces runs fake runtimes by the hundred, some at the same time,
// beside orphans that nobody asked for.
func TestAdoptRaces(t *testing.T) {
	const rounds = 40
	c := startMonitor(t)
	dir := t.TempDir()
	exits := mustSubscribe(t, c)
	spawned := make(map[string]Process)
	var mu sync.Mutex
	var wg sync.WaitGroup
	// Unknown children that come and go all the while.
	mustSpawn(t, c, SpawnRequest{Tag: "noise", Args: sh(`i=0; while [ $i -lt 2000 ]; do (/bin/true & exit 0); i=$((i+1)); done`)})
	for name, args := range fakeRuntimes {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for i := range rounds {
				tag := fmt.Sprintf("%s %d", name, i)
				pidFile := filepath.Join(dir, tag)
				r := self(t, "runtime", append(slices.Clone(args), pidFile)...)
				r.Tag, r.PidFile = tag, pidFile
				p, err := c.Spawn(testContext(t), r)
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				spawned[tag] = p
				mu.Unlock()
			}
		}()
	}
	adopted := make(map[string]Process)
	for range 2*rounds*len(fakeRuntimes) + 1 {
		e := nextExit(t, exits)
		if e.Tag == "noise" {
			e.Kind = 0
		}
		switch e.Kind {
		case Spawned:
			if e.Status != 0 || e.Adopted == nil || e.Adopted.StartTime == 0 {
				t.Fatalf("%s: the runtime's exit is %+v", e.Tag, e)
			}
			adopted[e.Tag] = *e.Adopted
		case Adopted:
			if e.Process != adopted[e.Tag] || e.Status.ExitStatus() != 5 {
				t.Fatalf("%s: exit %+v, adopted was %+v", e.Tag, e, adopted[e.Tag])
			}
			delete(adopted, e.Tag)
		}
		if err := c.Ack(testContext(t), e.Serial); err != nil {
			t.Error(err)
		}
	}
	wg.Wait()
	if len(spawned) != rounds*len(fakeRuntimes) {
		t.Errorf("%d runtimes", len(spawned))
	}
	eventually(t, "no orphan is left", func() bool { return len(childrenOf(c.Pid())) == 0 })
	if list, err := c.List(testContext(t)); err != nil || len(list) != 0 {
		t.Errorf("%d records, %v", len(list), err)
	}
}

// TestAdoptedLives adopts a process that goes on, through a reconnect.
func TestAdoptedLives(t *testing.T) {
	c := startMonitor(t)
	ctx := testContext(t)
	exits := mustSubscribe(t, c)
	pidFile := filepath.Join(t.TempDir(), "pid")
	if err := os.WriteFile(pidFile, []byte(fmt.Sprint(c.Pid())), 0o600); err != nil { // old, to be removed
		t.Fatal(err)
	}
	mustSpawn(t, c, runtimeRequest("box", `/bin/sleep 1000 & printf %s $! >$1`, pidFile))
	e := nextExit(t, exits)
	if e.Adopted == nil {
		t.Fatalf("exit %+v", e)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	d, err := Dial(ctx, c.dir)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	exits = mustSubscribe(t, d)
	if again := nextExit(t, exits); again.Adopted == nil || *again.Adopted != *e.Adopted {
		t.Errorf("after the reconnect: %+v", again)
	}
	list, err := d.List(ctx)
	if err != nil || len(list) != 2 {
		t.Fatal(list, err)
	}
	if r := list[1]; !r.Running || r.Kind != Adopted || r.Tag != "box" || r.Process != *e.Adopted {
		t.Errorf("record %+v", r)
	}
	if err := d.Signal(ctx, e.Adopted.Serial, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if end := nextExit(t, exits); end.Process != *e.Adopted || end.Status.Signal() != unix.SIGKILL {
		t.Errorf("exit %+v", end)
	}
}

// TestNothingToAdopt has runtimes that fail or lie.
func TestNothingToAdopt(t *testing.T) {
	c := startMonitor(t)
	exits := mustSubscribe(t, c)
	known := mustSpawn(t, c, SpawnRequest{Args: []string{"/bin/sleep", "1000"}})
	for name, script := range map[string]string{
		"fails":            `(exit 0) & echo $! >$1; exit 1`,
		"is killed":        `(exit 0) & echo $! >$1; kill -9 $$`,
		"no pid file":      `exit 0`,
		"empty":            `: >$1`,
		"no number":        `echo hello >$1`,
		"negative":         `echo -1 >$1`,
		"zero":             `echo 0 >$1`,
		"long":             `echo 99999999999999999999999 >$1`,
		"mixed":            `echo 1x >$1`,
		"not a child":      `echo 1 >$1`,
		"itself":           `echo $$ >$1`,
		"the monitor":      `echo $PPID >$1`,
		"a known process":  fmt.Sprintf(`echo %d >$1`, known.Pid),
		"a FIFO":           `mkfifo $1`,
		"a symbolic link":  `(exit 0) & echo $! >$1.x; ln -s $1.x $1`,
		"a directory":      `mkdir $1`,
		"reaped by itself": `/bin/true & echo $! >$1; wait`,
	} {
		t.Run(name, func(t *testing.T) {
			pidFile := filepath.Join(t.TempDir(), "pid")
			p := mustSpawn(t, c, runtimeRequest(name, script, pidFile))
			if e := nextExit(t, exits); e.Process != p || e.Adopted != nil {
				t.Errorf("exit %+v, adopted %+v", e, e.Adopted)
			}
		})
	}
	eventually(t, "no orphan is left", func() bool { return len(childrenOf(c.Pid())) == 1 })
}

// TestOrphans floods a monitor with children that it does not know.
func TestOrphans(t *testing.T) {
	c := startMonitor(t)
	if _, err := c.Hold(testContext(t), HoldRequest{NewIPC: true, NewUTS: true, NewPID: true}); err != nil {
		t.Fatal(err)
	}
	exits := mustSubscribe(t, c)
	flood := func(n int) {
		mustSpawn(t, c, SpawnRequest{Args: append(sh(`i=0; while [ $i -lt $1 ]; do (/bin/true & exit 0); i=$((i+1)); done`), "sh", fmt.Sprint(n))})
		nextExit(t, exits)
		eventually(t, "no orphan is left", func() bool { return len(childrenOf(c.Pid())) == 1 })
	}
	flood(10)
	before := memory(t, c.Pid())
	flood(3000)
	after := memory(t, c.Pid())
	if after["Private_Dirty"] > before["Private_Dirty"] {
		t.Errorf("private memory grew from %d to %d KiB", before["Private_Dirty"], after["Private_Dirty"])
	}
	if list, err := c.List(testContext(t)); err != nil || len(list) != 3 {
		t.Errorf("%d records, %v", len(list), err)
	}
}

// TestMemory logs what a sandbox costs where there are some.
func TestMemory(t *testing.T) {
	const n = 8
	bin := installed(t)
	var pids []int
	for range n {
		c := startBinary(t, bin, nil)
		p, err := c.Hold(testContext(t), HoldRequest{NewIPC: true, NewUTS: true})
		if err != nil {
			t.Fatal(err)
		}
		pids = append(pids, c.Pid(), p.Pid)
	}
	pss := [2]int{}
	for i, pid := range pids {
		pss[i%2] += memory(t, pid)["Pss"]
	}
	t.Logf("PSS of one of %d sandboxes: monitor %d KiB, holder %d KiB", n, pss[0]/n, pss[1]/n)
	if sum := (pss[0] + pss[1]) / n; sum > 64 {
		t.Errorf("PSS of %d KiB", sum)
	}
}

// memory reads smaps_rollup, in KiB.
func memory(t testing.TB, pid int) map[string]int {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		t.Fatal(err)
	}
	m := make(map[string]int)
	for _, line := range strings.Split(string(b), "\n")[1:] {
		var name string
		var n int
		if _, err := fmt.Sscanf(line, "%s %d kB", &name, &n); err == nil {
			m[strings.TrimSuffix(name, ":")] = n
		}
	}
	return m
}
