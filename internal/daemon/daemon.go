// Package daemon is caissond: it puts the parts together, in order, and takes
// them apart again.
//
// The order of a start is the order in which things depend on each other: the
// directories and their locks; the sandboxes that an earlier daemon left, which
// are taken over before anything is served; the sandboxer's sockets; the engine,
// which finds its tasks again through them. A stop leaves every sandbox running.
// A daemon that is killed instead leaves nothing that the next start minds.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	sd "github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/grpclog"

	"caisson/internal/config"
	"caisson/internal/engine"
	"caisson/internal/keeper"
	"caisson/internal/otlp"
	"caisson/internal/service"
	"caisson/internal/subject"
	"caisson/internal/undo"
	"caisson/internal/version"
)

// The sockets in the state directory.
const (
	sandboxerSocket = "sandboxer.sock"
	ttrpcSuffix     = ".ttrpc"
	shimSocket      = "shim.sock"
)

// Run is the life of a daemon: it returns nil after ctx has ended and everything
// is stopped, or the error that kept it from starting or made it end. cfg is
// complete. The log's settings, the umask and the handling of SIGPIPE are the
// process's and stay as Run sets them.
func Run(ctx context.Context, cfg config.Config) (err error) {
	if err := setUpProcess(cfg.Log); err != nil {
		return err
	}
	var steps undo.Stack
	defer func() {
		// To be told to stop is no failure, while it starts neither.
		if ctx.Err() != nil && (errors.Is(err, ctx.Err()) || errors.Is(err, context.Cause(ctx))) {
			log.G(ctx).WithError(err).Info("caissond stops before it was ready")
			err = nil
		}
		if serr := steps.Run(ctx); serr != nil {
			err = errors.Join(err, fmt.Errorf("stop: %w", serr))
		}
	}()
	if err := takeDirectories(&steps, cfg); err != nil {
		return err
	}
	log.G(ctx).WithFields(log.Fields{
		"version": version.String(), "root": cfg.Root, "state": cfg.State, "engine": string(cfg.Engine), "config": cfg.File,
	}).Info("caissond starts")

	spans, err := otlp.Open(ctx, version.String())
	if err != nil {
		return err
	}
	steps.Add("spans", spans.Close)
	view := newView(cfg)
	dumpOnSignal(ctx, &steps, cfg.State)
	if err := view.serve(ctx, &steps); err != nil {
		return err
	}
	observe := service.Observe{Calls: view.metrics, Traces: spans != nil}
	parts, err := wire(ctx, &steps, cfg, observe)
	if err != nil {
		return err
	}
	view.watch(parts)
	failed, err := serve(ctx, &steps, cfg, parts, observe)
	if err != nil {
		return err
	}
	if cfg.Engine == config.EngineEmbedded {
		if err := startEngine(ctx, &steps, cfg, parts, observe); err != nil {
			return err
		}
	}
	if err := startWatchdog(ctx, &steps, cfg); err != nil {
		return err
	}
	view.ready.Store(true)
	notify(ctx, sd.SdNotifyReady)
	log.G(ctx).WithField("address", listensAt(cfg)).Info("caissond is ready")

	select {
	case <-ctx.Done():
		log.G(ctx).Info("caissond stops; sandboxes go on running")
	case err = <-failed:
	}
	view.ready.Store(false)
	notify(ctx, sd.SdNotifyStopping)
	return err
}

// setUpProcess sets what a process has once.
func setUpProcess(cfg config.Log) error {
	if err := log.SetLevel(cfg.Level); err != nil {
		return fmt.Errorf("log: %v: %w", err, errdefs.ErrInvalidArgument)
	}
	if err := log.SetFormat(log.OutputFormat(cfg.Format)); err != nil {
		return fmt.Errorf("log: %v: %w", err, errdefs.ErrInvalidArgument)
	}
	setUpOnce()
	return nil
}

