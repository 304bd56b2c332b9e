package crisuite

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"testing"
	"time"

	"caisson/test/apart"
	"caisson/test/daemon"
	"caisson/test/harness"
	"caisson/test/registry"
)

// The names of the servers, and of their subtests.
const (
	embedded  = "embedded"
	stock     = "stock"
	reference = "reference"
)

// server is one of the three, as one spec uses it.
type server struct {
	*harness.CRI
	Host *harness.Host
	Name string
	t    *testing.T
}

// running are the daemons of the servers, by name.
var running map[string]*daemon.Daemon

// opts are those of the daemons, but for the engine.
var opts daemon.Options

// each runs a spec on every server, side by side with other specs.
func each(t *testing.T, spec func(t *testing.T, s *server)) {
	t.Helper()
	t.Parallel()
	eachAlone(t, func(t *testing.T, s *server) {
		t.Parallel()
		spec(t, s)
	})
}

// eachAlone is for specs that others would disturb: nothing runs beside them
// but what they start.
func eachAlone(t *testing.T, spec func(t *testing.T, s *server)) {
	t.Helper()
	if running == nil {
		t.Skip("needs root")
	}
	for _, name := range []string{embedded, stock, reference} {
		t.Run(name, func(t *testing.T) {
			spec(t, use(t, name))
		})
	}
}

// use is a running server for a test.
func use(t *testing.T, name string) *server {
	s := &server{Host: harness.Share(t, running[name]), Name: name, t: t}
	handler := harness.Handler
	if name == reference {
		handler = "runc"
	}
	s.CRI = s.Host.ConnectCRI(handler)
	return s
}

// lacks ends a spec that this host cannot serve, and says why.
func (s *server) lacks(format string, args ...any) {
	s.t.Helper()
	s.t.Skipf("left out: "+format, args...)
}

// shared ends a spec that every server fails, the reference included, for a
// reason that is none of Caisson's. A nil error says that it works by now: then
// the reason is wrong and the test fails.
func (s *server) shared(err error, reason string) {
	s.t.Helper()
	if err == nil {
		s.t.Fatalf("it works, although %s", reason)
	}
	s.t.Skipf("left out: %s: %v", reason, err)
}

func TestMain(m *testing.M) {
	flag.Parse()
	if os.Getuid() != 0 || flag.Lookup("test.list").Value.String() != "" {
		os.Exit(m.Run())
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code, err := run(ctx, m)
	stop()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		code = exit.ExitCode()
	} else if err != nil {
		fmt.Fprintln(os.Stderr, "crisuite: FAILED:", err)
		code = max(code, 1)
	}
	os.Exit(code)
}

func run(ctx context.Context, m *testing.M) (code int, err error) {
	if inside, err := apart.Run(ctx); !inside || err != nil {
		return 0, err
	}
	mirrors, err := os.MkdirTemp("", "mirrors")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(mirrors)
	r := registry.New()
	if err := fill(r); err != nil {
		return 0, err
	}
	stop, err := r.Serve(mirrors)
	if err != nil {
		return 0, err
	}
	defer stop()

	opts = daemon.Options{HostPorts: true, EngineConfig: fmt.Sprintf(config, mirrors, pauseImage)}
	var started []*daemon.Daemon
	for _, engine := range []string{daemon.EngineEmbedded, daemon.EngineStock} {
		opts.Engine = engine
		d, startErr := daemon.New(opts)
		if startErr == nil {
			started = append(started, d)
			startErr = d.Start(ctx)
		}
		err = errors.Join(err, startErr)
	}
	if err == nil {
		// The reference is the same containerd, with another handler.
		running = map[string]*daemon.Daemon{embedded: started[0], stock: started[1], reference: started[1]}
		ended := make(chan int, 1)
		go func() { ended <- m.Run() }()
		select {
		case code = <-ended:
		case <-ctx.Done():
			err = ctx.Err() // the specs fail with their servers
		}
	}
	for _, d := range started {
		err = errors.Join(err, end(context.WithoutCancel(ctx), d, code != 0))
	}
	return code, err
}

// end stops a server and says what it left, and after a failure what it logged.
func end(ctx context.Context, d *daemon.Daemon, failed bool) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	if failed && os.Getenv("CAISSON_TEST_LOGS") != "" {
		fmt.Printf("log of caissond:\n%s\nlog of containerd:\n%s\n", d.LogTail(1<<20), d.ContainerdLogTail(1<<20))
	}
	left, err := d.Close(ctx)
	if len(left) > 0 {
		err = errors.Join(err, fmt.Errorf("left behind:\n  %s", strings.Join(left, "\n  ")))
	}
	return err
}

// config is containerd's. The handler caisson needs no pause image, runc does.
const config = `
[plugins.'io.containerd.cri.v1.images'.registry]
config_path = %q
[plugins.'io.containerd.cri.v1.images'.pinned_images]
sandbox = %q
`
