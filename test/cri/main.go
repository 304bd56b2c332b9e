// Command cri runs critest, the conformance suite of the Kubernetes container
// runtime interface, against caissond. `make test-cri CRITEST=path` is the way
// in; docs/conformance.md has the results and explains them.
//
// critest pulls images all the time, so the images it wants are made here and
// served by a registry on loopback, which the daemon has as the mirror of every
// host. All of it happens in namespaces and with a /run of its own.
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
	critest, busybox, webserver, out, reference string
	engine, handler, focus, skip                string
	shim                                        bool
	limit                                       time.Duration
}

// engineShim is a stock containerd that knows Caisson by its shim binary only:
// the handler's pods are containerd's own, and nobody but the shim binary starts
// caissond.
const (
	engineShim  = "shim"
	shimHandler = "caisson-shim" // test/daemon configures it
)

func main() {
	var o options
	flag.StringVar(&o.critest, "critest", "", "critest's binary (required)")
	flag.StringVar(&o.busybox, "busybox", "build/cri/busybox", "what the images consist of")
	flag.StringVar(&o.webserver, "webserver", "build/cri/webserver", "stands in for nginx and httpd")
	flag.StringVar(&o.out, "out", "build/cri", "where the logs and the report go")
	flag.StringVar(&o.engine, "engine", daemon.EngineEmbedded, "stock for an unmodified containerd beside caissond; shim for one that has the shim binary only")
	flag.StringVar(&o.handler, "handler", "caisson", "CRI's name of the runtime; runc for the reference, which wants containerd-shim-runc-v2 in PATH")
	flag.StringVar(&o.reference, "compare", "", "report.json of another run: fail if a spec fails that did not there, instead of if one fails")
	table := flag.Bool("table", false, "run nothing: print a table of the report.json that are the arguments")
	flag.StringVar(&o.focus, "focus", "", "run only specs that match this regular expression")
	flag.StringVar(&o.skip, "skip", "", "leave out specs that match this regular expression")
	flag.DurationVar(&o.limit, "limit", 15*time.Minute, "how long critest may take")
	flag.Parse()
	if *table {
		if err := printTable(os.Stdout, flag.Args()); err != nil {
			fmt.Fprintln(os.Stderr, "test-cri: FAILED:", err)
			os.Exit(1)
		}
		return
	}
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
	if o.shim = o.engine == engineShim; o.shim {
		o.engine, o.handler = daemon.EngineStock, shimHandler
	}
	if os.Getuid() != 0 {
		return errors.New("it needs root, for namespaces, mounts and cgroups")
	}
	if inside, err := apart.Run(ctx); !inside || err != nil {
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

// conform starts the daemon, runs critest against it, and keeps the logs.
func conform(ctx context.Context, d *daemon.Daemon, o options, sum string) (err error) {
	if err := os.MkdirAll(o.out, 0o755); err != nil {
		return err
	}
	logs, begin := []string{d.LogFile}, d.Start
	if d.Stock() {
		logs = append(logs, filepath.Join(d.Dir, "containerd.log"))
	}
	if o.shim {
		logs[0], begin = filepath.Join(d.State, "caissond.log"), d.StartContainerd
	}
	if err := begin(ctx); err != nil {
		return err
	}
	defer func() {
		for i, name := range []string{"caissond.log", "containerd.log"}[:len(logs)] {
			err = errors.Join(err, copyFile(logs[i], filepath.Join(o.out, name)))
		}
	}()
	ctx, cancel := context.WithTimeout(ctx, o.limit)
	defer cancel()
	suites, runErr := critest(ctx, d, o, sum)
	if len(suites) == 0 {
		return errors.Join(runErr, errors.New("critest reports nothing"))
	}
	printReport(os.Stdout, suites)
	if o.reference == "" || ctx.Err() != nil {
		return runErr
	}
	reference, err := readReport(o.reference)
	if err != nil {
		return err
	}
	return compare(os.Stdout, reference, suites, o.focus+o.skip != "")
}

// critest runs it and returns its report. The error is nil if all specs passed.
func critest(ctx context.Context, d *daemon.Daemon, o options, sum string) ([]suite, error) {
	tmp := filepath.Join(d.Dir, "tmp")
	if err := os.Mkdir(tmp, 0o755); err != nil {
		return nil, err
	}
	binary, err := withDigest(o.critest, filepath.Join(tmp, "critest"), sum)
	if err != nil {
		return nil, err
	}
	report, err := filepath.Abs(filepath.Join(o.out, "report.json"))
	if err != nil {
		return nil, err
	}
	if err := os.Remove(report); err != nil && !errors.Is(err, os.ErrNotExist) { // that of an earlier run
		return nil, err
	}
	log, err := os.Create(filepath.Join(o.out, "critest.log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
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
	if runErr != nil {
		runErr = fmt.Errorf("critest: %w", runErr)
	}
	suites, err := readReport(report)
	return suites, errors.Join(runErr, err)
}
