// Package config reads caissond's configuration: one TOML file that holds the
// daemon's own keys beside everything containerd's configuration knows.
//
// The daemon's own keys are root, state, address, engine and the tables [log],
// [runtime], [network], [containerd], [pool] and [telemetry]. containerd's keys (version, imports,
// [plugins], [proxy_plugins], [grpc], ...) are not interpreted here; they come
// out as Config.Passthrough for the embedded engine. A key that belongs to
// neither is an error, because a misspelt setting that is silently ignored is
// found out at the worst moment.
//
// The order is Default or Load, then the caller puts its flags over the file's
// values, then Complete, which derives what is still unset and checks the
// whole. The package touches no environment and no file but those it is given.
package config

import (
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
)

// DefaultPath is where caissond looks for its file when none is named.
const DefaultPath = "/etc/caisson/config.toml"

// Engine says where containerd's core runs.
type Engine string

const (
	// EngineEmbedded runs containerd's core, CRI included, inside caissond.
	EngineEmbedded Engine = "embedded"
	// EngineNone runs the sandboxer alone, for a containerd that runs beside it.
	EngineNone Engine = "none"
)

// The networks a sandbox can ask for by default.
const (
	NetworkCNI  = "cni"
	NetworkHost = "host"
	NetworkNone = "none"
)

// The formats of the log.
const (
	LogText = "text"
	LogJSON = "json"
)

// choices are what the value of a key must be one of, by the keys of which that is so.
var choices = map[string][]string{
	"engine":          {string(EngineEmbedded), string(EngineNone)},
	"log.level":       {"trace", "debug", "info", "warn", "error", "fatal", "panic"},
	"log.format":      {LogText, LogJSON},
	"network.default": {NetworkCNI, NetworkHost, NetworkNone},
}

// Choices are the values that a key can have, by its dotted name; nil if they are not
// just a few.
func Choices(key string) []string { return slices.Clone(choices[key]) }

// Config is the daemon's configuration. Default fills every field that has a
// constant default, Complete the ones that follow from others. What is said here of
// the fields is what docs/configuration.md says of the keys: `make docs` puts it there,
// the first sentence also beside the default.
type Config struct {
	// Persistent data. The directory gets mode 0700 and is one daemon's at a time.
	Root string
	// Run-time data, on tmpfs. The path has at most 79 bytes, so that those of the sockets
	// below it are not too long; neither of this directory and `root` is in the other.
	State string
	// The socket of containerd's API and CRI. Empty is `caissond.sock` in `state`; ttrpc is
	// beside it, at the same path with `.ttrpc`, and the path has at most 98 bytes.
	Address string
	// Where containerd's core runs. `embedded` is in caissond, CRI included; with `none`
	// caissond is the sandboxer of a stock containerd that runs beside it.
	Engine Engine

	Log        Log        // The daemon's log, on its standard error
	Runtime    Runtime    // How containers are run
	Network    Network    // Sandboxes that are not CRI's; the directories hold for CRI too
	Containerd Containerd // The containerd beside, with engine none
	Pool       Pool       // What waits for sandboxes to come
	Telemetry  Telemetry  // What is told to who watches the daemon

	// Passthrough is containerd's part of the file, by its top-level keys.
	// Paths in imports have been made absolute. Nil when there is none.
	Passthrough map[string]any
	// File is the file the values came from, for messages; empty without one.
	File string
}

// Log says what is logged, and how.
type Log struct {
	// The least severe that is logged. Without it `level` in containerd's `[debug]` holds.
	Level string
	// Lines for people, or JSON. Without it `format` in containerd's `[debug]` holds.
	Format string
}

// Runtime says how containers are run.
type Runtime struct {
	// The OCI runtime. A name is looked up in `PATH`; else it is an absolute path.
	Default string
	// Where the OCI runtime keeps its state. Empty is `runtime` in `state`.
	Root string
	// Let systemd make the cgroups. The embedded engine tells the kubelet, whose driver has
	// to be the same.
	SystemdCgroup bool
	// The cgroup of sandboxes whose client names no parent. Empty is `/caisson`, or
	// `/caisson.slice` with `systemd_cgroup`; then it has to end in `.slice`, else it must not.
	CgroupParent string
}

