package reap

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"testing"
	"time"

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

// orphan starts a process whose parent ends at once, and returns its pidfd.
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
	if pidfd, err = unix.PidfdOpen(pid, 0); err != nil {
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
