package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
)

func TestDefaultIsComplete(t *testing.T) {
	c := Default()
	if err := c.Complete(); err != nil {
		t.Fatal(err)
	}
	if c.Address != "/run/caisson/caissond.sock" || c.Runtime.Root != "/run/caisson/runtime" {
		t.Fatalf("derived address %q, runtime root %q", c.Address, c.Runtime.Root)
	}
}

func TestParseOwnKeys(t *testing.T) {
	c, err := Parse("/etc/caisson/config.toml", []byte(`
root = "/data/caisson"
state = "/run/c"
address = "/run/c/api.sock"
engine = "none"
[log]
level = "debug"
format = "json"
[runtime]
default = "crun"
root = "/run/c/oci"
systemd_cgroup = true
cgroup_parent = "/ci.slice"
[network]
cni_conf_dir = "/etc/cni"
cni_bin_dirs = ["/a", "/b"]
default = "host"
[containerd]
address = "/run/other.sock"
keep_connections = false
[telemetry]
address = "[::1]:9464"
`))
	if err != nil {
		t.Fatal(err)
	}
	want := Config{
		Root: "/data/caisson", State: "/run/c", Address: "/run/c/api.sock", Engine: EngineNone,
		Log:        Log{Level: "debug", Format: LogJSON},
		Runtime:    Runtime{Default: "crun", Root: "/run/c/oci", SystemdCgroup: true, CgroupParent: "/ci.slice"},
		Network:    Network{CNIConfDir: "/etc/cni", CNIBinDirs: []string{"/a", "/b"}, Default: NetworkHost},
		Containerd: Containerd{Address: "/run/other.sock"},
		Telemetry:  Telemetry{Address: "[::1]:9464"},
		File:       "/etc/caisson/config.toml",
	}
	if diff := cmp.Diff(want, c); diff != "" {
		t.Fatal(diff)
	}
	if err := c.Complete(); err != nil {
		t.Fatal(err)
	}
}

func TestPassthrough(t *testing.T) {
	c, err := Parse("/etc/caisson/config.toml", []byte(`
version = 3
imports = ["conf.d/*.toml", "/abs.toml"]
disabled_plugins = ["io.containerd.nri.v1.nri"]
oom_score = -5
[debug]
level = "warn"
[grpc]
max_recv_message_size = 1000
[timeouts]
"io.containerd.timeout.shim.load" = "5s"
[proxy_plugins.other]
type = "snapshot"
[plugins."io.containerd.cri.v1.images"]
snapshotter = "native"
[plugins."io.containerd.cri.v1.images".registry]
config_path = "/certs"
`))
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]any{
		"version":          int64(3),
		"imports":          []string{"/etc/caisson/conf.d/*.toml", "/abs.toml"},
		"disabled_plugins": []string{"io.containerd.nri.v1.nri"},
		"oom_score":        int64(-5),
		"debug":            map[string]any{"level": "warn"},
		"grpc":             map[string]any{"max_recv_message_size": int64(1000)},
		"timeouts":         map[string]string{"io.containerd.timeout.shim.load": "5s"},
		"proxy_plugins":    map[string]any{"other": map[string]any{"type": "snapshot"}},
		"plugins": map[string]any{"io.containerd.cri.v1.images": map[string]any{
			"snapshotter": "native", "registry": map[string]any{"config_path": "/certs"},
		}},
	}
	if diff := cmp.Diff(want, c.Passthrough); diff != "" {
		t.Fatal(diff)
	}
	if c.Log.Level != "warn" {
		t.Fatalf("containerd's debug level did not become ours: %q", c.Log.Level)
	}
}

