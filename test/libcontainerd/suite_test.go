package libcontainerd

import (
	"context"
	"errors"
	"os"
	"sync"
	"testing"
	"time"

	"caisson/test/apart"
	"caisson/test/daemon"
	"caisson/test/harness"
)

// place is a server, and what runs a container there.
type place struct {
	Name    string
	engine  string // of the daemon
	runtime string
	sandbox bool // containers are put into one
}

const runcRuntime = "io.containerd.runc.v2"

var places = []place{
	{Name: "embedded", engine: daemon.EngineEmbedded, runtime: harness.Runtime},
	{Name: "embedded, in a sandbox", engine: daemon.EngineEmbedded, runtime: harness.Runtime, sandbox: true},
	{Name: "runc", engine: daemon.EngineStock, runtime: runcRuntime},
	{Name: "stock", engine: daemon.EngineStock, runtime: harness.Runtime},
	{Name: "stock, in a sandbox", engine: daemon.EngineStock, runtime: harness.Runtime, sandbox: true},
}

// caisson says whether the place has the sandboxer of Caisson.
func (p place) caisson() bool { return p.runtime == harness.Runtime }

// server is a place, as one spec uses it.
type server struct {
	*harness.Host
	place
	t *testing.T
}

// shared are the daemons that specs share, by engine. One is started when a spec
// first needs it.
var shared struct {
	mu      sync.Mutex
	started map[string]*daemon.Daemon
}

// each runs a spec at every place, side by side with other specs.
func each(t *testing.T, spec func(t *testing.T, s *server)) {
	t.Helper()
	t.Parallel()
	for _, p := range places {
		t.Run(p.Name, func(t *testing.T) {
			t.Parallel()
			spec(t, p.use(t))
		})
	}
}

// eachAlone is for specs that restart the server.
func eachAlone(t *testing.T, spec func(t *testing.T, s *server)) {
	t.Helper()
	for _, p := range places {
		t.Run(p.Name, func(t *testing.T) { spec(t, p.use(t)) })
	}
}

func (p place) use(t *testing.T) *server {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	shared.mu.Lock()
	defer shared.mu.Unlock()
	d := shared.started[p.engine]
	if d == nil {
		d = start(t, p.engine)
	}
	return &server{Host: harness.Share(t, d), place: p, t: t}
}

// start starts a daemon that lives until all specs are over. shared.mu is held.
func start(t *testing.T, engine string) *daemon.Daemon {
	t.Helper()
	d, err := daemon.New(daemon.Options{Engine: engine})
	if err != nil {
		t.Fatal(err)
	}
	h := harness.Share(t, d)
	if shared.started == nil {
		shared.started = map[string]*daemon.Daemon{}
	}
	shared.started[engine] = d
	h.StartDaemon()
	h.Import("", harness.Image)
	return d
}

// kill ends the server that the client talks to, as a crash does.
func (s *server) kill() error {
	if s.Stock() {
		return s.KillContainerd()
	}
	return s.Kill()
}

// term ends it gently.
func (s *server) term() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if s.Stock() {
		return s.StopContainerd(ctx)
	}
	return s.Stop(ctx)
}

// again starts it again.
func (s *server) again() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if s.Stock() {
		return s.StartContainerd(ctx)
	}
	return s.Start(ctx)
}

// restarts are the ways a server ends before it is started again.
var restarts = []struct {
	name string
	end  func(*server) error
}{
	{"TERM", (*server).term},
	{"KILL", (*server).kill},
}

func TestMain(m *testing.M) {
	apart.Main(m, func(context.Context) (func(context.Context, bool) error, error) { return endShared, nil })
}

func endShared(ctx context.Context, failed bool) error {
	shared.mu.Lock()
	defer shared.mu.Unlock()
	var errs []error
	for _, d := range shared.started {
		errs = append(errs, d.End(ctx, failed))
	}
	return errors.Join(errs...)
}
