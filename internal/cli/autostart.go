package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"caisson/internal/config"
)

const (
	daemonName = "caissond"
	startEnv   = "CAISSON_START_DAEMON"
	// startLimit is how long a daemon may take until it answers: it looks for what an
	// earlier one has left first.
	startLimit = time.Minute
	startStep  = 20 * time.Millisecond
)

// startsDaemon is the default of --start-daemon.
func (a *app) startsDaemon() bool {
	start, err := strconv.ParseBool(a.sys.Env(startEnv))
	return start || err != nil
}

// daemonToStart is the program to start when nobody answers; "" if that is not for caisson
// to do: it was told not to, or which daemon to use; it is not root; no daemon is
// installed; or there is one that somebody else starts, such as an init system.
func (a *app) daemonToStart(cause error) string {
	if !a.startDaemon || a.socketPath() != defaultAddress || os.Geteuid() != 0 || !nobodyListens(cause) {
		return ""
	}
	cfg, err := config.Load(config.DefaultPath)
	if errdefs.IsNotFound(err) {
		cfg, err = config.Default(), nil
	}
	if err != nil || cfg.Complete() != nil || cfg.Engine != config.EngineEmbedded || cfg.Address != defaultAddress {
		return ""
	}
	// Every daemon makes the lock and leaves it; those that are started here have a log.
	if exists(filepath.Join(cfg.State, "lock")) && !exists(daemonLog) {
		return ""
	}
	if beside := filepath.Join(filepath.Dir(a.sys.Executable), daemonName); a.sys.Executable != "" && unix.Access(beside, unix.X_OK) == nil {
		return beside
	}
	program, err := exec.LookPath(daemonName)
	if err != nil || !filepath.IsAbs(program) {
		return ""
	}
	return program
}

// daemonLog is beside the socket, where the shim binary has the log of daemons that it starts.
var daemonLog = filepath.Join(filepath.Dir(defaultAddress), "caissond.log")

func nobodyListens(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED)
}

// startAndWait starts the daemon and returns when it answers. Of several at once the one
// that has locked the log does so, and the others wait for the same daemon.
func (a *app) startAndWait(ctx context.Context, program string) error {
	if err := os.MkdirAll(filepath.Dir(daemonLog), 0o711); err != nil {
		return fmt.Errorf("start caissond: %w", err)
	}
	lock, err := openDaemonLog()
	if err != nil {
		return fmt.Errorf("start caissond: log: %w", err)
	}
	defer lock.Close() // which unlocks it
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	locked, pid := false, 0
	for {
		err := a.probe(ctx)
		switch {
		case err == nil && pid != 0:
			fmt.Fprintf(a.sys.Stderr, "caisson: no daemon was running: started caissond (pid %d), whose log is %s\n", pid, daemonLog)
			return nil
		case err == nil || !nobodyListens(err) && ctx.Err() == nil:
			return err
		case ctx.Err() != nil: // which sleep tells
		case pid != 0:
			if how, ended := endOfDaemon(pid); ended {
				return advise(errdefs.ErrUnavailable, "caissond was started, and ended (%s): %s says why", how, daemonLog)
			}
		case locked: // and nobody was faster
			if pid, err = launchDaemon(program); err != nil {
				return fmt.Errorf("start %s: %w", program, err)
			}
		default:
			err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB)
			if err != nil && !errors.Is(err, unix.EWOULDBLOCK) {
				return fmt.Errorf("start caissond: lock %s: %w", daemonLog, err)
			}
			if locked = err == nil; locked {
				continue
			}
		}
		if err := sleep(ctx, startStep); err != nil {
			if errors.Is(err, context.DeadlineExceeded) {
				return advise(errdefs.ErrUnavailable, "caissond was started and does not answer at %s: %s may say why", defaultAddress, daemonLog)
			}
			return err
		}
	}
}

func openDaemonLog() (*os.File, error) {
	return os.OpenFile(daemonLog, os.O_CREATE|os.O_WRONLY|os.O_APPEND|unix.O_NOFOLLOW, 0o600)
}

// notInherited is what an init system has set for this process alone.
var notInherited = []string{"NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"}

// launchDaemon starts it in a session of its own: neither the end of caisson nor of its
// terminal reaches it. Its log is opened anew, since a lock goes with the open file.
func launchDaemon(program string) (pid int, err error) {
	log, err := openDaemonLog()
	if err != nil {
		return 0, err
	}
	defer log.Close()
	cmd := exec.Command(program)
	cmd.Dir = "/"
	cmd.Env = slices.DeleteFunc(os.Environ(), func(v string) bool {
		name, _, _ := strings.Cut(v, "=")
		return slices.Contains(notInherited, name)
	})
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	pid = cmd.Process.Pid
	return pid, cmd.Process.Release()
}

// endOfDaemon tells how the daemon that was started here has ended, if it has.
func endOfDaemon(pid int) (how string, ended bool) {
	var status unix.WaitStatus
	got, err := unix.Wait4(pid, &status, unix.WNOHANG, nil)
	switch {
	case err == nil && got != pid:
		return "", false
	case err != nil:
		return err.Error(), true
	case status.Signaled():
		return status.Signal().String(), true
	}
	return fmt.Sprintf("exit code %d", status.ExitStatus()), true
}
