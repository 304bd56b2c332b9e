package engine

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"os"
	"path/filepath"
	"slices"

	srvconfig "github.com/containerd/containerd/v2/cmd/containerd/server/config"
	"github.com/containerd/containerd/v2/version"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/containerd/plugin"
	"github.com/containerd/plugin/registry"
	"github.com/pelletier/go-toml/v2"
)

// The plugins the engine configures or looks for, by their URIs.
const (
	pluginGRPC      = "io.containerd.server.v1.grpc"
	pluginTTRPC     = "io.containerd.server.v1.ttrpc"
	pluginCRI       = "io.containerd.grpc.v1.cri"
	pluginRuntime   = "io.containerd.cri.v1.runtime"
	pluginImages    = "io.containerd.cri.v1.images"
	pluginTransfer  = "io.containerd.transfer.v1.local"
	pluginShim      = "io.containerd.shim.v1.manager"
	pluginNRI       = "io.containerd.nri.v1.nri"
	pluginOpt       = "io.containerd.internal.v1.opt"
	pluginTracing   = "io.containerd.internal.v1.tracing"
	pluginOTLP      = "io.containerd.tracing.processor.v1.otlp"
	pluginSandboxer = "io.containerd.sandbox.controller.v1." + Sandboxer
)

// table is a TOML table as containerd keeps the ones of its plugins.
type table = map[string]any

// serverConfig is containerd's configuration: what the engine needs, below it
// what suits the machine, and between them what the user says.
func serverConfig(ctx context.Context, cfg Config) (*srvconfig.Config, error) {
	out, err := userConfig(ctx, cfg)
	if err != nil {
		return nil, err
	}
	out.Root = filepath.Join(cfg.Root, "containerd")
	out.State = filepath.Join(cfg.State, "containerd")

	plugins := defaults(cfg)
	merge(plugins, probe(ctx, out.Root, cfg))
	merge(plugins, out.Plugins)
	for id, address := range map[string]string{pluginGRPC: cfg.Address, pluginTTRPC: cfg.Address + ".ttrpc"} {
		own, _ := plugins[id].(table)
		if own == nil {
			own = table{}
			plugins[id] = own
		}
		if other, ok := own["address"].(string); ok && other != address {
			log.G(ctx).WithFields(log.Fields{"plugin": id, "ignored": other, "address": address}).
				Warn("the engine's sockets follow the daemon's own address; containerd's setting is ignored")
		}
		own["address"] = address
	}
	out.Plugins = plugins
	// They would make a second exporter: the daemon has made the process's.
	out.DisabledPlugins = append(out.DisabledPlugins, pluginTracing, pluginOTLP)
	return out, nil
}

// userConfig lets containerd's own loader read the user's part, for its
// imports and its migration from older versions. It reads files only; so the
// part is written out, which also leaves it where one can look at it.
func userConfig(ctx context.Context, cfg Config) (*srvconfig.Config, error) {
	out := &srvconfig.Config{
		Version:          version.ConfigVersion,
		Plugins:          table{},
		ProxyPlugins:     map[string]srvconfig.ProxyPlugin{},
		StreamProcessors: map[string]srvconfig.StreamProcessor{},
		Timeouts:         map[string]string{},
	}
	if len(cfg.Passthrough) == 0 {
		return out, nil
	}
	doc := table{"version": assumedVersion(cfg.Passthrough)}
	for k, v := range cfg.Passthrough {
		doc[k] = v
	}
	data, err := toml.Marshal(doc)
	if err != nil {
		return nil, fmt.Errorf("containerd's configuration: %w", errors.Join(err, errdefs.ErrInvalidArgument))
	}
	path := filepath.Join(cfg.State, "containerd.toml")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		return nil, fmt.Errorf("containerd's configuration: %w", err)
	}
	graph := registry.Graph(func(*plugin.Registration) bool { return false })
	migrations := func() iter.Seq[plugin.Registration] { return slices.Values(graph) }
	if err := srvconfig.LoadConfigWithPlugins(ctx, path, migrations, out); err != nil {
		return nil, fmt.Errorf("containerd's part of the configuration, as written to %s: %w", path, errors.Join(err, errdefs.ErrInvalidArgument))
	}
	return out, nil
}

// assumedVersion is the version of a file that states none: the current one,
// unless it uses tables that the current one no longer reads.
func assumedVersion(doc table) int64 {
	for _, old := range []string{"grpc", "ttrpc", "metrics"} {
		if _, ok := doc[old]; ok {
			return version.ConfigVersion - 1
		}
	}
	return version.ConfigVersion
}

// defaults are the plugin settings that make containerd use the sandboxer and
// keep to the daemon's directories.
func defaults(cfg Config) table {
	// No options table: with one, CRI and the task service disagree about its
	// type for pods with a user namespace.
	handler := table{
		"runtime_type":             RuntimeType,
		"sandboxer":                Sandboxer,
		"disable_pause_image_pull": true,
	}
	handlers := table{Sandboxer: handler}
	if cfg.SystemdCgroup {
		// Since ours has no options, CRI asks containerd's own handler which
		// cgroup driver kubelet is to use.
		handlers["runc"] = table{"runtime_type": "io.containerd.runc.v2", "options": table{"SystemdCgroup": true}}
	}
	runtime := table{
		"containerd": table{
			"default_runtime_name": Sandboxer,
			"runtimes":             handlers,
		},
		// How often CRI looks at each pod and container for the processor time that it
		// uses a second. Each second, as containerd has it, that is most of what an idle
		// node does; metrics-server, for which the kubelet asks, does so every fifteen.
		"stats_collect_period": "15s",
	}
	cni := table{}
	if cfg.CNIConfDir != "" {
		cni["conf_dir"] = cfg.CNIConfDir
	}
	if len(cfg.CNIBinDirs) > 0 {
		cni["bin_dirs"] = slices.Clone(cfg.CNIBinDirs)
	}
	if len(cni) > 0 {
		runtime["cni"] = cni
	}
	out := table{
		pluginRuntime: runtime,
		// Both have fixed paths, which another containerd on the machine uses too.
		pluginNRI: table{"socket_path": filepath.Join(cfg.State, "nri.sock")},
		pluginOpt: table{"path": filepath.Join(cfg.Root, "opt")},
	}
	// For runc's shim; containerd refuses a directory whose sockets get too long.
	if dir := filepath.Join(cfg.State, "containerd", "s"); len(dir) <= maxShimSocketDir {
		out[pluginShim] = table{"socket_dir": dir}
	}
	return out
}

// maxShimSocketDir is containerd's limit: its socket names have 64 digits.
const maxShimSocketDir = 42

// merge puts the values of from over those of to, table by table.
func merge(to, from table) {
	for key, value := range from {
		if below, ok := value.(table); ok {
			if into, ok := to[key].(table); ok {
				merge(into, below)
				continue
			}
		}
		to[key] = value
	}
}
