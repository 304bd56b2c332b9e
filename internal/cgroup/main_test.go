package cgroup

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// The tests make real groups and need root. Everything they make is below
// base, which must be empty when they are done.
var base = fmt.Sprintf("/caisson-cgroup-test-%d", os.Getpid())

// helperEnv selects what the re-executed test binary does instead of testing.
const helperEnv = "CAISSON_CGROUP_TEST_HELPER"

func TestMain(m *testing.M) {
	switch os.Getenv(helperEnv) {
	case "":
	case "hog":
		hog()
	case "wait":
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	case "reaper":
		reaper()
	case "sender":
		sender()
	}
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "internal/cgroup: these tests need root")
		os.Exit(1)
	}
	code := m.Run()
	h, err := currentHost()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	for _, dir := range h.dirs(base) {
		entries, err := os.ReadDir(dir)
		if err != nil {
			continue
		}
		for _, e := range entries {
			if e.IsDir() {
				fmt.Fprintln(os.Stderr, "left behind:", filepath.Join(dir, e.Name()))
				code = 1
			}
		}
		if err := os.Remove(dir); err != nil {
			fmt.Fprintln(os.Stderr, "left behind:", err)
			code = 1
		}
	}
	os.Exit(code)
}

// hog waits to be put into its group, then uses memory until it is killed.
func hog() {
	_, _ = io.Copy(io.Discard, os.Stdin)
	const step = 8 << 20
	for range 256 {
		mem, err := unix.Mmap(-1, 0, step, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
		if err != nil {
			os.Exit(3)
		}
		for i := 0; i < step; i += 4096 {
			mem[i] = 1
		}
	}
	os.Exit(4)
}

// reaper starts a shell script whose processes never stay, and reaps what
// they leave until nothing of it lives.
func reaper() {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		os.Exit(3)
	}
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(5) // the test is gone
	}()
	script := exec.Command("/bin/sh", "-c", `read go; i=0; while [ $i -lt 40 ]; do sh -c "$HOP" & i=$((i+1)); done`)
	// Each process starts its successor and ends.
	script.Env = append(os.Environ(), `HOP=sh -c "$HOP" & exit 0`)
	r, w, err := os.Pipe()
	if err != nil {
		os.Exit(3)
	}
	script.Stdin = r
	if err := script.Start(); err != nil {
		os.Exit(3)
	}
	fmt.Println(script.Process.Pid)
	line, err := bufio.NewReader(os.NewFile(3, "go")).ReadString('\n')
	if err != nil {
		os.Exit(3)
	}
	fmt.Fprint(w, line)
	w.Close()
	for {
		if _, err := unix.Wait4(-1, nil, 0, nil); err == unix.ECHILD {
			os.Exit(0)
		}
	}
}

// sender waits to be put into its group, sends to itself what it does not receive, says so,
// and ends with the test.
func sender() {
	in := bufio.NewReader(os.Stdin)
	if _, err := in.ReadByte(); err != nil {
		os.Exit(3)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		os.Exit(4)
	}
	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		os.Exit(5)
	}
	if _, err := conn.Write(make([]byte, 64<<10)); err != nil {
		os.Exit(6)
	}
	fmt.Println("sent")
	_, _ = io.Copy(io.Discard, in)
	os.Exit(0)
}

// helper starts the test binary as something else. It ends at the latest with
// the test.
func helper(t *testing.T, kind string) (*exec.Cmd, io.WriteCloser) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), helperEnv+"="+kind)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	return cmd, in
}

// started starts a helper inside a group; the second result lets it go.
func started(t *testing.T, g *Group, kind string) (*exec.Cmd, io.WriteCloser) {
	t.Helper()
	cmd, in := helper(t, kind)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if cmd.ProcessState == nil {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
	})
	if err := g.Add(cmd.Process.Pid); err != nil {
		t.Fatal(err)
	}
	return cmd, in
}

// newGroup makes a group for the test and removes it, with what is in it,
// at the end. In v2 processes go into a child of it.
func newGroup(t *testing.T, resources *specs.LinuxResources) *Group {
	t.Helper()
	g, err := Create(filepath.Join(base, strings.ReplaceAll(t.Name(), "/", "_")), resources)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { remove(t, g) })
	return g
}

// leaf makes a child of a group that may hold processes in every mode, as an
// OCI runtime does: without passing controllers on.
func leaf(t *testing.T, g *Group, name string) *Group {
	t.Helper()
	for _, dir := range g.host.dirs(g.path) {
		if err := os.MkdirAll(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if g.host.mode != Unified {
		if _, err := Create(filepath.Join(g.path, name), nil); err != nil { // cpuset wants values
			t.Fatal(err)
		}
	}
	child, err := Load(filepath.Join(g.path, name))
	if err != nil {
		t.Fatal(err)
	}
	return child
}

func remove(t *testing.T, g *Group) {
	t.Helper()
	ctx := t.Context()
	if ctx.Err() != nil { // inside Cleanup
		ctx = contextForCleanup(t)
	}
	if err := g.Kill(ctx); err != nil {
		t.Error(err)
	}
	if err := g.Delete(ctx); err != nil {
		t.Error(err)
	}
	for _, dir := range g.host.dirs(g.path) {
		if _, err := os.Lstat(dir); err == nil {
			t.Errorf("%s is still there", dir)
		}
	}
}

// within receives; false means that the channel was closed.
func within(t *testing.T, ch <-chan struct{}, what string) bool {
	t.Helper()
	select {
	case _, ok := <-ch:
		return ok
	case <-time.After(20 * time.Second):
		t.Fatalf("%s: not within 20 s", what)
		return false
	}
}
