package stdio

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/pprof"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const (
	patience = 30 * time.Second // for what happens at once unless something is broken
	roleVar  = "STDIO_TEST_ROLE"
)

// TestMain also plays the children, and fails if the tests leave descriptors or goroutines.
func TestMain(m *testing.M) {
	switch os.Getenv(roleVar) {
	case "daemon":
		playDaemon()
	case "logger":
		playLogger()
	case "stranger":
		playStranger()
	}
	r, w, err := os.Pipe() // Go's poller opens its own descriptors at the first use
	if err != nil {
		panic(err)
	}
	r.Close()
	w.Close()
	signals := make(chan os.Signal, 1) // fuzzing listens for signals, with a goroutine that stays
	signal.Notify(signals, syscall.SIGUSR1)
	signal.Stop(signals)
	files, routines := openFiles(), runtime.NumGoroutine()
	code := m.Run()
	if code == 0 {
		code = checkLeaks(files, routines)
	}
	os.Exit(code)
}

func checkLeaks(files []string, routines int) int {
	deadline := time.Now().Add(5 * time.Second)
	for {
		now := openFiles()
		if len(now) <= len(files) && runtime.NumGoroutine() <= routines {
			return 0
		}
		if time.Now().After(deadline) {
			fmt.Fprintf(os.Stderr, "leaked: files before %q\nafter %q\n", files, now)
			pprof.Lookup("goroutine").WriteTo(os.Stderr, 1)
			return 1
		}
		runtime.Gosched()
	}
}

func openFiles() (all []string) {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		panic(err)
	}
	for _, e := range entries {
		target, _ := os.Readlink("/proc/self/fd/" + e.Name())
		if !strings.HasSuffix(target, "/fd") { // the directory being read
			all = append(all, e.Name()+" "+target)
		}
	}
	return all
}

func testContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

func mkfifo(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func must[T any](v T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// client opens a client's end of a FIFO; reads and writes on it can be given deadlines.
func client(t *testing.T, path string, flags int) *os.File {
	t.Helper()
	f := must(os.OpenFile(path, flags|unix.O_NONBLOCK, 0))(t)
	if err := f.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func openSet(t *testing.T, cfg Config) *Set {
	t.Helper()
	s := must(Open(testContext(t), cfg, Owner{}, Identity{Namespace: "ns", ContainerID: "c1"}, OpenHere))(t)
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// openPTY returns the two sides of a new pty; the slave is raw: bytes pass unchanged.
func openPTY(t *testing.T) (master, slave *os.File) {
	t.Helper()
	master = must(os.OpenFile("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY, 0))(t)
	t.Cleanup(func() { master.Close() })
	var n int
	err := withFD(master, func(fd int) (err error) {
		if err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
			return err
		}
		n, err = unix.IoctlGetInt(fd, unix.TIOCGPTN)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	slave = openSlave(t, "/dev/pts/"+strconv.Itoa(n))
	err = withFD(slave, func(fd int) error {
		tio, err := unix.IoctlGetTermios(fd, unix.TCGETS)
		if err != nil {
			return err
		}
		tio.Iflag &^= unix.IXON | unix.ICRNL
		tio.Oflag &^= unix.OPOST
		tio.Lflag &^= unix.ECHO | unix.ICANON | unix.ISIG
		return unix.IoctlSetTermios(fd, unix.TCSETS, tio)
	})
	if err != nil {
		t.Fatal(err)
	}
	return master, slave
}

func openSlave(t *testing.T, name string) *os.File {
	t.Helper()
	slave := must(os.OpenFile(name, unix.O_RDWR|unix.O_NOCTTY, 0))(t)
	t.Cleanup(func() { slave.Close() })
	return slave
}

// startShell runs a script on the pty like a container's process, and closes our slave.
func startShell(t *testing.T, slave *os.File, script string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("/bin/sh", "-c", script)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	start(t, cmd)
	slave.Close()
	return cmd
}

// start starts a child that does not outlive the test.
func start(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if cmd.ProcessState == nil {
			cmd.Process.Kill()
			cmd.Wait()
		}
	})
}

func newTerminal(t *testing.T, master *os.File, cfg Config, kept map[string]*os.File) *Terminal {
	t.Helper()
	cfg.Terminal = true
	term := must(NewTerminal(t.Context(), master, cfg, kept))(t)
	t.Cleanup(func() {
		if err := term.Close(); err != nil {
			t.Error(err)
		}
	})
	return term
}

// dup is what the monitor would hand out once more.
func dup(t *testing.T, f *os.File) *os.File {
	t.Helper()
	var fd int
	if err := withFD(f, func(old int) (err error) {
		fd, err = unix.FcntlInt(uintptr(old), unix.F_DUPFD_CLOEXEC, 0)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	d := os.NewFile(uintptr(fd), f.Name())
	t.Cleanup(func() { d.Close() })
	return d
}

// pattern returns bytes in which no loss, repetition or reordering can hide.
func pattern(n int) []byte {
	var b bytes.Buffer
	for i := 0; b.Len() < n; i++ {
		fmt.Fprintf(&b, "%08d %x\n", i, sha256.Sum256([]byte{byte(i)}))
	}
	return b.Bytes()[:n]
}

func checkBytes(t *testing.T, got, want []byte) {
	t.Helper()
	if bytes.Equal(got, want) {
		return
	}
	i := 0
	for i < len(got) && i < len(want) && got[i] == want[i] {
		i++
	}
	t.Fatalf("%d bytes, want %d; first difference at %d: %.60q, want %.60q", len(got), len(want), i, got[i:], want[i:])
}

// expect reads until the text came.
func expect(t *testing.T, r io.Reader, text string) {
	t.Helper()
	var got []byte
	buf := make([]byte, 4096)
	for !bytes.Contains(got, []byte(text)) {
		n, err := r.Read(buf)
		got = append(got, buf[:n]...)
		if err != nil {
			t.Fatalf("%v after %q, want %q", err, got, text)
		}
	}
}

// readRest reads what is in a FIFO now.
func readRest(t *testing.T, r *os.File) []byte {
	t.Helper()
	if err := r.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	raw := must(r.SyscallConn())(t)
	var got []byte
	buf := make([]byte, 1<<16)
	err := raw.Read(func(fd uintptr) bool {
		for {
			n, err := unix.Read(int(fd), buf)
			if n <= 0 || err != nil {
				return true
			}
			got = append(got, buf[:n]...)
		}
	})
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal(err)
	}
	return got
}
