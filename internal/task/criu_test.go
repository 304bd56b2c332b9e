package task

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"caisson/internal/oci"
	"caisson/internal/statefile"
)

// checkpointed is a container with an image that has these streams left out.
func checkpointed(t *testing.T, streams any) *container {
	t.Helper()
	p := newTestProcess(t, newTestSet(t), "c", "", Created)
	p.c.Restore = &oci.Restore{ImagePath: t.TempDir()}
	if err := statefile.Write(filepath.Join(p.c.Restore.ImagePath, outsideFile), streams); err != nil {
		t.Fatal(err)
	}
	return p.c
}

// openFIFO makes a FIFO and opens it.
func openFIFO(t *testing.T) *os.File {
	t.Helper()
	path := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

// configuration is the file that an environment names, line by line.
func configuration(t *testing.T, env []string) []string {
	t.Helper()
	if len(env) != 1 {
		t.Fatalf("environment %q", env)
	}
	path, ok := strings.CutPrefix(env[0], "CRIU_CONFIG_FILE=")
	text, err := os.ReadFile(path)
	if err != nil || !ok {
		t.Fatalf("environment %q: %v", env, err)
	}
	return strings.Split(strings.TrimSuffix(string(text), "\n"), "\n")
}

// TestOutsideStreams: of a process in a mount namespace of its own, what it was given is
// outside, what it has opened there is not, and a pipe is nowhere.
func TestOutsideStreams(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root, for a mount namespace")
	}
	fifo := openFIFO(t)
	log, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	for _, tt := range []struct {
		name, script string
		stderr       *os.File
		outside      [3]bool
	}{
		{"given", "exec 3>&-", log, [3]bool{true, true, true}},
		{"opened", "exec 2>" + log.Name(), log, [3]bool{true, true, false}},
		{"closed", "exec 2>&-", log, [3]bool{true, true, false}},
		{"pipe", ":", nil, [3]bool{true, true, false}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cmd := exec.Command("/bin/sh", "-c", tt.script+"; kill -STOP $$")
			cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS}
			cmd.Stdin, cmd.Stdout = fifo, log
			if tt.stderr != nil {
				cmd.Stderr = tt.stderr
			} else {
				cmd.Stderr = &strings.Builder{} // os/exec makes a pipe
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			defer cmd.Wait() // it was killed
			defer cmd.Process.Kill()
			var status unix.WaitStatus
			if _, err := unix.Wait4(cmd.Process.Pid, &status, unix.WUNTRACED, nil); err != nil || !status.Stopped() {
				t.Fatalf("it does not wait: %v, %v", status, err)
			}
			got, err := outsideStreams(cmd.Process.Pid)
			if err != nil {
				t.Fatal(err)
			}
			for fd, s := range got {
				if (s.Name != "") != tt.outside[fd] || s.Name != "" && !outsideName.MatchString(s.Name) {
					t.Errorf("%s: %+v, outside: %v", streamNames[fd], s, tt.outside[fd])
				}
			}
			if got[0].Mode != os.ModeNamedPipe|0o600 || !got[1].Mode.IsRegular() || got[0].Name == got[1].Name {
				t.Errorf("streams %+v", got)
			}
		})
	}
}