// setUpOnce is the part of setUpProcess that must not be done while something
// runs already, as in a test with several daemons.
var setUpOnce = sync.OnceFunc(func() {
	log.L.Logger.AddHook(subject.LogHook{})
	// gRPC's own log repeats, without context, what its callers report.
	grpclog.SetLoggerV2(grpclog.NewLoggerV2(io.Discard, io.Discard, io.Discard))
	// What is made must not depend on who starts the daemon.
	unix.Umask(0o022)
	// A log that nobody reads any more must not end the daemon. Ignoring the
	// signal would be inherited by all it starts; an unread channel is not.
	signal.Notify(make(chan os.Signal, 1), unix.SIGPIPE)
})

// serve opens the sandboxer's sockets. The channel gets the error of a server
// that ends by itself.
func serve(ctx context.Context, steps *undo.Stack, cfg config.Config, p *parts, observe service.Observe) (failed <-chan error, err error) {
	var listeners [3]net.Listener
	for i, name := range []string{sandboxerSocket, sandboxerSocket + ttrpcSuffix, shimSocket} {
		if listeners[i], err = listen(ctx, p.keeper, filepath.Join(cfg.State, name)); err != nil {
			for _, l := range listeners[:i] {
				err = errors.Join(err, l.Close())
			}
			return nil, err
		}
	}
	sctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	group, gctx := errgroup.WithContext(sctx)
	group.Go(func() error { return service.ServeGRPC(gctx, listeners[0], p.sandboxes, p.store, observe) })
	group.Go(func() error { return service.ServeTTRPC(gctx, listeners[1], p.sandboxes, observe) })
	group.Go(func() error { return service.ServeShim(gctx, listeners[2], p.shim, version.String(), observe) })

	ended := make(chan error, 1)
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := group.Wait(); err != nil {
			ended <- err
		}
	}()
	steps.Add("servers", func(context.Context) error {
		cancel()
		<-done
		return nil
	})
	return ended, nil
}

// listen opens one of the sockets. The shim binary finds out by itself that no
// daemon is there, and does something about it, so its socket ends with the daemon.
func listen(ctx context.Context, k *keeper.Keeper, path string) (net.Listener, error) {
	switch name := filepath.Base(path); {
	case k == nil || name == shimSocket:
		return service.Listen(path)
	case name == sandboxerSocket:
		return service.ListenKeptGRPC(ctx, k, path)
	default:
		return service.ListenKept(ctx, k, path)
	}
}

// startLimit is how long the engine may take: it asks every task it knew of.
const startLimit = 5 * time.Minute

func startEngine(ctx context.Context, steps *undo.Stack, cfg config.Config, p *parts, observe service.Observe) error {
	sctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	e, err := engine.Start(sctx, engine.Config{
		Root: cfg.Root, State: cfg.State, Address: cfg.Address,
		Sandboxes:     service.Local(p.sandboxes, observe),
		Tasks:         p.endpoints,
		ShimSocket:    filepath.Join(cfg.State, shimSocket),
		CNIConfDir:    cfg.Network.CNIConfDir,
		CNIBinDirs:    cfg.Network.CNIBinDirs,
		SystemdCgroup: cfg.Runtime.SystemdCgroup,
		Passthrough:   cfg.Passthrough,
	})
	if err != nil {
		return err
	}
	p.forwarder.engine.Store(e)
	steps.Add("engine", func(context.Context) error {
		e.Stop()
		return nil
	})
	return nil
}

// listensAt is the socket a client of this daemon uses.
func listensAt(cfg config.Config) string {
	if cfg.Engine == config.EngineEmbedded {
		return cfg.Address
	}
	return filepath.Join(cfg.State, sandboxerSocket)
}

// notify tells systemd, if it started the daemon and asked for it.
func notify(ctx context.Context, state string) {
	if _, err := sd.SdNotify(false, state); err != nil {
		log.G(ctx).WithError(err).Warn("systemd was not notified")
	}
}
