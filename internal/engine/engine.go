// Package engine runs containerd's core (content, images, snapshots, leases,
// events, CRI) inside this process, with the sandboxer as one of its plugins.
//
// It finds its tasks through the sandboxes' task sockets just as a stock containerd does,
// so these must be served before Start is called. The engine owns <Root>/containerd,
// <State>/containerd and its two sockets, and nothing else.
//
// containerd registers its plugins in process-wide tables, when its packages
// are initialised and again when a server is made; therefore this is the only
// package that imports them, and a process can start one engine in its life.
package engine

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/containerd/api/types"
	_ "github.com/containerd/containerd/v2/cmd/containerd/builtins" // containerd's plugins
	"github.com/containerd/containerd/v2/cmd/containerd/server"
	srvconfig "github.com/containerd/containerd/v2/cmd/containerd/server/config"
	"github.com/containerd/containerd/v2/core/events"
	"github.com/containerd/containerd/v2/core/events/exchange"
	_ "github.com/containerd/containerd/v2/core/metrics" // containerd's build information, as a metric
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/containerd/v2/version"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
)

// Sandboxer is the name of the plugin, and of the CRI runtime handler.
const Sandboxer = "caisson"

// RuntimeType is the runtime of the handler; containerd finds the binary
// containerd-shim-caisson-v2 by it, in PATH or beside this executable.
const RuntimeType = "io.containerd.caisson.v2"

// ShimSocketEnv tells the shim binary where this daemon listens for it.
const ShimSocketEnv = "CAISSON_SHIM_SOCKET"

// Config is what an engine needs. All fields but Tasks, Passthrough and the CNI ones
// are required; paths are absolute.
type Config struct {
	Root    string // the daemon's; the engine keeps to <Root>/containerd
	State   string // the daemon's; the engine keeps to <State>/containerd
	Address string // gRPC and CRI are served here, ttrpc at <Address>.ttrpc

	Sandboxes  sandbox.Controller // the sandboxer
	Tasks      Tasks              // the shorter way to tasks, if there is one
	ShimSocket string             // where the shim binary reaches the daemon

	CNIConfDir string
	CNIBinDirs []string

	SystemdCgroup bool // systemd makes the cgroups of containers; kubelet is told

	// Passthrough is the user's own configuration of containerd, by top-level
	// keys; it wins over what the engine would choose, except for the paths above.
	Passthrough map[string]any
}

// Engine is a running containerd core.
type Engine struct {
	srv    *server.Server
	events *exchange.Exchange
	cancel context.CancelFunc

	stop    sync.Once
	stopped atomic.Bool // or about to be
	done    chan struct{}
}

// started guards containerd's process-wide tables.
var started atomic.Bool

// Version is that of the containerd in this program.
func Version() string { return version.Version }

// Start brings the engine up and returns when gRPC, ttrpc and CRI answer. ctx
// bounds the start only; a running engine ends with Stop. After an error the
// process should exit: what was set up cannot be taken down again.
func Start(ctx context.Context, cfg Config) (*Engine, error) {
	if !started.CompareAndSwap(false, true) {
		return nil, fmt.Errorf("engine: this process has started one already: %w", errdefs.ErrFailedPrecondition)
	}
	begin := time.Now()
	scfg, err := serverConfig(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("engine: %w", err)
	}
	if err := prepare(ctx, scfg, cfg); err != nil {
		return nil, fmt.Errorf("engine: %w", err)
	}
	// Plugins keep the context for as long as they live.
	ectx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	e := &Engine{cancel: cancel, done: make(chan struct{})}
	_, taken := scfg.ProxyPlugins[Sandboxer]
	if err := e.addPlugins(cfg, taken); err != nil {
		cancel()
		return nil, fmt.Errorf("engine: %w", err)
	}
	if e.srv, err = newServer(ctx, ectx, scfg); err != nil {
		cancel()
		return nil, fmt.Errorf("engine: %w", err)
	}
	if e.events == nil {
		e.Stop()
		return nil, fmt.Errorf("engine: containerd's configuration disables the exchange of events: %w", errdefs.ErrInvalidArgument)
	}
	// containerd's plugin "opt" puts its directory before a list that may be
	// empty; the empty entry behind it would make every child of this process
	// load libraries from its working directory.
	if libs := os.Getenv("LD_LIBRARY_PATH"); strings.HasSuffix(libs, ":") {
		if err := os.Setenv("LD_LIBRARY_PATH", strings.TrimRight(libs, ":")); err != nil {
			e.Stop()
			return nil, fmt.Errorf("engine: environment: %w", err)
		}
	}
	if err := e.srv.Start(ectx); err != nil {
		e.Stop()
		return nil, fmt.Errorf("engine: serve: %w", err)
	}
	if err := closeToGroup(scfg); err != nil {
		e.Stop()
		return nil, fmt.Errorf("engine: %w", err)
	}
	if err := e.ready(ctx, cfg.Address); err != nil {
		e.Stop()
		return nil, fmt.Errorf("engine: %w", err)
	}
	log.G(ctx).WithFields(log.Fields{"address": cfg.Address, "took": time.Since(begin).Round(time.Millisecond)}).Info("engine serves")
	return e, nil
}

