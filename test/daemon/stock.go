package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"caisson/internal/monitor"
	"caisson/test/image"
)

// Stock says whether the engine is an unmodified containerd beside caissond.
func (d *Daemon) Stock() bool { return d.opts.Engine == EngineStock }

// stockConfig is the part of containerd's configuration that keeps it in the
// test's directory. What makes it use Caisson is imported, exactly as
// `caisson config containerd` prints it.
const stockConfig = `version = 3
root = %[1]q
state = %[2]q
imports = [%[3]q]

[grpc]
address = %[4]q

# Caisson without a proxy plugin: containerd's own sandboxer for shims.
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.caisson-shim]
runtime_type = "io.containerd.caisson.v2"
sandboxer = "shim"
disable_pause_image_pull = true

# containerd's own way, as the reference: pause container and containerd-shim-runc-v2.
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
BinaryName = %[5]q
Root = %[6]q
SystemdCgroup = %[7]t
`

// stockDir is where the containerd beside caissond has its files.
func (d *Daemon) stockDir() string { return filepath.Join(d.Dir, "containerd") }

// ContainerdConfig is containerd's own configuration file.
func (d *Daemon) ContainerdConfig() string { return filepath.Join(d.stockDir(), "config.toml") }

// writeStockConfig writes containerd's configuration and lets caisson print
// its part.
func (d *Daemon) writeStockConfig() error {
	if err := os.MkdirAll(d.stockDir(), 0o711); err != nil { // containers with user namespaces pass through
		return err
	}
	caisson, err := d.Binary("caisson")
	if err != nil {
		return err
	}
	printed, err := exec.Command(caisson, "config", "containerd", "--state", d.State).Output()
	if err != nil {
		return fmt.Errorf("caisson config containerd: %w", err)
	}
	ours := filepath.Join(d.stockDir(), "caisson.toml")
	if err := os.WriteFile(ours, printed, 0o600); err != nil {
		return err
	}
	isolation := strings.Replace(d.isolation(), "netns_mounts_under_state_dir", "restrict_oom_score_adj = true\nnetns_mounts_under_state_dir", 1)
	if strings.HasPrefix(d.opts.Containerd, "containerd-v2.0.") { // it knows one directory only
		isolation = strings.Replace(isolation, fmt.Sprintf("bin_dirs = [%q]", CNIBinDir), fmt.Sprintf("bin_dir = %q", CNIBinDir), 1)
	}
	if strings.HasPrefix(d.opts.Containerd, "containerd-v2.3.") {
		// It wants a pause image for every sandboxer. Any image will do, nothing runs it.
		isolation += fmt.Sprintf("[plugins.\"io.containerd.cri.v1.images\".pinned_images]\nsandbox = %q\n", image.DefaultRef)
	}
	text := fmt.Sprintf(stockConfig, d.stockDir()+"/root", d.stockDir()+"/run", ours, d.Address, d.runtime(), d.stockDir()+"/runc", d.opts.SystemdCgroup) +
		isolation + d.opts.EngineConfig
	return os.WriteFile(d.ContainerdConfig(), []byte(text), 0o600)
}

// LaunchContainerd starts the containerd beside caissond and does not wait.
func (d *Daemon) LaunchContainerd() error {
	path, err := d.Binary(d.containerdName())
	if err != nil {
		return err
	}
	args := append(slices.Clone(d.opts.Under), path, "--config", d.ContainerdConfig(), "--log-level", d.logLevel())
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Dir = d.Dir
	cmd.Env = slices.Concat(d.environ(), d.shimEnv(), d.opts.Env)
	return d.containerd.launch(cmd)
}

func (d *Daemon) containerdName() string {
	if d.opts.Containerd != "" {
		return d.opts.Containerd
	}
	return "containerd"
}

// shimEnv tells containerd-shim-caisson-v2 where this test's daemon is, and with
// what to start one.
func (d *Daemon) shimEnv() []string {
	if d.opts.Under != nil {
		return nil // there, the default directories are the test's own
	}
	return []string{"CAISSON_SHIM_SOCKET=" + d.State + "/shim.sock", "CAISSON_SHIM_CONFIG=" + d.ConfigFile}
}

// StartContainerd starts the containerd beside caissond and returns when CRI
// answers.
func (d *Daemon) StartContainerd(ctx context.Context) error {
	if err := d.LaunchContainerd(); err != nil {
		return err
	}
	if err := d.ready(ctx, &d.containerd); err != nil {
		return errors.Join(err, d.KillContainerd())
	}
	return nil
}

// KillContainerd ends the containerd beside caissond with SIGKILL.
func (d *Daemon) KillContainerd() error { return d.containerd.kill() }

// StopContainerd ends the containerd beside caissond with SIGTERM.
func (d *Daemon) StopContainerd(ctx context.Context) error { return d.containerd.stop(ctx) }

// ContainerdPid is the process of the containerd beside caissond.
func (d *Daemon) ContainerdPid() int { return d.containerd.running.Process.Pid }

// sandboxerReady waits until a caissond without an engine listens.
func (d *Daemon) sandboxerReady(ctx context.Context) error {
	var ended error
	err := Poll(ctx, startLimit, func() error {
		select {
		case <-d.caissond.exited:
			ended = fmt.Errorf("caissond ended while it started (%w):\n%s", errorOr(d.caissond.exitErr, "exit code 0"), d.LogTail(2000))
			return nil
		default:
		}
		conn, err := net.Dial("unix", filepath.Join(d.State, "shim.sock")) // the last that is opened
		if err != nil {
			return err
		}
		return conn.Close()
	})
	return errors.Join(err, ended)
}

// Started is the pid of the caissond that holds the state directory, whoever
// started it; 0 if none does.
func (d *Daemon) Started() (int, error) {
	f, err := os.Open(filepath.Join(d.State, "lock"))
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB); err == nil {
		return 0, nil // nobody holds it; ours goes with the file
	}
	text := make([]byte, 20)
	n, _ := f.ReadAt(text, 0) // it is shorter than that
	return strconv.Atoi(strings.TrimSpace(string(text[:n])))
}

// stopStarted ends a daemon that a shim binary has started, which is nobody's
// child.
func (d *Daemon) stopStarted(ctx context.Context) error {
	pid, err := d.Started()
	if err != nil || pid == 0 {
		return err
	}
	if err := unix.Kill(pid, unix.SIGTERM); err != nil {
		return fmt.Errorf("stop the daemon that a shim started: %w", err)
	}
	return Poll(ctx, stopLimit, func() error {
		if other, err := d.Started(); err != nil || other != 0 {
			return errors.Join(err, fmt.Errorf("caissond %d, which a shim started, does not stop", other))
		}
		return nil
	})
}

// endKeeper ends the keeper of a daemon that was killed and did not come back.
func (d *Daemon) endKeeper(ctx context.Context) error {
	conn, err := monitor.Dial(ctx, filepath.Join(d.State, "keeper"))
	if errdefs.IsNotFound(err) || errdefs.IsUnavailable(err) || errors.Is(err, unix.ENOTDIR) {
		return nil
	}
	if err != nil {
		return err
	}
	return errors.Join(conn.End(ctx, true), conn.Close())
}

// StopStarted ends the daemon that a shim binary has started, if one has.
func (d *Daemon) StopStarted() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	return d.stopStarted(ctx)
}
