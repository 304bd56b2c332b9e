package monitor

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The tests run real monitors and need root. Children that no shell can play
// are this test binary, run again with roleEnv set.
const roleEnv = "CAISSON_MONITOR_TEST_ROLE"

func TestMain(m *testing.M) {
	if role := os.Getenv(roleEnv); role != "" {
		os.Exit(play(role, os.Args[1:]))
	}
	if os.Getuid() != 0 {
		fmt.Fprintln(os.Stderr, "monitor tests: need root, nothing was tested")
		os.Exit(1)
	}
	// What a monitor leaves behind becomes our child, and so is found.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		fmt.Fprintln(os.Stderr, "monitor tests:", err)
		os.Exit(1)
	}
	before := len(openFDs("self"))
	code := m.Run()
	if left := childrenOf(os.Getpid()); len(left) > 0 {
		fmt.Fprintln(os.Stderr, "monitor tests: processes left:", left)
		code = 1
	}
	if after := openFDs("self"); len(after) > before+2 { // the runtime's epoll and eventfd
		fmt.Fprintf(os.Stderr, "monitor tests: descriptors left: %d before, now %v\n", before, after)
		code = 1
	}
	os.Exit(code)
}

// childrenOf describes the children of a process: pid, name, state.
func childrenOf(pid int) (list []string) {
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		panic(err)
	}
	for _, path := range stats {
		b, err := os.ReadFile(path)
		if err != nil {
			continue // gone
		}
		s := string(b)
		rest := strings.Fields(s[strings.LastIndexByte(s, ')')+1:])
		if rest[1] == strconv.Itoa(pid) {
			list = append(list, s[:strings.LastIndexByte(s, ')')+1]+" "+rest[0])
		}
	}
	return list
}

func openFDs(pid string) (list []string) {
	entries, err := os.ReadDir("/proc/" + pid + "/fd")
	if err != nil {
		panic(err)
	}
	for _, e := range entries {
		target, err := os.Readlink("/proc/" + pid + "/fd/" + e.Name())
		if err == nil {
			list = append(list, e.Name()+" -> "+target)
		}
	}
	return list
}

// shortDir is a sandbox directory.
func shortDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "c")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func testContext(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// startMonitor starts a monitor that the test's end kills with all it has.
func startMonitor(t testing.TB) *Conn {
	t.Helper()
	return startBinary(t, installed(t), nil)
}

func installed(t testing.TB) string {
	t.Helper()
	path, err := Install(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func startBinary(t testing.TB, path string, env []string) *Conn {
	t.Helper()
	c, err := Start(testContext(t), Config{Binary: path, Dir: shortDir(t), Name: t.Name(), env: env})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { endMonitor(t, c) })
	return c
}

// endMonitor ends a monitor, through a new connection if c is gone.
func endMonitor(t testing.TB, c *Conn) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(c.dir, socketName)); os.IsNotExist(err) {
		return // ended by the test
	}
	d, err := Dial(ctx, c.dir)
	if err != nil {
		t.Error(err)
		return
	}
	d.finished = c.finished
	if err := d.End(ctx, true); err != nil {
		t.Error(err)
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
}

func sh(script string) []string { return []string{"/bin/sh", "-c", script} }

func mustSpawn(t testing.TB, c *Conn, r SpawnRequest) Process {
	t.Helper()
	p, err := c.Spawn(testContext(t), r)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func mustSubscribe(t testing.TB, c *Conn) <-chan Exit {
	t.Helper()
	if err := c.Subscribe(testContext(t)); err != nil {
		t.Fatal(err)
	}
	return delivered(c)
}

// delivered has room for more exits than any test lets come: it does not keep a
// connection from being closed.
func delivered(c *Conn) <-chan Exit {
	ch := make(chan Exit, 4096)
	c.Deliver(func(e Exit) { ch <- e }, func() { close(ch) })
	return ch
}

func nextExit(t testing.TB, ch <-chan Exit) Exit {
	t.Helper()
	select {
	case e, ok := <-ch:
		if !ok {
			t.Fatal("the exits ended")
		}
		return e
	case <-time.After(30 * time.Second):
		t.Fatal("no exit came")
	}
	panic("unreachable")
}

// eventually waits for what nothing reports.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("timeout: " + what)
		}
	}
}

// self is a command line that runs this binary in a role.
func self(t testing.TB, role string, args ...string) SpawnRequest {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return SpawnRequest{
		Args: append([]string{exe}, args...),
		Env:  []string{roleEnv + "=" + role, "PATH=/usr/bin:/bin"},
	}
}

func link(t testing.TB, pid int, ns string) string {
	t.Helper()
	s, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, ns))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// play is the main function of a re-executed test binary.
func play(role string, args []string) int {
	switch role {
	case "peer": // connects as nobody and reports what it gets
		return playPeer(args[0])
	case "stranger": // waits for a greeting as nobody
		return playStranger(args[0])
	case "runtime": // leaves a process behind, as an OCI runtime does
		return playRuntime(args)
	}
	fmt.Fprintln(os.Stderr, "unknown role", role)
	return 99
}

// playPeer gives up root, connects and tells with its exit code what happened.
func playPeer(path string) int {
	if err := unix.Setresuid(65534, 65534, 65534); err != nil {
		return 3
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET, 0)
	if err != nil {
		return 4
	}
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		return 5
	}
	e := newEncoder(header{version: protocolVersion, typ: msgHello, id: 1})
	_, err = unix.Write(fd, e.buf) // may fail already
	if n, rerr := unix.Read(fd, make([]byte, 100)); n > 0 {
		return 1 // it answered
	} else if err == nil && rerr != nil && rerr != unix.ECONNRESET {
		return 6
	}
	return 0
}
