package stdio

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

func TestShellInTerminal(t *testing.T) {
	ctx, cfg := testContext(t), Config{Stdin: mkfifo(t), Stdout: mkfifo(t), Terminal: true}
	s := openSet(t, cfg)
	master, slave := openPTY(t)
	term := newTerminal(t, master, cfg, s.Keepers())
	if err := term.Resize(100, 40); err != nil {
		t.Fatal(err)
	}
	in, out := client(t, cfg.Stdin, os.O_WRONLY), client(t, cfg.Stdout, os.O_RDONLY)
	cmd := startShell(t, slave, `stty sane; trap 'stty size; echo resized' WINCH; stty size; cat; echo end:$?; read x; exit 7`)
	expect(t, out, "40 100\r\n")
	must(in.WriteString("hello\n"))(t)
	expect(t, out, "hello\r\nhello\r\n") // the echo, and cat
	must(in.WriteString("\x04"))(t)
	expect(t, out, "end:0\r\n")
	if err := term.Resize(80, 24); err != nil {
		t.Fatal(err)
	}
	must(in.WriteString("x\n"))(t)
	if err := cmd.Wait(); cmd.ProcessState.ExitCode() != 7 {
		t.Fatal(err)
	}
	if err := errors.Join(term.Wait(ctx), term.Close(), term.Close(), s.Close()); err != nil {
		t.Fatal(err)
	}
	rest := string(must(io.ReadAll(out))(t)) // ends, since nobody keeps it open
	if !strings.Contains(rest, "24 80\r\n") || !strings.Contains(rest, "resized\r\n") {
		t.Errorf("output %q", rest)
	}
	if err := term.Resize(1, 1); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("resize when closed: %v, want FailedPrecondition", err)
	}
}

// forceCopy makes the pumps do without splice, as on a kernel whose ttys lack it.
func forceCopy(term *Terminal) {
	term.output.copied, term.input.copied = true, true
}

// eachWay runs a test with splice and without. Every kernel that the tests run on has it.
func eachWay(t *testing.T, run func(t *testing.T, copied bool, open func(master *os.File, cfg Config) *Terminal)) {
	for _, copied := range []bool{false, true} {
		t.Run(fmt.Sprint("copied=", copied), func(t *testing.T) {
			run(t, copied, func(master *os.File, cfg Config) *Terminal {
				return openTerminal(t, master, cfg, copied)
			})
		})
	}
}

func openTerminal(t *testing.T, master *os.File, cfg Config, copied bool) *Terminal {
	t.Helper()
	cfg.Terminal = true
	term, err := prepareTerminal(t.Context(), master, cfg, nil)
	if err != nil {
		t.Fatal(err)
	}
	if copied {
		forceCopy(term)
	}
	term.begin()
	t.Cleanup(func() {
		if err := term.Close(); err != nil {
			t.Error(err)
		}
	})
	return term
}

func TestMegabytesBothWays(t *testing.T) {
	eachWay(t, func(t *testing.T, copied bool, open func(*os.File, Config) *Terminal) {
		ctx, cfg := testContext(t), Config{Stdin: mkfifo(t), Stdout: mkfifo(t)}
		master, slave := openPTY(t)
		term := open(master, cfg)
		in, out := client(t, cfg.Stdin, os.O_WRONLY), client(t, cfg.Stdout, os.O_RDONLY)
		want := pattern(4 << 20)
		// What comes in goes out again, through the pty twice.
		cmd := startShell(t, slave, fmt.Sprintf("head -c %d", len(want)))
		sent := make(chan error, 1)
		go func() {
			_, err := in.Write(want)
			sent <- err
		}()
		got := make([]byte, len(want))
		must(io.ReadFull(out, got))(t)
		checkBytes(t, got, want)
		if err := errors.Join(<-sent, cmd.Wait(), term.Wait(ctx)); err != nil {
			t.Fatal(err)
		}
		if err := term.Close(); err != nil {
			t.Fatal(err)
		}
		if used := term.output.copied || term.input.copied; used != copied {
			t.Errorf("copied through memory: %t, want %t", used, copied)
		}
		if rest := readRest(t, out); len(rest) > 0 {
			t.Errorf("%d bytes too many: %.60q", len(rest), rest)
		}
	})
}

