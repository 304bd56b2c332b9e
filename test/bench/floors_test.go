package bench

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// benchFloors runs the OCI runtimes alone, on one bundle, beside the C program: what
// nobody who starts them can do without.
func benchFloors(t *testing.T, r *recorder) {
	const what = "floors"
	// A container's process becomes ours when the runtime that made it has ended.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0); err != nil {
			t.Error(err)
		}
	}()
	bundle, floor := makeBundle(t, "/caisson-floor"), buildFloor(t)
	for round := range *rounds + 2 {
		into := r
		if round < 2 {
			into = &recorder{}
		}
		for _, rt := range runtimes {
			bare{t, into, what, rt, t.TempDir()}.life(bundle)
		}
		into.add(what, "kernel objects of a sandbox", "ms", "C program", floor()/1000)
	}
	if err := removeGroup("caisson-floor"); err != nil {
		t.Error(err)
	}
}

// bare is an OCI runtime without anything around it. Its directory has its state.
type bare struct {
	t       *testing.T
	r       *recorder
	group   string
	program string
	dir     string
}

func (b bare) life(bundle string) {
	b.t.Helper()
	pidFile := filepath.Join(b.dir, "pid")
	begin := time.Now()
	b.run("create", "--bundle", bundle, "--pid-file", pidFile, "c")
	at := b.r.took(b.group, "create", b.program, begin)
	b.run("start", "c")
	at = b.r.took(b.group, "start", b.program, at)
	b.r.took(b.group, "create + start", b.program, begin)
	b.run("exec", "c", "/bin/true")
	b.r.took(b.group, "exec true", b.program, at)
	b.kill(pidFile)
	at = time.Now()
	b.run("delete", "c")
	b.r.took(b.group, "delete", b.program, at)
}

func (b bare) run(verb string, args ...string) {
	b.t.Helper()
	// Not a pipe: the container would have it too, and keep it open.
	output, err := os.Create(filepath.Join(b.dir, "output"))
	if err != nil {
		b.t.Fatal(err)
	}
	defer output.Close()
	cmd := exec.Command(b.program, append([]string{"--root", filepath.Join(b.dir, "state"), verb}, args...)...)
	cmd.Stdout, cmd.Stderr = output, output
	if err := cmd.Run(); err != nil {
		text, _ := os.ReadFile(output.Name())
		b.t.Fatalf("%s %s: %v: %s", b.program, verb, err, text)
	}
}

// kill ends the container and waits for it.
func (b bare) kill(pidFile string) {
	b.t.Helper()
	text, err := os.ReadFile(pidFile)
	if err != nil {
		b.t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		b.t.Fatal(err)
	}
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		b.t.Fatal(err)
	}
	if _, err := unix.Wait4(pid, nil, 0, nil); err != nil {
		b.t.Fatal(err)
	}
}
