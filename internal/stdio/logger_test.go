package stdio

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
)

// playLogger writes what comes through descriptors 3 and 4 into the directory named by its
// argument "dir", and behaves as its argument "ready" says.
func playLogger() {
	args := make(map[string]string)
	for i := 1; i+1 < len(os.Args); i += 2 {
		args[os.Args[i]] = os.Args[i+1]
	}
	ready := os.NewFile(5, "ready")
	switch args["ready"] {
	case "die":
		os.Exit(1)
	case "hang":
		select {}
	case "byte":
		ready.Write([]byte{0})
	}
	ready.Close()
	var wg sync.WaitGroup
	for fd, name := range map[uintptr]string{3: "stdout", 4: "stderr"} {
		wg.Go(func() {
			b, err := io.ReadAll(os.NewFile(fd, name))
			if err == nil {
				err = os.WriteFile(filepath.Join(args["dir"], name), b, 0o600)
			}
			if err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
		})
	}
	wg.Wait()
	identity := os.Getenv("CONTAINER_NAMESPACE") + "/" + os.Getenv("CONTAINER_ID")
	if err := os.WriteFile(filepath.Join(args["dir"], "identity"), []byte(identity), 0o600); err != nil {
		os.Exit(1)
	}
	os.Exit(0)
}

func loggerURI(t *testing.T, scheme, ready string) (uri, dir string) {
	t.Helper()
	dir = t.TempDir()
	return fmt.Sprintf("%s://%s?dir=%s&ready=%s", scheme, must(os.Executable())(t), dir, ready), dir
}

// startLogger does what the monitor does.
func startLogger(t *testing.T, l *Logger) *exec.Cmd {
	t.Helper()
	cmd := &exec.Cmd{
		Path: l.Path, Args: l.Args, Env: append(l.Env, roleVar+"=logger"),
		Stdin: l.Files[0], Stdout: l.Files[1], Stderr: l.Files[2], ExtraFiles: l.Files[3:],
	}
	start(t, cmd)
	return cmd
}

func checkLog(t *testing.T, dir string, want map[string]string) {
	t.Helper()
	got := make(map[string]string)
	for name := range want {
		got[name] = string(must(os.ReadFile(filepath.Join(dir, name)))(t))
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("log (-want +got):\n%s", diff)
	}
}

func TestLoggerTakesBothOutputs(t *testing.T) {
	for _, scheme := range []string{"binary", "binary-v2"} {
		uri, dir := loggerURI(t, scheme, "byte")
		s := openSet(t, Config{Stdout: uri, Stderr: uri})
		logger := startLogger(t, s.Logger())
		if err := s.Logger().WaitReady(testContext(t)); err != nil {
			t.Fatal(err)
		}
		cmd := runDirect(t, s, "echo out; echo err >&2")
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		// Nothing of ours is left: the logger ends when the process does.
		if err := errors.Join(cmd.Wait(), logger.Wait()); err != nil {
			t.Fatal(err)
		}
		checkLog(t, dir, map[string]string{"stdout": "out\n", "stderr": "err\n", "identity": "ns/c1"})
	}
}

func TestLoggerReadiness(t *testing.T) {
	for _, tc := range []struct {
		scheme, ready string
		want          error
	}{
		{"binary", "eof", nil},
		{"binary", "die", nil}, // as containerd has it: it cannot tell
		{"binary-v2", "eof", errdefs.ErrFailedPrecondition},
		{"binary-v2", "die", errdefs.ErrFailedPrecondition},
		{"binary", "hang", context.Canceled},
	} {
		uri, _ := loggerURI(t, tc.scheme, tc.ready)
		s := openSet(t, Config{Stdout: uri})
		startLogger(t, s.Logger())
		ctx, cancel := context.WithCancel(testContext(t))
		if tc.ready == "hang" {
			cancel()
		}
		if err := s.Logger().WaitReady(ctx); !errors.Is(err, tc.want) {
			t.Errorf("%s, %s: %v, want %v", tc.scheme, tc.ready, err, tc.want)
		}
		cancel()
	}
}

func TestTerminalLogger(t *testing.T) {
	uri, dir := loggerURI(t, "binary-v2", "byte")
	cfg := Config{Stdout: uri, Terminal: true}
	s := openSet(t, cfg)
	logger := startLogger(t, s.Logger())
	if err := s.Logger().WaitReady(testContext(t)); err != nil {
		t.Fatal(err)
	}
	master, slave := openPTY(t)
	kept, again := dup(t, s.Keepers()[Stdout]), dup(t, master)
	term := newTerminal(t, master, cfg, s.Keepers())
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	want := string(pattern(300_000))
	for part := range 3 { // the daemon restarts twice in between
		if part > 0 {
			if err := term.Close(); err != nil {
				t.Fatal(err)
			}
			term = newTerminal(t, dup(t, again), cfg, map[string]*os.File{Stdout: kept})
		}
		must(io.Copy(slave, strings.NewReader(want[part*100_000:][:100_000])))(t)
	}
	slave.Close()
	if err := term.Wait(testContext(t)); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(term.Close(), kept.Close(), logger.Wait()); err != nil {
		t.Fatal(err)
	}
	checkLog(t, dir, map[string]string{"stdout": want, "stderr": "", "identity": "ns/c1"})
}

// A logger that dies must not hang the process.
func TestTerminalOutlivesItsLogger(t *testing.T) {
	uri, _ := loggerURI(t, "binary-v2", "byte")
	cfg := Config{Stdout: uri, Terminal: true}
	s := openSet(t, cfg)
	logger := startLogger(t, s.Logger())
	if err := s.Logger().WaitReady(testContext(t)); err != nil {
		t.Fatal(err)
	}
	master, slave := openPTY(t)
	if _, err := NewTerminal(t.Context(), master, cfg, nil); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("without the pipe: %v, want FailedPrecondition", err)
	}
	term := newTerminal(t, master, cfg, s.Keepers())
	logger.Process.Kill()
	logger.Wait()
	must(slave.Write(pattern(1 << 20)))(t)
	slave.Close()
	if err := term.Wait(testContext(t)); err == nil || !strings.Contains(err.Error(), "lost") {
		t.Errorf("wait: %v, want that output was lost", err)
	}
}
