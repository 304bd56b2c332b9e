// Command cri runs critest, the conformance suite of the Kubernetes container
// runtime interface, against caissond. `make test-cri CRITEST=path` is the way
// in; docs/conformance.md has the results and explains them.
//
// critest pulls images all the time, so the images it wants are made here and
// served by a registry on loopback, which the daemon has as the mirror of every
// host. All of it happens in network, mount and IPC namespaces of its own: the
// host ports, rules of iptables and shared memory that a run leaves end with it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"caisson/test/apart"
	"caisson/test/daemon"
	"caisson/test/registry"
)

type options struct {
	critest, busybox, webserver, out string
	engine, handler, focus, skip     string
	limit                            time.Duration
}

func main() {
	var o options
	flag.StringVar(&o.critest, "critest", "", "critest's binary (required)")
	flag.StringVar(&o.busybox, "busybox", "build/cri/busybox", "what the images consist of")
	flag.StringVar(&o.webserver, "webserver", "build/cri/webserver", "stands in for nginx and httpd")
	flag.StringVar(&o.out, "out", "build/cri", "where the logs and the report go")
	flag.StringVar(&o.engine, "engine", daemon.EngineEmbedded, "stock for an unmodified containerd beside caissond")
	flag.StringVar(&o.handler, "handler", "caisson", "CRI's name of the runtime; runc for the reference, which wants containerd-shim-runc-v2 in PATH")
	flag.StringVar(&o.focus, "focus", "", "run only specs that match this regular expression")
	flag.StringVar(&o.skip, "skip", "", "leave out specs that match this regular expression")
	flag.DurationVar(&o.limit, "limit", 15*time.Minute, "how long critest may take")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := start(ctx, o); err != nil {
		stop()
		fmt.Fprintln(os.Stderr, "test-cri: FAILED:", err)
		os.Exit(1)
	}
}

func start(ctx context.Context, o options) error {
	if o.critest == "" {
		return errors.New("say where critest is: -critest PATH")
	}
	if os.Getuid() != 0 {
		return errors.New("it needs root, for namespaces, mounts and cgroups")
	}
	if inside, err := apart.Run(ctx); !inside {
		return err
	}
	return run(ctx, o)
}

// config is containerd's. The handler caisson needs no pause image, runc does.
const config = `[plugins.'io.containerd.cri.v1.images'.registry]
config_path = %q
[plugins.'io.containerd.cri.v1.images'.pinned_images]
sandbox = %q
`

func run(ctx context.Context, o options) (err error) {
	r := registry.New()
	busybox, err := filepath.Abs(o.busybox) // a bare name would be looked for in PATH
	if err != nil {
		return err
	}
	sum, err := fill(r, busybox, o.webserver)
	if err != nil {
		return err
	}
	mirrors, err := os.MkdirTemp("", "mirrors")
	if err != nil {
		return err
	}
	defer os.RemoveAll(mirrors)
	stop, err := r.Serve(mirrors)
	if err != nil {
		return err
	}
	defer stop()
	before, err := cgroups()
	if err != nil {
		return err
	}
	d, err := daemon.New(daemon.Options{
		Engine: o.engine, NRI: true, HostPorts: true, EngineConfig: fmt.Sprintf(config, mirrors, pauseImage),
	})
	if err != nil {
		return err
	}
	err = conform(ctx, d, o, sum.String())
	// Interrupted or not, the machine gets back what it gave.
	left, closeErr := d.Close(context.WithoutCancel(ctx))
	found, cgroupErr := before.removeNew()
	if left = append(left, found...); len(left) > 0 {
		closeErr = errors.Join(closeErr, fmt.Errorf("left behind:\n  %s", strings.Join(left, "\n  ")))
	}
	return errors.Join(err, closeErr, cgroupErr)
}

// conform runs critest against the daemon, and keeps its log and the daemon's.
func conform(ctx context.Context, d *daemon.Daemon, o options, sum string) (err error) {
	if err := os.MkdirAll(o.out, 0o755); err != nil {
		return err
	}
	tmp := filepath.Join(d.Dir, "tmp")
	if err := os.Mkdir(tmp, 0o755); err != nil {
		return err
	}
	binary, err := withDigest(o.critest, filepath.Join(tmp, "critest"), sum)
	if err != nil {
		return err
	}
	if err := d.Start(ctx); err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, copyFile(d.LogFile, filepath.Join(o.out, "caissond.log")))
		if d.Stock() {
			err = errors.Join(err, copyFile(filepath.Join(d.Dir, "containerd.log"), filepath.Join(o.out, "containerd.log")))
		}
	}()

	report, err := filepath.Abs(filepath.Join(o.out, "report.json"))
	if err != nil {
		return err
	}
	log, err := os.Create(filepath.Join(o.out, "critest.log"))
	if err != nil {
		return err
	}
	defer log.Close()
	ctx, cancel := context.WithTimeout(ctx, o.limit)
	defer cancel()
	args := []string{
		"-runtime-endpoint", "unix://" + d.Address, "-image-endpoint", "unix://" + d.Address,
		"-runtime-handler", o.handler, "-nri-socket", filepath.Join(d.State, "nri.sock"),
		"-ginkgo.no-color", "-ginkgo.json-report", report,
	}
	for name, value := range map[string]string{"-ginkgo.focus": o.focus, "-ginkgo.skip": o.skip} {
		if value != "" {
			args = append(args, name, value)
		}
	}
	cmd := exec.CommandContext(ctx, binary, args...)
	cmd.Dir = tmp
	cmd.Env = append(os.Environ(), "TMPDIR="+tmp)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = time.Minute
	fmt.Printf("test-cri: critest runs, its log is %s\n", log.Name())
	runErr := cmd.Run()
	if err := printReport(os.Stdout, report); err != nil {
		return errors.Join(runErr, err)
	}
	if runErr != nil {
		return fmt.Errorf("critest: %w", runErr)
	}
	return nil
}
