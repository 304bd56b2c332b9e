package reap

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/containerd/log"
	"golang.org/x/sys/unix"
)

func init() { runtime.LockOSThread() }

func TestMain(m *testing.M) {
	code, done := 0, make(chan struct{})
	go func() {
		defer close(done)
		code = m.Run()
	}()
	if err := Orphans(done); err != nil {
		fmt.Fprintln(os.Stderr, "reap tests:", err)
		code = 1
	}
	os.Exit(code)
}

// orphan starts a process whose parent ends at once, and returns a pidfd of it.
func orphan(t *testing.T) (pidfd int) {
	t.Helper()
	cmd := exec.Command("/bin/sh", "-c", "sleep 1000 >/dev/null & echo $!")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	var pid int
	if _, err := fmt.Sscan(line, &pid); err != nil {
		t.Fatal(err)
	}
	if pidfd, err = Open(pid); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(pidfd) })
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	return pidfd
}

// endOrphan kills one, and waits until it is no zombie either.
func endOrphan(t *testing.T, pidfd int) {
	t.Helper()
	if err := unix.PidfdSendSignal(pidfd, unix.SIGKILL, nil, 0); err != nil {
		t.Fatal(err)
	}
	awaitReaped(t, pidfd)
}

func awaitReaped(t *testing.T, pidfd int) {
	t.Helper()
	limit := time.Now().Add(10 * time.Second)
	for unix.PidfdSendSignal(pidfd, 0, nil, 0) != unix.ESRCH {
		if time.Now().After(limit) {
			t.Fatal("it is still a zombie")
		}
		runtime.Gosched()
	}
}

func TestOrphansAreReaped(t *testing.T) {
	for range 20 {
		endOrphan(t, orphan(t))
	}
}

func TestChildrenAreLeftToTheirParents(t *testing.T) {
	for i := range 200 {
		cmd := exec.Command("/bin/sh", "-c", fmt.Sprintf("exit %d", i%100))
		err := cmd.Run()
		if cmd.ProcessState == nil || cmd.ProcessState.ExitCode() != i%100 {
			t.Fatalf("child %d: %v", i, err)
		}
	}
	// One that nobody waits for yet.
	cmd := exec.Command("/bin/sh", "-c", "exit 7")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for range 5 {
		endOrphan(t, orphan(t))
	}
	if err := cmd.Wait(); cmd.ProcessState == nil || cmd.ProcessState.ExitCode() != 7 {
		t.Errorf("it was reaped by another: %v", err)
	}
}

// TestChildrenOfAThreadThatEnds: the kernel moves them to the first thread's list, where
// they look like orphans.
func TestChildrenOfAThreadThatEnds(t *testing.T) {
	for i := range 20 {
		var cmd *exec.Cmd
		started := make(chan error)
		go func() {
			runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
			cmd = exec.Command("/bin/sh", "-c", fmt.Sprintf("read line; exit %d", i))
			in, err := cmd.StdinPipe()
			if err == nil {
				err = cmd.Start()
			}
			started <- err
			if err == nil {
				thread := fmt.Sprintf("/proc/self/task/%d", unix.Gettid())
				go func() {
					defer in.Close()
					for _, err := os.Stat(thread); err == nil; _, err = os.Stat(thread) {
						runtime.Gosched()
					}
				}()
			}
		}()
		if err := <-started; err != nil {
			t.Fatal(err)
		}
		var info unix.Siginfo // it has ended, and nobody waited yet
		if err := unix.Waitid(unix.P_PID, cmd.Process.Pid, &info, unix.WEXITED|unix.WNOWAIT, nil); err != nil {
			t.Fatalf("child %d was reaped by another: %v", i, err)
		}
		endOrphan(t, orphan(t)) // by now somebody looked
		if err := cmd.Wait(); cmd.ProcessState == nil || cmd.ProcessState.ExitCode() != i {
			t.Fatalf("child %d was reaped by another: %v", i, err)
		}
	}
}

// logged gets what is logged from now on, line by line.
func logged(t *testing.T) <-chan string {
	t.Helper()
	r, w := io.Pipe()
	old := log.L.Logger.Out
	log.L.Logger.SetOutput(w)
	t.Cleanup(func() { log.L.Logger.SetOutput(old); w.Close() })
	lines := make(chan string, 100)
	go func() {
		for s := bufio.NewScanner(r); s.Scan(); {
			lines <- s.Text()
		}
	}()
	return lines
}

// TestOrphansAreReapedLater: a process without a descriptor left cannot see whom it has
// inherited, but has not forgotten them.
func TestOrphansAreReapedLater(t *testing.T) {
	lines := logged(t)
	first, second := orphan(t), orphan(t)
	var before unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &before); err != nil {
		t.Fatal(err)
	}
	none := before
	none.Cur = 0
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &none); err != nil {
		t.Fatal(err)
	}
	err := unix.PidfdSendSignal(first, unix.SIGKILL, nil, 0)
	var line string
	select {
	case line = <-lines:
	case <-time.After(10 * time.Second):
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &before); err != nil {
		t.Fatal(err)
	}
	if err != nil || !strings.Contains(line, unix.EMFILE.Error()) {
		t.Errorf("logged: %q, %v", line, err)
	}
	awaitReaped(t, first) // without another signal
	endOrphan(t, second)
}

func TestNotOnAnotherThread(t *testing.T) {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never the first: main has it
		done <- Orphans(nil)
	}()
	if err := <-done; err == nil {
		t.Error("it would reap other people's children")
	}
}
