package network

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// daemonEnv has the directory of a scripted host, in a process that sets up a network
// there, as a daemon that is to be killed.
const daemonEnv = "CAISSON_NETWORK_TEST_DAEMON"

var scriptedRequest = Request{ID: "default/a", Name: "testorphan", Mode: CNI}

// scripted is a Manager whose only plugin is a shell script, which finds its ADD in
// $add and logs to $dir/log when it begins and ends something.
func scripted(t *testing.T, add string) (m *Manager, dir string) {
	t.Helper()
	dir = t.TempDir()
	script := `#!/bin/sh
dir=` + dir + `
say() { echo $1 >>$dir/log; }
say "$CNI_COMMAND begins"
case $CNI_COMMAND in
ADD) ` + add + `;;
DEL) cat >/dev/null; rm -f $dir/lease;;
esac
say "$CNI_COMMAND ends"
`
	conf := `{"cniVersion": "0.4.0", "name": "caissontest", "plugins": [{"type": "scripted"}]}`
	for name, text := range map[string]string{"bin/scripted": script, "conf/10-test.conflist": conf} {
		if err := os.MkdirAll(filepath.Join(dir, filepath.Dir(name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	m, err := scriptedManager(dir)
	if err != nil {
		t.Fatal(err)
	}
	return m, dir
}

func scriptedManager(dir string) (*Manager, error) {
	return New(Config{NetNSDir: dir + "/netns", CNIConfDir: dir + "/conf", CNIBinDirs: []string{dir + "/bin"}})
}

const addResult = `echo '{"cniVersion": "0.4.0"}'`

// playDaemon sets the network up.
func playDaemon(dir string) int {
	m, err := scriptedManager(dir)
	if err == nil {
		_, err = m.Setup(context.Background(), scriptedRequest)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// logged is what the script has said, one after the other.
func logged(t *testing.T, dir string) string {
	t.Helper()
	log, err := os.ReadFile(dir + "/log")
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	return strings.ReplaceAll(strings.TrimSpace(string(log)), "\n", ", ")
}

func awaitLog(t *testing.T, dir, text string) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !strings.Contains(logged(t, dir), text); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%q is not in the log: %s", text, logged(t, dir))
		}
	}
}

// checkTaken checks that DEL came last, after all that ADD did.
func checkTaken(t *testing.T, dir, want string) {
	t.Helper()
	if log := logged(t, dir); log != want+", DEL begins, DEL ends" {
		t.Errorf("log: %s", log)
	}
	if _, err := os.Stat(dir + "/lease"); err == nil {
		t.Error("what ADD gave is still there")
	}
}

// TestTeardownAfterAKilledSetup: an ADD goes on when the daemon that began it is
// killed. What it gives in the end is taken back all the same.
func TestTeardownAfterAKilledSetup(t *testing.T) {
	for name, add := range map[string]string{
		"its plugin":            `say waits; sleep 1; touch $dir/lease; say late`,
		"a child of its plugin": `(sleep 1; touch $dir/lease; say late) & say waits; wait`,
		"children one by one":   `say waits; for i in 1 2 3; do sleep 0.3; done; touch $dir/lease; say late`,
	} {
		t.Run(name, func(t *testing.T) {
			m, dir := scripted(t, add)
			daemon := exec.Command("/proc/self/exe")
			daemon.Env = append(os.Environ(), daemonEnv+"="+dir)
			if err := daemon.Start(); err != nil {
				t.Fatal(err)
			}
			awaitLog(t, dir, "waits")
			_ = daemon.Process.Kill() // it may have ended by itself
			_ = daemon.Wait()         // likewise
			if err := m.Teardown(t.Context(), scriptedRequest); err != nil {
				t.Fatal(err)
			}
			checkTaken(t, dir, "ADD begins, waits, late, ADD ends")
		})
	}
}

// TestSetupCancelledBeforeAChildEnds: a plugin is killed with the call, but not what it
// has started.
func TestSetupCancelledBeforeAChildEnds(t *testing.T) {
	m, dir := scripted(t, `(sleep 1; touch $dir/lease; say late) >/dev/null 2>&1 & say waits; wait`)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := m.Setup(ctx, scriptedRequest)
		done <- err
	}()
	awaitLog(t, dir, "waits")
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	checkTaken(t, dir, "ADD begins, waits, late")
}

// sleeper is a process with the environment of a plugin, and one that it has started.
func sleeper(t *testing.T, containerID string) (pidfd int) {
	t.Helper()
	cmd := exec.Command("/bin/sh", "-c", "sleep 1000 & echo; wait")
	cmd.Env = append(os.Environ(), "CNI_COMMAND=ADD", "CNI_CONTAINERID="+containerID)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	if pidfd, err = unix.PidfdOpen(cmd.Process.Pid, 0); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = cmd.Wait() // it is killed
	}()
	t.Cleanup(func() {
		_ = unix.Kill(-cmd.Process.Pid, unix.SIGKILL) // what the test has left of it
		<-done
		unix.Close(pidfd)
	})
	return pidfd
}

func runs(pidfd int) bool {
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, 0)
	return n == 0 && err == nil
}

func TestPluginsThatDoNotEndAreKilled(t *testing.T) {
	slow, other := sleeper(t, "caisson-testslow"), sleeper(t, "caisson-testslow2")
	if err := endPlugins(t.Context(), "caisson-testslow", 10*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	if runs(slow) {
		t.Error("it runs")
	}
	if !runs(other) {
		t.Error("another container's was killed")
	}
	pids, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	for _, proc := range pids {
		env, err := os.ReadFile(proc + "/environ")
		if err == nil && strings.Contains(string(env), "CNI_CONTAINERID=caisson-testslow\x00") {
			t.Errorf("%s is left", proc)
		}
	}
}

// TestTeardownOfAFinishedSetup: what a plugin has left running on purpose is not waited
// for, nor killed.
func TestTeardownOfAFinishedSetup(t *testing.T) {
	m, dir := scripted(t, addResult)
	if _, err := m.Setup(t.Context(), scriptedRequest); err != nil {
		t.Fatal(err)
	}
	left := sleeper(t, containerID(scriptedRequest.Name))
	begun := time.Now()
	if err := m.Teardown(t.Context(), scriptedRequest); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begun); took > pluginPatience || !runs(left) {
		t.Errorf("it took %v; what was left runs: %v", took, runs(left))
	}
	if log := logged(t, dir); log != "ADD begins, ADD ends, DEL begins, DEL ends" {
		t.Error(log)
	}
}