func TestReaderComesAndGoes(t *testing.T) {
	eachWay(t, func(t *testing.T, _ bool, open func(*os.File, Config) *Terminal) {
		ctx, cfg := testContext(t), Config{Stdin: mkfifo(t), Stdout: mkfifo(t)}
		master, slave := openPTY(t)
		term := open(master, cfg)
		want := pattern(2 << 20)
		sent := make(chan error, 1)
		go func() {
			_, err := slave.Write(want)
			sent <- errors.Join(err, slave.Close())
		}()
		var got []byte
		for len(got) < len(want) { // each reader takes some and leaves
			out := client(t, cfg.Stdout, os.O_RDONLY)
			part := make([]byte, min(len(want)-len(got), 1+rand.IntN(200_000)))
			must(io.ReadFull(out, part))(t)
			got = append(got, part...)
			out.Close()
		}
		checkBytes(t, got, want)
		if err := errors.Join(<-sent, term.Wait(ctx)); err != nil {
			t.Fatal(err)
		}
	})
}

// With nobody to read, the process waits, Wait waits, and nobody burns the CPU.
func TestFullFIFOCostsNothing(t *testing.T) {
	eachWay(t, func(t *testing.T, _ bool, open func(*os.File, Config) *Terminal) {
		cfg := Config{Stdin: mkfifo(t), Stdout: mkfifo(t)}
		master, slave := openPTY(t)
		term := open(master, cfg)
		want := pattern(1 << 20)
		sent := make(chan error, 1)
		go func() {
			_, err := slave.Write(want)
			sent <- errors.Join(err, slave.Close())
		}()
		short, cancel := context.WithTimeout(testContext(t), 500*time.Millisecond)
		defer cancel()
		before := cpuTime(t)
		if err := term.Wait(short); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("wait without a reader: %v", err)
		}
		if used := cpuTime(t) - before; used > 250*time.Millisecond {
			t.Errorf("%v of CPU time used in half a second of waiting", used)
		}
		out := client(t, cfg.Stdout, os.O_RDONLY)
		got := make([]byte, len(want))
		must(io.ReadFull(out, got))(t)
		checkBytes(t, got, want)
		if err := errors.Join(<-sent, term.Wait(testContext(t))); err != nil {
			t.Fatal(err)
		}
	})
}

func cpuTime(t *testing.T) time.Duration {
	t.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// A process may close the terminal and open it again.
func TestSlaveIsOpenedAgain(t *testing.T) {
	eachWay(t, func(t *testing.T, _ bool, open func(*os.File, Config) *Terminal) {
		ctx, cfg := testContext(t), Config{Stdin: mkfifo(t), Stdout: mkfifo(t)}
		master, slave := openPTY(t)
		name := slave.Name()
		term := open(master, cfg)
		out := client(t, cfg.Stdout, os.O_RDONLY)
		for i := range 20 {
			must(fmt.Fprintf(slave, "round %d\n", i))(t)
			slave.Close()
			if err := term.Wait(ctx); err != nil {
				t.Fatal(err)
			}
			if got, want := string(readRest(t, out)), fmt.Sprintf("round %d", i); !strings.HasPrefix(got, want) {
				t.Fatalf("after wait the FIFO has %q, want %q", got, want)
			}
			slave = openSlave(t, name)
		}
	})
}

func TestCloseStdinKeepsInput(t *testing.T) {
	cfg := Config{Stdin: mkfifo(t), Stdout: mkfifo(t)}
	master, slave := openPTY(t)
	again := dup(t, master)
	term := newTerminal(t, master, cfg, nil)
	in := client(t, cfg.Stdin, os.O_RDWR)
	must(in.WriteString("first\n"))(t)
	expect(t, slave, "first\n")
	term.CloseStdin()
	term.CloseStdin()
	must(in.WriteString("second\n"))(t)
	must(slave.WriteString("output still flows"))(t)
	expect(t, client(t, cfg.Stdout, os.O_RDONLY), "output still flows")
	if err := term.Close(); err != nil {
		t.Fatal(err)
	}
	newTerminal(t, again, cfg, nil)
	expect(t, slave, "second\n")
}

func TestTerminalToFileOrNothing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a", "log")
	want := pattern(1 << 20)
	for _, stdout := range []string{"file://" + path, path, ""} {
		cfg := Config{Stdout: stdout, Terminal: true}
		openSet(t, cfg)
		master, slave := openPTY(t)
		term := newTerminal(t, master, cfg, nil)
		must(slave.Write(want))(t)
		slave.Close()
		if err := errors.Join(term.Wait(testContext(t)), term.Close()); err != nil {
			t.Fatal(err)
		}
	}
	checkBytes(t, must(os.ReadFile(path))(t), append(want[:len(want):len(want)], want...))
}