// Network says how sandboxes that are not CRI's are connected.
type Network struct {
	// CNI's networks. The first file by name is the network, as for every user of CNI.
	CNIConfDir string
	// CNI's plugins. The directories are searched in this order.
	CNIBinDirs []string
	// The network of sandboxes that ask for none. `none` has loopback only.
	Default string
}

// Containerd is about the containerd beside caissond, with EngineNone.
type Containerd struct {
	// Its socket. Events go to the one beside it, at the same path with `.ttrpc`.
	Address string
	// Let its connections outlive the daemon. It must be off if nobody starts the daemon
	// again: containerd would wait for it.
	KeepConnections bool
}

// Pool is about what waits for sandboxes that are yet to come.
type Pool struct {
	// Monitors that wait, each at some 10 KiB. A sandbox that finds one starts sooner; at
	// most 1000, and 0 is none.
	Size int
}

// Telemetry is about what is told to who watches the daemon.
type Telemetry struct {
	// host:port of metrics and health. They are served to anybody who can connect, such as
	// at `127.0.0.1:9464`; empty is nowhere but `debug.sock`.
	Address string
}

// maxPool is more than any machine can use.
const maxPool = 1000

// Default is the configuration of a daemon without a file.
func Default() Config {
	return Config{
		Root:   "/var/lib/caisson",
		State:  "/run/caisson",
		Engine: EngineEmbedded,
		Log:    Log{Level: "info", Format: LogText},
		Runtime: Runtime{
			Default: "runc",
		},
		Network: Network{
			CNIConfDir: "/etc/cni/net.d",
			CNIBinDirs: []string{"/opt/cni/bin", "/usr/lib/cni"},
			Default:    NetworkNone,
		},
		Containerd: Containerd{Address: "/run/containerd/containerd.sock", KeepConnections: true},
	}
}

// Complete derives the values that are unset and checks all of them. Its
// errors are of class errdefs.ErrInvalidArgument.
func (c *Config) Complete() error {
	if c.Address == "" {
		c.Address = filepath.Join(c.State, "caissond.sock")
	}
	if c.Runtime.Root == "" {
		c.Runtime.Root = filepath.Join(c.State, "runtime")
	}
	if c.Runtime.CgroupParent == "" {
		c.Runtime.CgroupParent = "/caisson"
		if c.Runtime.SystemdCgroup {
			c.Runtime.CgroupParent += ".slice"
		}
	}
	for _, s := range c.settings() {
		if err := s.check(); err != nil {
			return invalid("%s: %v", s.key, err)
		}
	}
	for _, p := range []*string{&c.Root, &c.State, &c.Address, &c.Runtime.Root, &c.Runtime.CgroupParent, &c.Network.CNIConfDir, &c.Containerd.Address} {
		*p = filepath.Clean(*p)
	}
	if within(c.Root, c.State) || within(c.State, c.Root) {
		return invalid("root %s and state %s must be two directories, neither inside the other", c.Root, c.State)
	}
	return c.checkSockets()
}

// maxSocketPath is the longest path of a unix socket: sun_path less its NUL.
const maxSocketPath = 107

// maxEnginePath is the same for sockets containerd makes, which is stricter.
const maxEnginePath = 104

// longestInState is the longest socket below the state directory: a sandbox's
// directory is named with 12 hexadecimal digits.
const longestInState = "/s/0123456789ab/monitor.sock"

func (c *Config) checkSockets() error {
	if n := maxSocketPath - len(longestInState); len(c.State) > n {
		return invalid("state %s is %d bytes long; with more than %d the sockets below it exceed the limit of unix sockets, choose a shorter directory",
			c.State, len(c.State), n)
	}
	if n := maxEnginePath - len(".ttrpc"); len(c.Address) > n {
		return invalid("address %s is %d bytes long, the limit is %d; choose a shorter path", c.Address, len(c.Address), n)
	}
	return nil
}

