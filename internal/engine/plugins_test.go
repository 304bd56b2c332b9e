package engine

import (
	"errors"
	"slices"
	"testing"

	"github.com/containerd/containerd/v2/core/events/exchange"
	"github.com/containerd/containerd/v2/plugins"
	"github.com/containerd/errdefs"
	"github.com/containerd/plugin"
	"github.com/containerd/plugin/registry"
)

func registered() map[string]plugin.Registration {
	all := map[string]plugin.Registration{}
	for _, r := range registry.Graph(func(*plugin.Registration) bool { return false }) {
		all[r.URI()] = r
	}
	return all
}

// TestWrap: what a plugin is made to goes through the function, and the others stay.
func TestWrap(t *testing.T) {
	before := registered()
	refused := errors.New("refused")
	var made any
	if err := wrap(plugins.EventPlugin, "exchange", func(m any) (any, error) {
		made = m
		return nil, refused
	}); err != nil {
		t.Fatal(err)
	}
	after := registered()
	if len(after) != len(before) {
		t.Errorf("%d plugins, before %d", len(after), len(before))
	}
	for uri := range before {
		if _, ok := after[uri]; !ok {
			t.Errorf("%s is gone", uri)
		}
	}
	r := after[plugins.EventPlugin.String()+".exchange"]
	if _, err := r.Init(plugin.NewContext(t.Context(), plugin.NewPluginSet(), nil)).Instance(); !errors.Is(err, refused) {
		t.Error(err)
	}
	if _, ok := made.(*exchange.Exchange); !ok {
		t.Errorf("made: %T", made)
	}
	if err := wrap(plugins.EventPlugin, "none", nil); !errdefs.IsNotFound(err) {
		t.Error(err)
	}
	if _, err := newTaskManager(42, nil); !errdefs.IsNotImplemented(err) {
		t.Error(err)
	}
}

// TestWrapKeepsOrder: a plugin is made after those that it needs.
func TestWrapKeepsOrder(t *testing.T) {
	var order []string
	for _, r := range registry.Graph(func(*plugin.Registration) bool { return false }) {
		order = append(order, r.Type.String())
	}
	if err := wrap(plugins.RuntimePluginV2, "task", func(made any) (any, error) { return made, nil }); err != nil {
		t.Fatal(err)
	}
	var now []string
	for _, r := range registry.Graph(func(*plugin.Registration) bool { return false }) {
		now = append(now, r.Type.String())
	}
	if !slices.Equal(order, now) {
		t.Errorf("order of plugins:\n%v\nbefore:\n%v", now, order)
	}
}
