package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/pprof"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/containerd/log"
	"golang.org/x/net/netutil"

	"caisson/internal/config"
	"caisson/internal/metrics"
	"caisson/internal/service"
	"caisson/internal/undo"
	"caisson/internal/version"
	"caisson/sandbox"
)

// debugSocket serves root all there is to see of the daemon. It is there without
// being asked for: a daemon that hangs is not helped by a setting that wants a restart.
const debugSocket = "debug.sock"

const (
	// maxTCP is how many may be connected to the telemetry address.
	maxTCP = 32
	// tcpLimit is how long one may take there to ask, and to take an answer.
	tcpLimit = 30 * time.Second
)

// view is the daemon as an operator sees it.
type view struct {
	cfg     config.Config
	began   time.Time
	metrics *metrics.Metrics
	dumping chan struct{} // a semaphore of one

	ready     atomic.Bool
	sandboxes atomic.Pointer[sandbox.Controller] // nil until they can be asked for
}

func newView(cfg config.Config) *view {
	return &view{
		cfg: cfg, began: time.Now(), dumping: make(chan struct{}, 1),
		metrics: metrics.New(version.String(), string(cfg.Engine)),
	}
}

// serve opens the debug socket before anything is taken over, so that a start that
// hangs can be looked at, too; and the TCP address, if there is to be one.
func (v *view) serve(ctx context.Context, steps *undo.Stack) error {
	l, err := service.Listen(filepath.Join(v.cfg.State, debugSocket))
	if err != nil {
		return err
	}
	mux := v.public()
	mux.HandleFunc("/debug/pprof/", pprof.Index) // and each profile by its name
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	mux.HandleFunc("GET /debug/dump", v.serveDump)
	serveHTTP(ctx, steps, "debug socket", l, &http.Server{Handler: mux})

	address := v.cfg.Telemetry.Address
	if address == "" {
		return nil
	}
	if l, err = new(net.ListenConfig).Listen(ctx, "tcp", address); err != nil {
		return fmt.Errorf("telemetry.address %s: %w", address, err)
	}
	if tcp, ok := l.Addr().(*net.TCPAddr); ok && !tcp.IP.IsLoopback() {
		log.G(ctx).WithField("address", address).Warn("metrics are served to everybody who reaches this address, without encryption")
	}
	// Anybody may come here: not with all the descriptors that sandboxes need.
	l = netutil.LimitListener(l, maxTCP)
	serveHTTP(ctx, steps, "telemetry", l, &http.Server{Handler: v.public(), ReadTimeout: tcpLimit, WriteTimeout: tcpLimit})
	return nil
}

// public is what holds no secret and costs little.
func (v *view) public() *http.ServeMux {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", v.metrics.Handler())
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "ok\n") // who asks may have gone
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if !v.ready.Load() {
			http.Error(w, "not ready: caissond starts or stops", http.StatusServiceUnavailable)
			return
		}
		_, _ = io.WriteString(w, "ok\n") // likewise
	})
	return mux
}

// serveHTTP serves on l, which is its own from now on, until the steps are undone.
func serveHTTP(ctx context.Context, steps *undo.Stack, what string, l net.Listener, srv *http.Server) {
	srv.ReadHeaderTimeout, srv.IdleTimeout = 10*time.Second, time.Minute
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			log.G(ctx).WithError(err).WithField("socket", l.Addr().String()).Error(what + " is not served any more")
		}
	}()
	steps.Add(what, func(context.Context) error {
		err := srv.Close()
		<-done
		return err
	})
}

// watch tells the metrics what the parts count.
func (v *view) watch(p *parts) {
	v.sandboxes.Store(p.sandboxes)
	v.metrics.Watch(metrics.Sources{
		Sandboxes: func() map[string]int {
			states := map[string]int{}
			for state, n := range p.sandboxes.States() {
				states[string(state)] = n
			}
			return states
		},
		Deaths: func() map[string]uint64 {
			monitors, holders := p.sandboxes.Deaths()
			deaths := map[string]uint64{"monitor": monitors + p.pool.Counts().Died, "holder": holders, "keeper": 0}
			if p.keeper != nil {
				deaths["keeper"] = p.keeper.Deaths()
			}
			return deaths
		},
		EventsQueued: p.journal.Unsent,
		Pool: func() metrics.Pool {
			c := p.pool.Counts()
			return metrics.Pool{Size: c.Size, Waiting: c.Waiting, Taken: c.Taken, Missed: c.Missed}
		},
	})
}