func TestStreamsComeBack(t *testing.T) {
	fifo := openFIFO(t)
	log, err := os.OpenFile(filepath.Join(t.TempDir(), "log"), os.O_CREATE|os.O_WRONLY, 0o644)
	null, nerr := os.Open(os.DevNull)
	if err := errors.Join(err, nerr, log.Chmod(0o644)); err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	defer log.Close()
	var (
		none     outside
		wasFIFO  = outside{"file[1a:2]", os.ModeNamedPipe | 0o600}
		wasLog   = outside{"file[1a:3]", 0o644}
		asFIFO   = "inherit-fd fd[0]:file[1a:2]"
		asOutput = "inherit-fd fd[1]:file[1a:3]"
	)
	for name, tt := range map[string]struct {
		streams [3]outside
		files   []*os.File
		want    []string // nil: InvalidArgument
	}{
		"FIFO and log":   {[3]outside{wasFIFO, wasLog, none}, []*os.File{fifo, log, null}, []string{asFIFO, asOutput}},
		"one log":        {[3]outside{none, wasLog, wasLog}, []*os.File{null, log, log}, []string{asOutput}},
		"log, not FIFO":  {[3]outside{wasFIFO, none, none}, []*os.File{log, log, log}, nil},
		"nothing":        {[3]outside{none, wasLog, none}, []*os.File{null, null, null}, nil},
		"other mode":     {[3]outside{none, {"file[1a:3]", 0o600}, none}, []*os.File{null, log, log}, nil},
		"none, terminal": {[3]outside{none, wasLog, none}, []*os.File{nil, nil, nil}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			env, err := checkpointed(t, tt.streams).bringBack(tt.files)
			if tt.want == nil {
				if !errdefs.IsInvalidArgument(err) {
					t.Errorf("%q, %v, want InvalidArgument", env, err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, configuration(t, env)); diff != "" {
				t.Errorf("configuration (-want +got):\n%s", diff)
			}
		})
	}
	if env, err := checkpointed(t, [3]outside{}).bringBack(nil); len(env) > 0 || err != nil {
		t.Errorf("of no streams: %q, %v", env, err)
	}
	c := checkpointed(t, nil)
	if err := os.Remove(filepath.Join(c.Restore.ImagePath, outsideFile)); err != nil {
		t.Fatal(err)
	}
	if env, err := c.bringBack(nil); len(env) > 0 || err != nil {
		t.Errorf("of somebody else's image: %q, %v", env, err)
	}
	if err := unix.Mkfifo(filepath.Join(c.Restore.ImagePath, outsideFile), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := c.bringBack(nil); !errdefs.IsDataLoss(err) {
		t.Errorf("of a FIFO in the image: %v", err)
	}
}

// TestHostileStreams: CRIU's configuration can name a program that it runs.
func TestHostileStreams(t *testing.T) {
	for _, name := range []string{"file[1:2]\naction-script /evil", "file[1:2] ", "pipe:[1]", "file[x:1]", "\nfile[1:2]", "file[1:2]\n"} {
		c := checkpointed(t, [3]outside{1: {Name: name}})
		if env, err := c.bringBack(nil); !errdefs.IsDataLoss(err) {
			t.Errorf("%q: %q, %v", name, env, err)
		}
	}
	for _, other := range []any{"x", 1, []any{1}, map[string]int{}} {
		if env, err := checkpointed(t, other).bringBack(nil); !errdefs.IsDataLoss(err) {
			t.Errorf("%v: %q, %v", other, env, err)
		}
	}
}

// FuzzReadOutside: what a checkpoint says of its streams is refused, or is one line of
// CRIU's configuration each.
func FuzzReadOutside(f *testing.F) {
	f.Add([]byte(`[{"Name":"file[1a:2]","Mode":33554816},{},{"Name":"","Mode":0}]`))
	f.Add([]byte(`[{"Name":"file[1:2]\naction-script /evil"}]`))
	f.Add([]byte(`[{},{},{},{"Name":"x"}]`))
	f.Add([]byte(`{`))
	path := filepath.Join(f.TempDir(), outsideFile)
	f.Fuzz(func(t *testing.T, data []byte) {
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		streams, err := readOutside(path)
		if err != nil {
			if !errdefs.IsDataLoss(err) {
				t.Errorf("class of %v", err)
			}
			return
		}
		for _, s := range streams {
			if s.Name != "" && (!strings.HasPrefix(s.Name, "file[") || strings.ContainsAny(s.Name, " \t\n\"#")) {
				t.Errorf("name %q", s.Name)
			}
		}
	})
}

// TestLeaveOut: CRIU is told of what is outside, and of nothing else.
func TestLeaveOut(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root, for a mount namespace")
	}
	fifo := openFIFO(t)
	cmd := exec.Command("/bin/cat")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS}
	cmd.Stdin = fifo
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait() // it was killed
	defer cmd.Process.Kill()
	p := newTestProcess(t, newTestSet(t), "c", "", Running)
	p.rec.Pid = cmd.Process.Pid
	image := filepath.Join(t.TempDir(), "image")
	env, err := p.leaveOut(image)
	for range 2 {
		err = errors.Join(err, keepOutside(image))
	}
	if err != nil {
		t.Fatal(err)
	}
	streams, err := readOutside(filepath.Join(image, outsideFile))
	if err != nil || streams[0].Name == "" {
		t.Fatalf("%+v, %v", streams, err)
	}
	if diff := cmp.Diff([]string{fmt.Sprint("external ", streams[0].Name)}, configuration(t, env)); diff != "" {
		t.Errorf("configuration (-want +got):\n%s", diff)
	}
}
