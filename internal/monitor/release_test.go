package monitor

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"
)

// TestRelease plays the containers of both runtimes, which wait at a FIFO.
func TestRelease(t *testing.T) {
	bin, err := Install(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	fifo := filepath.Join(t.TempDir(), "exec.fifo")
	release := func(does string, pid int) int {
		t.Helper()
		err := exec.Command(bin, "release", does, fifo, strconv.Itoa(pid)).Run()
		var failed *exec.ExitError
		if err != nil && !errors.As(err, &failed) {
			t.Fatal(err)
		}
		if failed != nil {
			return failed.ExitCode()
		}
		return 0
	}
	ended := exec.Command("/bin/true")
	if err := ended.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ended.Wait() }()
	pidfd, err := unix.PidfdOpen(ended.Process.Pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pidfd)
	if _, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, -1); err != nil {
		t.Fatal(err)
	}

	mkfifo := func() {
		t.Helper()
		if err := unix.Mkfifo(fifo, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	gone := func() {
		t.Helper()
		if _, err := os.Stat(fifo); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the FIFO: %v", err)
		}
	}

	mkfifo()
	wrote := make(chan error, 1)
	go func() { wrote <- os.WriteFile(fifo, []byte("0"), 0) }()
	if got := release("writes", os.Getpid()); got != 0 {
		t.Errorf("runc's: exit status %d", got)
	}
	if err := <-wrote; err != nil {
		t.Error(err)
	}
	gone()

	mkfifo()
	reader, err := os.OpenFile(fifo, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	if got := release("reads", os.Getpid()); got != 0 {
		t.Errorf("crun's: exit status %d", got)
	}
	if n, err := reader.Read(make([]byte, 2)); n != 1 {
		t.Errorf("crun's got %d bytes, %v", n, err)
	}
	gone()

	const untouched = 3
	for _, does := range []string{"writes", "reads"} {
		if got := release(does, os.Getpid()); got != untouched {
			t.Errorf("%s, without a FIFO: exit status %d", does, got)
		}
		mkfifo()
		if got := release(does, ended.Process.Pid); got != untouched {
			t.Errorf("%s, of a process that has ended: exit status %d", does, got)
		}
		if err := os.Remove(fifo); err != nil {
			t.Error(err)
		}
	}
}