// closeToGroup takes the engine's sockets from the group that containerd opens them to,
// unless that is not root's: somebody has chosen it then.
func closeToGroup(scfg *srvconfig.Config) error {
	for _, id := range []string{pluginGRPC, pluginTTRPC} {
		own, _ := scfg.Plugins[id].(table)
		address, _ := own["address"].(string)
		if gid, chosen := own["gid"]; chosen && fmt.Sprint(gid) != "0" {
			continue
		}
		if err := os.Chmod(address, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// prepare makes the directories and sets what is the process's: the location
// of temporary mounts, which it clears of those of an earlier life, and the
// environment the shim binary is started with.
func prepare(ctx context.Context, scfg *srvconfig.Config, cfg Config) error {
	if err := server.CreateTopLevelDirectories(scfg); err != nil {
		return fmt.Errorf("directories: %w", err)
	}
	if err := mount.SetTempMountLocation(filepath.Join(scfg.Root, "tmpmounts")); err != nil {
		return fmt.Errorf("temporary mounts: %w", err)
	}
	warnings, err := mount.CleanupTempMounts(0)
	if err != nil {
		log.G(ctx).WithError(err).Warn("left-over temporary mounts could not be listed")
	}
	for _, w := range warnings {
		log.G(ctx).WithError(w).Warn("a left-over temporary mount could not be removed")
	}
	// The shim manager has a setting for this, but it holds for the verb start
	// alone; for -info and delete the binary gets the process's environment.
	if err := os.Setenv(ShimSocketEnv, cfg.ShimSocket); err != nil {
		return fmt.Errorf("environment: %w", err)
	}
	return nil
}

// newServer loads the plugins. They open databases, which block for as long as
// another process has them open: then ctx ends the wait, and the goroutine
// stays behind in a process that is about to exit.
func newServer(ctx, ectx context.Context, scfg *srvconfig.Config) (*server.Server, error) {
	type result struct {
		srv *server.Server
		err error
	}
	made := make(chan result, 1)
	go func() {
		srv, err := server.New(ectx, scfg)
		made <- result{srv, err}
	}()
	select {
	case r := <-made:
		if r.err != nil {
			return nil, fmt.Errorf("load plugins: %w", r.err)
		}
		return r.srv, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("load plugins: %w", context.Cause(ctx))
	}
}

// Forward hands an event to all who follow containerd's. Once the engine was told to
// stop it is refused as unavailable, and can be given to the next.
func (e *Engine) Forward(ctx context.Context, envelope *types.Envelope) error {
	if e.stopped.Load() {
		return fmt.Errorf("the engine stops: %w", errdefs.ErrUnavailable)
	}
	err := e.events.Forward(ctx, &events.Envelope{
		Timestamp: envelope.GetTimestamp().AsTime(),
		Namespace: envelope.GetNamespace(),
		Topic:     envelope.GetTopic(),
		Event:     envelope.GetEvent(),
	})
	if err != nil {
		return fmt.Errorf("forward an event: %w", err)
	}
	return nil
}

// Stop ends the engine: connections are closed, running containers are not
// touched. It is safe to call again.
func (e *Engine) Stop() {
	e.stop.Do(func() {
		e.stopped.Store(true)
		e.cancel()
		if e.srv != nil {
			e.srv.Stop()
		}
		close(e.done)
	})
	<-e.done
}

// Done is closed when the engine has stopped.
func (e *Engine) Done() <-chan struct{} { return e.done }
