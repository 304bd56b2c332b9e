package stdio

import (
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// runDirect starts a script with the Set's streams as its own.
func runDirect(t *testing.T, s *Set, script string) *exec.Cmd {
	t.Helper()
	child := s.Child()
	cmd := exec.Command("/bin/sh", "-c", script)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = child[0], child[1], child[2]
	start(t, cmd)
	return cmd
}

func TestFIFOsGoToTheProcess(t *testing.T) {
	cfg := Config{Stdin: mkfifo(t), Stdout: mkfifo(t), Stderr: "fifo://" + mkfifo(t)}
	in := must(os.OpenFile(cfg.Stdin, unix.O_RDWR, 0))(t) // as a client that came first
	defer in.Close()
	s := openSet(t, cfg)
	cmd := runDirect(t, s, "cat; echo done >&2")

	// What the monitor keeps, while the daemon closes all of its own.
	stdin, stdout, stderr := dup(t, s.Keepers()[Stdin]), dup(t, s.Keepers()[Stdout]), dup(t, s.Keepers()[Stderr])
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	want := pattern(4 << 20)
	sent := make(chan error, 1)
	go func() {
		_, err := in.Write(want)
		sent <- err
	}()

	out := client(t, cfg.Stdout, os.O_RDONLY)
	got := make([]byte, len(want))
	half := len(got) / 2
	must(io.ReadFull(out, got[:half]))(t)
	out.Close() // the reader leaves in the middle, and another comes: no EPIPE, nothing lost
	out = client(t, cfg.Stdout, os.O_RDONLY)
	must(io.ReadFull(out, got[half:]))(t)
	checkBytes(t, got, want)
	if err := <-sent; err != nil {
		t.Fatal(err)
	}

	in.Close() // a client that leaves does not end stdin; CloseIO does
	errs := client(t, cfg.Stderr[len("fifo://"):], os.O_RDONLY)
	stdin.Close()
	expect(t, errs, "done\n")
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	stdout.Close()
	stderr.Close()
	for _, f := range []*os.File{out, errs} {
		if rest, err := io.ReadAll(f); err != nil || len(rest) > 0 {
			t.Errorf("%s after the end: %q, %v", f.Name(), rest, err)
		}
	}
}

func TestNullStreams(t *testing.T) {
	s := openSet(t, Config{})
	if n := len(s.Keepers()); n != 0 || s.Logger() != nil {
		t.Errorf("%d keepers, logger %v", n, s.Logger())
	}
	cmd := runDirect(t, s, `test "$(wc -c)" = 0 && echo x && echo y >&2`)
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	for i := range 2 {
		if err := s.Close(); err != nil {
			t.Errorf("close %d: %v", i, err)
		}
	}
}

func TestLogFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "new", "dir", "log")
	log := must(openLog(path))(t)
	defer log.Close()
	if flags := must(unix.FcntlInt(log.Fd(), unix.F_GETFL, 0))(t); flags&unix.O_NOFOLLOW != 0 {
		t.Errorf("flags %#x of a log that was made, which CRIU could not restore", flags)
	}
	if err := os.RemoveAll(filepath.Dir(path)); err != nil {
		t.Fatal(err)
	}
	for _, cfg := range []Config{
		{Stdout: "file://" + path},
		{Stdout: "file://" + path, Stderr: "file://" + path},
		{Stdout: path, Stderr: path}, // it exists by now
	} {
		if err := runDirect(t, openSet(t, cfg), "echo out; echo err >&2; echo out").Wait(); err != nil {
			t.Error(err)
		}
	}
	if got, want := string(must(os.ReadFile(path))(t)), strings.Repeat("out\nerr\nout\n", 3); got != want {
		t.Errorf("log %q, want %q", got, want)
	}
}

func TestStdinFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "in")
	if err := os.WriteFile(path, []byte("hello"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := runDirect(t, openSet(t, Config{Stdin: path}), `test "$(cat)" = hello`).Wait(); err != nil {
		t.Error(err)
	}
}

func TestWrongFilesAreRefused(t *testing.T) {
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	if err := os.WriteFile(path("file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(path("fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"file", "fifo", "nothing"} {
		if err := os.Symlink(path(name), path("link-"+name)); err != nil {
			t.Fatal(err)
		}
	}
	for name, tc := range map[string]struct {
		stdout string
		is     func(error) bool
	}{
		"missing FIFO":           {path("nothing"), errdefs.IsFailedPrecondition},
		"missing FIFO by URI":    {"fifo://" + path("nothing"), errdefs.IsFailedPrecondition},
		"missing directory":      {path("no/thing"), errdefs.IsFailedPrecondition},
		"file as FIFO":           {"fifo://" + path("file"), errdefs.IsInvalidArgument},
		"FIFO as log":            {"file://" + path("fifo"), errdefs.IsInvalidArgument},
		"directory":              {dir, errdefs.IsInvalidArgument},
		"directory as log":       {"file://" + dir, errdefs.IsInvalidArgument},
		"device":                 {"/dev/zero", errdefs.IsInvalidArgument},
		"device as log":          {"file:///dev/zero", errdefs.IsInvalidArgument},
		"link to FIFO":           {path("link-fifo"), errdefs.IsInvalidArgument},
		"link to log":            {"file://" + path("link-file"), errdefs.IsInvalidArgument},
		"link to nothing as log": {"file://" + path("link-nothing"), errdefs.IsInvalidArgument},
		"file as directory":      {path("file/x"), errdefs.IsFailedPrecondition},
		"long name":              {"/" + strings.Repeat("x", 300), errdefs.IsInvalidArgument},
	} {
		for _, terminal := range []bool{false, true} {
			_, err := Open(t.Context(), Config{Stdout: tc.stdout, Terminal: terminal}, Owner{}, Identity{}, OpenHere)
			if !tc.is(err) || !strings.Contains(err.Error(), Stdout) {
				t.Errorf("%s (terminal %t): %v", name, terminal, err)
			}
		}
	}
	if _, err := os.Lstat(path("nothing")); !os.IsNotExist(err) {
		t.Errorf("something was made: %v", err)
	}
}

func TestOwnerOfFIFOs(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root to give files away")
	}
	cfg := Config{Stdin: mkfifo(t), Stdout: mkfifo(t)}
	s := must(Open(t.Context(), cfg, Owner{UID: 1234, GID: 4321}, Identity{}, OpenHere))(t)
	defer s.Close()
	for _, path := range []string{cfg.Stdin, cfg.Stdout} {
		var st unix.Stat_t
		if err := unix.Stat(path, &st); err != nil || st.Uid != 1234 || st.Gid != 4321 {
			t.Errorf("%s belongs to %d:%d, %v", path, st.Uid, st.Gid, err)
		}
	}
}
