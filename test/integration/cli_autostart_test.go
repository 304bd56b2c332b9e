package integration

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"caisson/test/daemon"
	"caisson/test/harness"
)

// inPrivate runs a script in a mount namespace where the default directories are empty.
const inPrivate = `set -e
for dir in /run /var/lib /opt; do mount -t tmpfs tmpfs $dir; done
mkdir -p /run/lock
`

var startedDaemon = regexp.MustCompile(`caisson: no daemon was running: started caissond \(pid (\d+)\), whose log is (\S+)`)

// TestCLIStartsDaemon: several commands at once start one daemon, which outlives them.
func TestCLIStartsDaemon(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	bin, err := daemon.BinDir()
	if err != nil {
		t.Fatal(err)
	}
	run := func(script string) string {
		t.Helper()
		ctx := harness.Context(t, time.Minute)
		cmd := exec.CommandContext(ctx, "unshare", "--mount", "--propagation", "private", "setsid", "sh", "-c", inPrivate+script)
		cmd.Dir = t.TempDir()
		cmd.Env = []string{"PATH=" + filepath.Clean(bin) + ":/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/", "TMPDIR=" + cmd.Dir}
		cmd.WaitDelay = 10 * time.Second
		out, err := cmd.CombinedOutput()
		for _, m := range startedDaemon.FindAllStringSubmatch(string(out), -1) {
			pid, _ := strconv.Atoi(m[1]) // digits
			stopDaemon(t, pid)
		}
		if err != nil {
			t.Errorf("%v:\n%s", err, out)
		}
		return string(out)
	}

	out := run(`
for i in 1 2 3 4; do caisson ps -q & done
wait
echo "log $(grep -c 'caissond is ready' /run/caisson/caissond.log)"
caisson sandbox ls -q
`)
	if started := startedDaemon.FindAllStringSubmatch(out, -1); len(started) != 1 || started[0][2] != "/run/caisson/caissond.log" || !strings.HasSuffix(out, "log 1\n") {
		t.Errorf("four at once:\n%s", out)
	}

	// Where it is not for caisson to start one, it says what to do.
	out = run(`
caisson version || true
caisson --start-daemon=false ps || true
CAISSON_START_DAEMON=0 caisson ps || true
CAISSON_ADDRESS=/run/other.sock caisson ps || true
mkdir /run/caisson && : >/run/caisson/lock
caisson ps || true
`)
	if n := strings.Count(out, "start it with `caissond`"); n != 5 || strings.Contains(out, "started caissond") {
		t.Errorf("not to be started: %d times\n%s", n, out)
	}
	// One that cannot start.
	out = run("mkdir /var/lib/caisson && mkdir /var/lib/caisson/lock\ncaisson ps || echo code $?")
	if !strings.Contains(out, "caissond was started, and ended (exit code 1): /run/caisson/caissond.log says why\ncode 1\n") {
		t.Errorf("a daemon that cannot start:\n%s", out)
	}
}

// stopDaemon ends a daemon that is not our child.
func stopDaemon(t *testing.T, pid int) {
	t.Helper()
	if err := unix.Kill(pid, unix.SIGTERM); err != nil {
		t.Errorf("the daemon does not outlive the command: %v", err)
		return
	}
	err := daemon.Poll(t.Context(), time.Minute, func() error {
		if err := unix.Kill(pid, 0); errors.Is(err, unix.ESRCH) {
			return nil
		}
		return fmt.Errorf("caissond %d does not end", pid)
	})
	if err != nil {
		t.Error(errors.Join(err, unix.Kill(pid, unix.SIGKILL)))
	}
}