func TestParseErrorsNameThePlace(t *testing.T) {
	for name, tc := range map[string]struct{ doc, want string }{
		"syntax":          {"root = \"/a\"\nstate = \n", "line 2"},
		"unterminated":    {"root = \"/a", "line 1"},
		"unknown key":     {"\nrot = \"/a\"\n", `line 2: unknown key "rot"`},
		"unknown table":   {"[plugin.x]\na = 1\n", `line 1: unknown key "plugin`},
		"unknown in own":  {"[log]\nlevel = \"info\"\nlvl = \"x\"\n", `line 3: unknown key "log.lvl"`},
		"wrong type":      {"\nroot = 3\n", "line 2"},
		"table as string": {"log = \"debug\"\n", "line 1"},
		"bad passthrough": {"plugins = 3\n", "line 1"},
		"relative root":   {"\n\nroot = \"data\"\n", `line 3: root: "data" must be an absolute path`},
		"engine":          {"engine = \"remote\"", `line 1: engine: "remote" is not one of embedded, none`},
		"level":           {"[log]\nlevel = \"loud\"\n", `line 2: log.level: "loud" is not one of`},
		"format":          {"[log]\n\nformat = \"xml\"\n", "line 3: log.format"},
		"inline":          {"network = {default = \"bridge\"}", "line 1: network.default"},
		"bin dir":         {"[network]\ncni_bin_dirs = [\"bin\"]\n", "line 2: network.cni_bin_dirs"},
		"runtime":         {"[runtime]\ndefault = \"./runc\"\n", "line 2: runtime.default"},
		"no port":         {"[telemetry]\naddress = \"localhost\"\n", "line 2: telemetry.address: \"localhost\" must be host:port"},
		"a path":          {"[telemetry]\naddress = \"/run/m.sock\"\n", "line 2: telemetry.address"},
		"port 0":          {"[telemetry]\naddress = \":0\"\n", "line 2: telemetry.address"},
		"duplicate":       {"root = \"/a\"\nroot = \"/b\"\n", "/c.toml"},
		"upper case":      {"ROOT = \"x\"\n", "line 1: root"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Parse("/c.toml", []byte(tc.doc))
			if !errdefs.IsInvalidArgument(err) {
				t.Fatalf("class of %v", err)
			}
			if !strings.Contains(err.Error(), "/c.toml") || !strings.Contains(err.Error(), tc.want) {
				t.Fatalf("%q does not say %q", err, tc.want)
			}
		})
	}
}

func TestCompleteErrors(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(*Config)
		want   string
	}{
		"same":         {func(c *Config) { c.State = c.Root }, "must be two directories"},
		"nested":       {func(c *Config) { c.State = c.Root + "/state" }, "must be two directories"},
		"nested clean": {func(c *Config) { c.Root = "/run//caisson/x" }, "must be two directories"},
		"flag engine":  {func(c *Config) { c.Engine = "x" }, "engine"},
		"relative":     {func(c *Config) { c.Address = "sock" }, "absolute"},
		"slash":        {func(c *Config) { c.Root = "/" }, "root of the file system"},
		"long state":   {func(c *Config) { c.State = "/" + strings.Repeat("s", 100); c.Address = "/a" }, "shorter directory"},
		"no slice":     {func(c *Config) { c.Runtime.SystemdCgroup, c.Runtime.CgroupParent = true, "/ci" }, "must end in .slice"},
		"a slice":      {func(c *Config) { c.Runtime.CgroupParent = "/ci.slice" }, "must end in .slice"},
		"no cgroup":    {func(c *Config) { c.Runtime.CgroupParent = "ci" }, "absolute"},
		"long address": {func(c *Config) { c.Address = "/" + strings.Repeat("s", 100) }, "shorter path"},
	} {
		t.Run(name, func(t *testing.T) {
			c := Default()
			tc.change(&c)
			err := c.Complete()
			if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), tc.want) {
				t.Fatalf("got %v, want invalid argument that says %q", err, tc.want)
			}
		})
	}
}

func TestLongestStateWorks(t *testing.T) {
	c := Default()
	c.State = "/" + strings.Repeat("s", maxSocketPath-len(longestInState)-1)
	if err := c.Complete(); err != nil {
		t.Fatal(err)
	}
	if len(c.State+longestInState) != maxSocketPath {
		t.Fatalf("the longest socket has %d bytes", len(c.State+longestInState))
	}
}

func TestLoad(t *testing.T) {
	dir := t.TempDir()
	if _, err := Load(filepath.Join(dir, "none.toml")); !errdefs.IsNotFound(err) {
		t.Fatalf("missing file: %v", err)
	}
	big := filepath.Join(dir, "big.toml")
	if err := os.WriteFile(big, []byte("#"+strings.Repeat("x", maxFileSize)), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(big); !errdefs.IsInvalidArgument(err) {
		t.Fatalf("big file: %v", err)
	}
	empty := filepath.Join(dir, "empty.toml")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := Load(empty)
	if err != nil {
		t.Fatal(err)
	}
	want := Default()
	want.File = empty
	if diff := cmp.Diff(want, c); diff != "" {
		t.Fatal(diff)
	}
}

// FuzzParse holds that no document crashes the parser, that every refusal is
// an invalid argument, and that an accepted one completes or is refused too.
func FuzzParse(f *testing.F) {
	for _, doc := range []string{
		"", "root = \"/a\"\n[log]\nlevel = \"info\"\n", "[plugins.\"x.y\"]\na = {b = [1, {c = 2}]}\n",
		"network = {cni_bin_dirs = [\"/a\"], default = \"cni\"}", "[[log]]\n", "log.level.x = 1", "\"\" = 1", "root = '''\n/a'''",
	} {
		f.Add([]byte(doc))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := Parse("/c.toml", data)
		if err == nil {
			err = c.Complete()
		}
		if err != nil && !errdefs.IsInvalidArgument(err) {
			t.Fatalf("unclassified: %v", err)
		}
	})
}
