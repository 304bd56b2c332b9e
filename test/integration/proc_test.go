package integration

import (
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"caisson/test/harness"
)

func readlink(t *testing.T, path string) string {
	t.Helper()
	target, err := os.Readlink(path)
	if err != nil {
		t.Fatal(err)
	}
	return target
}

func kill(t testing.TB, pid int) {
	t.Helper()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatalf("kill %d: %v", pid, err)
	}
}

// awaitEnd returns when a process, which need not be a child, has ended.
func awaitEnd(t testing.TB, h *harness.Host, pidfd int) {
	t.Helper()
	deadline, _ := h.Context(30 * time.Second).Deadline()
	for {
		fds := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
		n, err := unix.Poll(fds, int(time.Until(deadline).Milliseconds()))
		switch {
		case err == unix.EINTR:
		case err != nil:
			t.Fatal(err)
		case n == 0:
			t.Fatal("the process does not end")
		default:
			return
		}
	}
}

// pidfd opens a process; it is closed when the test ends.
func pidfd(t testing.TB, pid int) int {
	t.Helper()
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	return fd
}

// hostProcesses lists, by program, the processes that belong to the daemon and
// are not inside a container: those whose program or command line names its
// directory.
func hostProcesses(t *testing.T, h *harness.Host) map[string]int {
	t.Helper()
	found := map[string]int{}
	for name, pids := range programs(t, h) {
		found[name] = len(pids)
	}
	return found
}

// programs are the same by their pids.
func programs(t testing.TB, h *harness.Host) map[string][]int {
	t.Helper()
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	found := map[string][]int{}
	for _, dir := range dirs {
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil || pid == os.Getpid() {
			continue
		}
		exe, err := os.Readlink(dir + "/exe")
		if err != nil {
			continue // it ended, or it is a thread of the kernel
		}
		cmdline, err := os.ReadFile(dir + "/cmdline")
		if err != nil {
			continue
		}
		environ, _ := os.ReadFile(dir + "/environ") // unreadable: it ended
		if !strings.Contains(exe+string(cmdline)+string(environ), h.Dir) {
			continue
		}
		name := filepath.Base(exe)
		if strings.HasPrefix(name, "caisson-monitor") {
			name = "caisson-monitor"
		}
		if string(cmdline) == "caisson-monitor\x00keeper\x00" {
			name = "keeper"
		}
		found[name] = append(found[name], pid)
	}
	return found
}

// verbosePid is the process that CRI's verbose status of a container names.
func verbosePid(t *testing.T, info map[string]string) int {
	t.Helper()
	var v struct {
		Pid int `json:"pid"`
	}
	if err := json.Unmarshal([]byte(info["info"]), &v); err != nil || v.Pid == 0 {
		t.Fatalf("no pid in %s: %v", info["info"], err)
	}
	return v.Pid
}

// freePort is a TCP port that nobody listens on: pods on the host's network
// share it with everything else.
func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}