// setting is one own key and what its value must be.
type setting struct {
	key   string // as written in the file, dotted
	check func() error
}

func (c *Config) settings() []setting {
	all := []setting{
		{"root", func() error { return checkPath(c.Root) }},
		{"state", func() error { return checkPath(c.State) }},
		{"address", func() error { return checkPath(c.Address) }},
		{"engine", func() error { return checkChoice(string(c.Engine), choices["engine"]) }},
		{"log.level", func() error { return checkChoice(c.Log.Level, choices["log.level"]) }},
		{"log.format", func() error { return checkChoice(c.Log.Format, choices["log.format"]) }},
		{"runtime.default", func() error { return checkBinary(c.Runtime.Default) }},
		{"runtime.root", func() error { return checkPath(c.Runtime.Root) }},
		{"runtime.cgroup_parent", func() error { return checkCgroup(c.Runtime.CgroupParent, c.Runtime.SystemdCgroup) }},
		{"network.cni_conf_dir", func() error { return checkPath(c.Network.CNIConfDir) }},
		{"network.default", func() error { return checkChoice(c.Network.Default, choices["network.default"]) }},
		{"containerd.address", func() error { return checkPath(c.Containerd.Address) }},
		{"pool.size", func() error { return checkCount(c.Pool.Size, maxPool) }},
		{"telemetry.address", func() error { return checkTCP(c.Telemetry.Address) }},
	}
	for _, dir := range c.Network.CNIBinDirs {
		all = append(all, setting{"network.cni_bin_dirs", func() error { return checkPath(dir) }})
	}
	return all
}

func checkPath(p string) error {
	switch {
	case p == "":
		return fmt.Errorf("a path is missing")
	case !filepath.IsAbs(p):
		return fmt.Errorf("%q must be an absolute path, one that starts with /", p)
	case strings.ContainsRune(p, 0):
		return fmt.Errorf("%q holds a NUL byte", p)
	case filepath.Clean(p) == "/":
		return fmt.Errorf("the root of the file system cannot be used")
	}
	return nil
}

func checkCount(n, most int) error {
	if n < 0 || n > most {
		return fmt.Errorf("%d is not a number from 0 to %d", n, most)
	}
	return nil
}

func checkTCP(address string) error {
	if address == "" {
		return nil
	}
	_, port, err := net.SplitHostPort(address)
	if n, perr := strconv.ParseUint(port, 10, 16); err != nil || perr != nil || n == 0 {
		return fmt.Errorf("%q must be host:port with a port from 1 to 65535, such as 127.0.0.1:9464", address)
	}
	return nil
}

func checkChoice(v string, choices []string) error {
	for _, c := range choices {
		if v == c {
			return nil
		}
	}
	return fmt.Errorf("%q is not one of %s", v, strings.Join(choices, ", "))
}

func checkBinary(v string) error {
	if v == "" || strings.ContainsRune(v, 0) || strings.Contains(v, "/") && !filepath.IsAbs(v) {
		return fmt.Errorf("%q must be the name of a program in PATH, such as runc or crun, or its absolute path", v)
	}
	return nil
}

func checkCgroup(p string, systemd bool) error {
	if err := checkPath(p); err != nil {
		return err
	}
	if systemd != strings.HasSuffix(p, ".slice") {
		return fmt.Errorf("%q must end in .slice if runtime.systemd_cgroup is true, and must not if it is false", p)
	}
	return nil
}

// within says whether path is dir or lies below it.
func within(path, dir string) bool {
	return path == dir || strings.HasPrefix(path, dir+"/")
}

func invalid(format string, args ...any) error {
	return fmt.Errorf("configuration: "+format+": %w", append(args, errdefs.ErrInvalidArgument)...)
}
