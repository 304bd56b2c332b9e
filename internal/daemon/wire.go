package daemon

import (
	"context"
	"fmt"
	"path/filepath"
	"time"

	"github.com/containerd/containerd/api/types"
	core "github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/log"
	"google.golang.org/protobuf/types/known/anypb"

	"caisson/internal/cgroup"
	"caisson/internal/config"
	"caisson/internal/events"
	"caisson/internal/isolation/namespace"
	"caisson/internal/keeper"
	"caisson/internal/monitor"
	"caisson/internal/network"
	"caisson/internal/service"
	"caisson/internal/undo"
	"caisson/sandbox"
)

// criPatience is how long CRI in a containerd beside the daemon may take to go on
// with a sandbox that it was about to run. It finds a new daemon within seconds.
const criPatience = 20 * time.Second

// parts are what the sandboxer's sockets serve, and what an operator asks.
type parts struct {
	sandboxes *sandbox.Controller
	store     core.Store
	shim      service.Shim
	endpoints *service.Endpoints // the sandboxes' own
	keeper    *keeper.Keeper     // nil: sockets end with the daemon
	pool      *namespace.Pool
	journal   *events.Journal
	forwarder *forwarder
}

// wire makes the sandboxer and lets it take over what an earlier daemon left.
// When it returns, each sandbox's own socket is served; the sandboxer's are not.
func wire(ctx context.Context, steps *undo.Stack, cfg config.Config, observe service.Observe) (*parts, error) {
	store, err := sandbox.OpenStore(filepath.Join(cfg.Root, "sandboxes.db"))
	if err != nil {
		return nil, err
	}
	steps.Add("store", func(context.Context) error { return store.Close() })

	journal, remote, err := openJournal(steps, cfg)
	if err != nil {
		return nil, err
	}
	giveBack(steps, journal.Last)
	networks, err := network.New(network.Config{
		NetNSDir:   filepath.Join(cfg.State, "netns"),
		CNIConfDir: cfg.Network.CNIConfDir,
		CNIBinDirs: cfg.Network.CNIBinDirs,
	})
	if err != nil {
		return nil, err
	}
	program, err := monitor.Install(filepath.Join(cfg.Root, "libexec"))
	if err != nil {
		return nil, err
	}
	pool, err := namespace.OpenPool(ctx, program, filepath.Join(cfg.State, "pool"), cfg.Pool.Size)
	if err != nil {
		return nil, err
	}
	steps.Add("pool", func(context.Context) error { return pool.Close() })
	kept, err := openKeeper(ctx, steps, cfg, program)
	if err != nil {
		return nil, err
	}
	var patience time.Duration
	if cfg.Engine == config.EngineNone {
		patience = criPatience
	}
	ctl := sandbox.NewController(sandbox.Config{
		Store:      store,
		Dir:        filepath.Join(cfg.State, "s"),
		Cgroup:     cfg.Runtime.CgroupParent,
		Isolations: []sandbox.NamedIsolation{{Name: namespace.Name, Isolation: namespace.New(program, pool)}},
		Network:    networks,

		DefaultNetwork: network.Mode(cfg.Network.Default),
		Events:         journal,
		Patience:       patience,
		Runtime: sandbox.RuntimeConfig{
			Name: cfg.Runtime.Default, Root: cfg.Runtime.Root, SystemdCgroup: cfg.Runtime.SystemdCgroup,
		},
	})
	// The endpoints are never closed: containerd takes a broken connection for
	// the end of a task, and the engine would see it before this process ends.
	endpoints, err := service.NewEndpoints(context.WithoutCancel(ctx), ctl, kept, observe)
	if err != nil {
		return nil, err
	}
	// Goes after the controller is closed: nobody makes a sandbox then.
	steps.Add("cgroup", func(context.Context) error { return cgroup.Prune(cfg.Runtime.CgroupParent) })
	steps.Add("controller", func(context.Context) error { return ctl.Close() })
	if kept != nil {
		steps.Add("calls", func(context.Context) error { kept.Quiesce(); return nil })
	}
	if err := ctl.Load(ctx, endpoints); err != nil {
		return nil, fmt.Errorf("take over sandboxes: %w", err)
	}
	log.G(ctx).Info("sandboxes taken over")
	if err := endpoints.ServeRest(); err != nil {
		return nil, fmt.Errorf("take over connections: %w", err)
	}
	log.G(ctx).Info("connections taken over")
	return &parts{
		sandboxes: ctl, store: store, keeper: kept, pool: pool, journal: journal, forwarder: remote, endpoints: endpoints,
		shim: shimHelper{ctl, cfg.Runtime.Default, new(runtimes), remote},
	}, nil
}

// openKeeper finds what keeps the connections of a containerd beside the daemon.
// An embedded one has no use for that: it ends with the daemon.
func openKeeper(ctx context.Context, steps *undo.Stack, cfg config.Config, program string) (*keeper.Keeper, error) {
	if cfg.Engine == config.EngineEmbedded || !cfg.Containerd.KeepConnections {
		return nil, nil
	}
	k, err := keeper.Open(ctx, keeper.Config{Binary: program, Dir: filepath.Join(cfg.State, "keeper")})
	if err != nil {
		return nil, err
	}
	steps.Add("keeper of connections", k.Close)
	return k, nil
}

// openJournal opens the list of events that are owed to containerd.
func openJournal(steps *undo.Stack, cfg config.Config) (*events.Journal, *forwarder, error) {
	address := cfg.Containerd.Address
	if cfg.Engine == config.EngineEmbedded {
		address = cfg.Address
	}
	remote, err := newForwarder(address)
	if err != nil {
		return nil, nil, err
	}
	journal, err := events.Open(filepath.Join(cfg.State, "events"), remote.forward)
	if err != nil {
		return nil, nil, err
	}
	steps.Add("connection for events", func(context.Context) error { return remote.close() })
	steps.Add("events", journal.Close)
	return journal, remote, nil
}

// shimHelper answers shim binaries: the controller, and what the OCI runtime
// says of itself.
type shimHelper struct {
	*sandbox.Controller
	runtime  string
	runtimes *runtimes
	events   *forwarder
}

var _ service.Shim = shimHelper{}

func (h shimHelper) RuntimeInfo(ctx context.Context, options *anypb.Any) (*types.RuntimeInfo, error) {
	return h.runtimes.info(ctx, h.runtime, options)
}

func (h shimHelper) Containerd(address string) { h.events.name(address) }
