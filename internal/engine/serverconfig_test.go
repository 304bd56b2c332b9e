package engine

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/version"
	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
)

func TestMerge(t *testing.T) {
	to := table{"a": table{"x": 1, "y": 2}, "b": []int{1}, "c": table{"z": 1}}
	merge(to, table{"a": table{"y": 3, "w": 4}, "b": []int{2}, "c": "scalar", "d": table{}})
	want := table{"a": table{"x": 1, "y": 3, "w": 4}, "b": []int{2}, "c": "scalar", "d": table{}}
	if diff := cmp.Diff(want, to); diff != "" {
		t.Fatal(diff)
	}
}

// configFor builds the server's configuration in a state directory of its own.
func configFor(t *testing.T, pass table) (table, Config, error) {
	t.Helper()
	dir := t.TempDir()
	cfg := Config{
		Root: filepath.Join(dir, "r"), State: dir, Address: dir + "/a.sock",
		ShimSocket: dir + "/shim.sock",
		CNIConfDir: "/cni/conf", CNIBinDirs: []string{"/cni/bin"}, Passthrough: pass,
	}
	out, err := serverConfig(context.Background(), cfg)
	if err != nil {
		return nil, cfg, err
	}
	if out.Root != cfg.Root+"/containerd" || out.State != cfg.State+"/containerd" || out.Version != version.ConfigVersion {
		t.Errorf("root %s, state %s, version %d", out.Root, out.State, out.Version)
	}
	return out.Plugins, cfg, nil
}

func at(t *testing.T, v any, path ...string) any {
	t.Helper()
	for _, key := range path {
		m, ok := v.(table)
		if !ok {
			t.Fatalf("%v: %T is no table", path, v)
		}
		v = m[key]
	}
	return v
}

func TestDefaultsOfPlugins(t *testing.T) {
	plugins, cfg, err := configFor(t, nil)
	if err != nil {
		t.Fatal(err)
	}
	want := table{"runtime_type": "io.containerd.caisson.v2", "sandboxer": "caisson", "disable_pause_image_pull": true}
	if diff := cmp.Diff(want, at(t, plugins, pluginRuntime, "containerd", "runtimes", "caisson")); diff != "" {
		t.Error(diff)
	}
	if at(t, plugins, pluginRuntime, "containerd", "default_runtime_name") != "caisson" {
		t.Error("default handler")
	}
	if at(t, plugins, pluginRuntime, "cni", "conf_dir") != "/cni/conf" {
		t.Error("CNI directory")
	}
	if at(t, plugins, pluginRuntime, "stats_collect_period") != "15s" {
		t.Error("period of CRI's statistics")
	}
	if at(t, plugins, pluginGRPC, "address") != cfg.Address || at(t, plugins, pluginTTRPC, "address") != cfg.Address+".ttrpc" {
		t.Error("addresses")
	}
	if _, err := os.Stat(cfg.State + "/containerd.toml"); !os.IsNotExist(err) {
		t.Errorf("a file was written for nothing: %v", err)
	}
}

func TestUserWins(t *testing.T) {
	plugins, cfg, err := configFor(t, table{
		"plugins": table{
			pluginRuntime: table{
				"cni":        table{"conf_dir": "/mine"},
				"containerd": table{"runtimes": table{"caisson": table{"cgroup_writable": true}, "kata": table{"runtime_type": "io.containerd.kata.v2"}}},
			},
			pluginImages: table{"snapshotter": "native"},
			pluginGRPC:   table{"address": "/elsewhere.sock", "max_recv_message_size": int64(5)},
		},
		"proxy_plugins": table{"other": table{"type": "snapshot", "address": "/o.sock"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	for want, path := range map[any][]string{
		"/mine":                 {pluginRuntime, "cni", "conf_dir"},
		true:                    {pluginRuntime, "containerd", "runtimes", "caisson", "cgroup_writable"},
		"caisson":               {pluginRuntime, "containerd", "runtimes", "caisson", "sandboxer"},
		"io.containerd.kata.v2": {pluginRuntime, "containerd", "runtimes", "kata", "runtime_type"},
		"native":                {pluginImages, "snapshotter"},
		int64(5):                {pluginGRPC, "max_recv_message_size"},
		cfg.Address:             {pluginGRPC, "address"},
	} {
		if got := at(t, plugins, path...); got != want {
			t.Errorf("%v is %v, want %v", path, got, want)
		}
	}
}

func TestOldVersionsAreMigrated(t *testing.T) {
	for name, doc := range map[string]table{
		"stated":  {"version": int64(2), "plugins": table{"io.containerd.grpc.v1.cri": table{"containerd": table{"runtimes": table{"x": table{"runtime_type": "t"}}}}}},
		"assumed": {"grpc": table{"max_recv_message_size": int64(7)}},
	} {
		t.Run(name, func(t *testing.T) {
			plugins, _, err := configFor(t, doc)
			if err != nil {
				t.Fatal(err)
			}
			switch name {
			case "stated":
				if at(t, plugins, pluginRuntime, "containerd", "runtimes", "x", "runtime_type") != "t" {
					t.Error("version 2 CRI section was not migrated")
				}
			case "assumed":
				if got := at(t, plugins, pluginGRPC, "max_recv_message_size"); got != 7 && got != int64(7) {
					t.Errorf("grpc section was not migrated: %v (%T)", got, got)
				}
			}
		})
	}
}

func TestBadPassthrough(t *testing.T) {
	for name, doc := range map[string]table{
		"future version": {"version": int64(99)},
		"missing import": {"imports": []string{"/does/not/exist.toml"}},
		"bad plugin URI": {"disabled_plugins": []string{"cri"}},
		"wrong type":     {"proxy_plugins": table{"x": "y"}},
	} {
		t.Run(name, func(t *testing.T) {
			_, _, err := configFor(t, doc)
			if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "configuration") {
				t.Fatalf("got %v", err)
			}
		})
	}
}