func TestNewTerminalRefuses(t *testing.T) {
	master, slave := openPTY(t)
	fifo := mkfifo(t)
	for name, tc := range map[string]struct {
		master *os.File
		cfg    Config
		is     func(error) bool
	}{
		"slave":        {slave, Config{Stdout: fifo}, errdefs.IsInvalidArgument},
		"missing FIFO": {master, Config{Stdout: fifo + "x"}, errdefs.IsFailedPrecondition},
		"bad stdin":    {master, Config{Stdin: "/dev/zero", Stdout: fifo}, errdefs.IsInvalidArgument},
		"bad URI":      {master, Config{Stdout: "x"}, errdefs.IsInvalidArgument},
	} {
		before := len(openFiles())
		if _, err := NewTerminal(t.Context(), tc.master, tc.cfg, nil); !tc.is(err) {
			t.Errorf("%s: %v", name, err)
		}
		if after := len(openFiles()); after != before {
			t.Errorf("%s: %d descriptors, before %d", name, after, before)
		}
	}
	term := newTerminal(t, master, Config{Stdout: fifo}, nil)
	if err := term.Resize(1<<16, 1); !errdefs.IsInvalidArgument(err) {
		t.Errorf("resize: %v", err)
	}
}

// The FIFO's path may be gone when a new daemon takes over; its keeper counts.
func TestTerminalContinuesFromKeepers(t *testing.T) {
	cfg := Config{Stdin: mkfifo(t), Stdout: mkfifo(t), Terminal: true}
	s := openSet(t, cfg)
	in, out := client(t, cfg.Stdin, os.O_WRONLY), client(t, cfg.Stdout, os.O_RDONLY)
	master, slave := openPTY(t)
	again := dup(t, master)
	if err := newTerminal(t, master, cfg, s.Keepers()).Close(); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{cfg.Stdin, cfg.Stdout} {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
	newTerminal(t, again, cfg, s.Keepers())
	must(slave.WriteString("out\n"))(t)
	expect(t, out, "out\n")
	must(in.WriteString("in\n"))(t)
	expect(t, slave, "in\n")
}

// playDaemon is a daemon that is to be killed: descriptor 3 is the master.
func playDaemon() {
	cfg := Config{Stdin: os.Args[1], Stdout: os.Args[2], Terminal: true}
	if _, err := NewTerminal(context.Background(), os.NewFile(3, "ptmx"), cfg, nil); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Stdout.WriteString("ready\n")
	select {}
}

// The daemon is killed again and again while megabytes flow both ways; what the monitor
// would keep is kept by the test.
func TestKillLosesNothing(t *testing.T) {
	cfg := Config{Stdin: mkfifo(t), Stdout: mkfifo(t), Terminal: true}
	s := openSet(t, cfg)
	if len(s.Keepers()) != 2 {
		t.Fatalf("keepers %v", s.Keepers())
	}
	master, slave := openPTY(t)
	want := pattern(3 << 20)
	shell := startShell(t, slave, fmt.Sprintf("head -c %d", len(want)))
	in, out := client(t, cfg.Stdin, os.O_WRONLY), client(t, cfg.Stdout, os.O_RDONLY)
	sent, received := make(chan error, 1), make(chan error, 1)
	got := make([]byte, len(want))
	go func() {
		_, err := in.Write(want)
		sent <- err
	}()
	go func() {
		_, err := io.ReadFull(out, got)
		received <- err
	}()
	kills := 0
	for done := false; !done; kills++ {
		cmd := exec.Command(must(os.Executable())(t), cfg.Stdin, cfg.Stdout)
		cmd.Env, cmd.Stderr, cmd.ExtraFiles = append(os.Environ(), roleVar+"=daemon"), os.Stderr, []*os.File{master}
		stdout := must(cmd.StdoutPipe())(t)
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		start(t, cmd)
		must(io.ReadFull(stdout, make([]byte, len("ready\n"))))(t)
		select {
		case err := <-received:
			if done = true; err != nil {
				t.Fatalf("after %d kills: %v", kills, err)
			}
		case <-time.After(time.Duration(rand.IntN(8000)) * time.Microsecond): // any moment
		}
		cmd.Process.Kill()
		cmd.Wait()
	}
	checkBytes(t, got, want)
	if err := errors.Join(<-sent, shell.Wait()); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d kills", kills)
}

// When Wait returns, all is in the file: nothing may come from buffers behind the pty.
func TestWaitIsNeverEarly(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	want := 0
	for range 200 {
		n := 1 + rand.IntN(40_000)
		want += n
		master, slave := openPTY(t)
		term := newTerminal(t, master, Config{Stdout: "file://" + path}, nil)
		go func() {
			slave.Write(make([]byte, n)) // the length of the file tells
			slave.Close()
		}()
		if err := term.Wait(testContext(t)); err != nil {
			t.Fatal(err)
		}
		if got := int(must(os.Stat(path))(t).Size()); got != want {
			t.Fatalf("file has %d bytes, want %d", got, want)
		}
		if err := term.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
