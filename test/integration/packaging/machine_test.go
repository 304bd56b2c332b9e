package packaging

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"caisson/test/daemon"
	"caisson/test/harness"
	"caisson/test/leak"
)

//go:embed boot.sh
var bootScript string

// machine is a throwaway copy of this machine with a systemd of its own.
type machine struct {
	t     *testing.T
	dir   string
	share string // its /mnt
	init  string // pid of its systemd
}

// boot starts one, which ends with the test.
func boot(t *testing.T) *machine {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	if _, err := os.Stat("/lib/systemd/systemd"); err != nil {
		t.Skip("needs systemd, which this machine has not")
	}
	dir, err := os.MkdirTemp("/tmp", leak.TokenPrefix)
	if err != nil {
		t.Fatal(err)
	}
	m := &machine{t: t, dir: dir, share: filepath.Join(dir, "share")}
	t.Cleanup(m.clear)
	script := filepath.Join(dir, "boot.sh")
	out, err := os.Create(filepath.Join(dir, "console"))
	if err = errors.Join(err, os.Mkdir(m.share, 0o755), os.WriteFile(script, []byte(bootScript), 0o600)); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("bash", script, dir)
	cmd.Stdout, cmd.Stderr = out, out
	err = errors.Join(cmd.Start(), out.Close())
	t.Cleanup(func() {
		if cmd.Process == nil {
			return
		}
		if m.init != "" { // the kernel ends all that it has started
			_ = exec.Command("kill", "-KILL", m.init).Run()
		} else {
			_ = cmd.Process.Kill()
		}
		_ = cmd.Wait() // it was killed
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := daemon.Poll(harness.Context(t, time.Minute), time.Minute, func() error {
		children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", cmd.Process.Pid))
		if err != nil {
			return err
		}
		m.init = strings.TrimSpace(string(children))
		_, err = os.Stat("/proc/" + m.init + "/root/run/systemd/private")
		return err
	}); err != nil {
		console, _ := os.ReadFile(out.Name()) // for the message only
		t.Fatalf("no systemd: %v\n%s", err, console)
	}
	return m
}

// clear removes what is left when all processes are gone.
func (m *machine) clear() {
	token := filepath.Base(m.dir)
	for _, pattern := range []string{"/sys/fs/cgroup/", "/sys/fs/cgroup/*/"} {
		tops, _ := filepath.Glob(pattern + token) // the pattern is right
		for _, top := range tops {
			if err := removeCgroups(top); err != nil {
				m.t.Error(err)
			}
		}
	}
	if err := os.RemoveAll(m.dir); err != nil {
		m.t.Error(err)
	}
}

func removeCgroups(top string) error {
	var dirs []string
	err := filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			dirs = append(dirs, path)
		}
		return err
	})
	for i := len(dirs) - 1; i >= 0; i-- { // the inner ones are behind the outer ones
		err = errors.Join(err, unix.Rmdir(dirs[i]))
	}
	return err
}

// try runs a line of shell there, and gives what it printed.
func (m *machine) try(line string) (string, error) {
	ctx, cancel := context.WithTimeout(m.t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "nsenter", "--target", m.init, "--mount", "--pid", "--net", "--ipc", "--uts", "--cgroup", "bash", "-c", "cd\n"+line)
	cmd.Env = []string{"HOME=/root", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND=noninteractive"}
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func (m *machine) run(line string) string {
	m.t.Helper()
	out, err := m.try(line)
	if err != nil {
		log, _ := os.ReadFile(filepath.Join(m.share, "log")) // there may be none
		log = log[max(0, len(log)-4000):]
		m.t.Fatalf("%s: %v\n%s\nlog of caissond:\n%s", line, err, out, log)
	}
	return strings.TrimSpace(out)
}

// await waits until a line of shell succeeds.
func (m *machine) await(line string) {
	m.t.Helper()
	if err := daemon.Poll(harness.Context(m.t, time.Minute), time.Minute, func() error {
		out, err := m.try(line)
		if err != nil {
			return fmt.Errorf("%s: %w: %s", line, err, out)
		}
		return nil
	}); err != nil {
		m.t.Fatal(err)
	}
}

func (m *machine) expect(line, want string) {
	m.t.Helper()
	if out := m.run(line); out != want {
		m.t.Errorf("%s: %q, not %q", line, out, want)
	}
}
