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
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"caisson/test/daemon"
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
	if os.Getenv(insideEnv) == "" {
		return inside(ctx)
	}
	if err := loopbackUp(); err != nil {
		return err
	}
	return run(ctx, o)
}

// insideEnv marks the process that has the namespaces.
const insideEnv = "CAISSON_TEST_CRI_INSIDE"

// inside runs this program once more, in namespaces of its own.
func inside(ctx context.Context) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, self, os.Args[1:]...)
	cmd.Env = append(os.Environ(), insideEnv+"=1")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Unshareflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS | syscall.CLONE_NEWIPC,
		// Without it, nobody would clear up after a program that was killed.
		Pdeathsig: syscall.SIGTERM,
	}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 2 * time.Minute
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("in namespaces of its own: %w", err)
	}
	return nil
}

// config is containerd's. The handler caisson needs no pause image, runc does.
const config = `[plugins.'io.containerd.cri.v1.images'.registry]
config_path = %q
[plugins.'io.containerd.cri.v1.images'.pinned_images]
sandbox = %q
`

func run(ctx context.Context, o options) (err error) {
	r := newRegistry()
	busybox, err := filepath.Abs(o.busybox) // a bare name would be looked for in PATH
	if err != nil {
		return err
	}
	sum, err := fill(r, busybox, o.webserver)
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return fmt.Errorf("registry: %w", err)
	}
	server := &http.Server{Handler: r, ReadHeaderTimeout: time.Minute}
	go func() { _ = server.Serve(listener) }() // ends with Close
	defer server.Close()

	mirrors, err := os.MkdirTemp("", "mirrors")
	if err != nil {
		return err
	}
	defer os.RemoveAll(mirrors)
	if err := writeMirror(mirrors, listener.Addr().String()); err != nil {
		return err
	}
	before, err := cgroups()
	if err != nil {
		return err
	}
	opts := daemon.Options{Engine: o.engine, NRI: true, HostPorts: true}
	text := fmt.Sprintf(config, mirrors, pauseImage)
	if o.engine != daemon.EngineStock {
		opts.Config = text
	}
	d, err := daemon.New(opts)
	if err != nil {
		return err
	}
	if d.Stock() {
		err = appendFile(d.ContainerdConfig(), text)
	}
	// The root of a pod with a user namespace is another user, and must get through.
	if err = errors.Join(err, os.Chmod(d.Dir, 0o711)); err == nil {
		err = conform(ctx, d, o, sum.String())
	}
	// Interrupted or not, the machine gets back what it gave.
	left, closeErr := d.Close(context.WithoutCancel(ctx))
	found, cgroupErr := before.removeNew()
	if left = append(left, found...); len(left) > 0 {
		closeErr = errors.Join(closeErr, fmt.Errorf("left behind:\n  %s", strings.Join(left, "\n  ")))
	}
	return errors.Join(err, closeErr, cgroupErr)
}

// writeMirror makes the registry the mirror of every host and the host itself.
func writeMirror(dir, address string) error {
	if err := os.Mkdir(filepath.Join(dir, "_default"), 0o755); err != nil {
		return err
	}
	text := fmt.Sprintf("server = \"http://%[1]s\"\n[host.\"http://%[1]s\"]\ncapabilities = [\"pull\", \"resolve\"]\n", address)
	return os.WriteFile(filepath.Join(dir, "_default", "hosts.toml"), []byte(text), 0o644)
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
