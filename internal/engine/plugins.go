package engine

import (
	"fmt"

	"github.com/containerd/containerd/v2/core/events/exchange"
	"github.com/containerd/containerd/v2/plugins"
	"github.com/containerd/errdefs"
	"github.com/containerd/plugin"
	"github.com/containerd/plugin/registry"
)

// addPlugins puts what is ours among containerd's plugins: the sandboxer, unless
// somebody chose another one of its name, and the shorter way to tasks. The engine
// learns of the exchange of events.
func (e *Engine) addPlugins(cfg Config, sandboxerTaken bool) error {
	if !sandboxerTaken {
		registry.Register(&plugin.Registration{
			Type:   plugins.SandboxControllerPlugin,
			ID:     Sandboxer,
			InitFn: func(*plugin.InitContext) (any, error) { return cfg.Sandboxes, nil },
		})
	}
	err := wrap(plugins.EventPlugin, "exchange", func(made any) (any, error) {
		var ok bool
		if e.events, ok = made.(*exchange.Exchange); !ok {
			return nil, fmt.Errorf("containerd's exchange of events is a %T: %w", made, errdefs.ErrNotImplemented)
		}
		return made, nil
	})
	if err != nil || cfg.Tasks == nil {
		return err
	}
	return wrap(plugins.RuntimePluginV2, "task", func(made any) (any, error) { return newTaskManager(made, cfg.Tasks) })
}

// wrap lets f have what one of containerd's plugins is made to. Its tables can be read
// and emptied; what is in them cannot be changed.
func wrap(kind plugin.Type, id string, f func(made any) (any, error)) error {
	all := registry.Graph(func(*plugin.Registration) bool { return false })
	registry.Reset()
	found := false
	for _, r := range all {
		if r.Type == kind && r.ID == id {
			found = true
			initialise := r.InitFn
			r.InitFn = func(ic *plugin.InitContext) (any, error) {
				made, err := initialise(ic)
				if err != nil {
					return nil, err
				}
				return f(made)
			}
		}
		registry.Register(&r)
	}
	if !found {
		return fmt.Errorf("containerd has no plugin %s.%s: %w", kind, id, errdefs.ErrNotFound)
	}
	return nil
}
