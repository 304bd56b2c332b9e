package crisuite

import (
	"context"
	"errors"
	"fmt"
	"os"
	"testing"

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

func TestMain(m *testing.M) { apart.Main(m, begin) }

// begin starts the servers, and a registry that they pull from.
func begin(ctx context.Context) (end func(context.Context, bool) error, err error) {
	mirrors, err := os.MkdirTemp("", "mirrors")
	if err != nil {
		return nil, err
	}
	var started []*daemon.Daemon
	stop := func() error { return nil }
	end = func(ctx context.Context, failed bool) error {
		var errs []error
		for _, d := range started {
			errs = append(errs, d.End(ctx, failed))
		}
		return errors.Join(append(errs, stop(), os.RemoveAll(mirrors))...)
	}
	r := registry.New()
	if err := fill(r); err != nil {
		return end, err
	}
	closed, err := r.Serve(mirrors)
	if err != nil {
		return end, err
	}
	stop = closed
	opts = daemon.Options{HostPorts: true, EngineConfig: fmt.Sprintf(config, mirrors, pauseImage)}
	for _, engine := range []string{daemon.EngineEmbedded, daemon.EngineStock} {
		opts.Engine = engine
		d, err := daemon.New(opts)
		if err != nil {
			return end, err
		}
		started = append(started, d)
		if err := d.Start(ctx); err != nil {
			return end, err
		}
	}
	// The reference is the same containerd, with another handler.
	running = map[string]*daemon.Daemon{embedded: started[0], stock: started[1], reference: started[1]}
	return end, nil
}

// config is containerd's. The handler caisson needs no pause image, runc does.
const config = `
[plugins.'io.containerd.cri.v1.images'.registry]
config_path = %q
[plugins.'io.containerd.cri.v1.images'.pinned_images]
sandbox = %q
`
