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

var (
	engines    = []string{string(EngineEmbedded), string(EngineNone)}
	networks   = []string{NetworkCNI, NetworkHost, NetworkNone}
	logLevels  = []string{"trace", "debug", "info", "warn", "error", "fatal", "panic"}
	logFormats = []string{LogText, LogJSON}
)

// Config is the daemon's configuration. Default fills every field that has a
// constant default, Complete the ones that follow from others.
type Config struct {
	Root    string // persistent data, tied to this daemon by a lock
	State   string // run-time data, on tmpfs
	Address string // the engine's gRPC socket; empty means <State>/caissond.sock
	Engine  Engine

	Log        Log
	Runtime    Runtime
	Network    Network
	Containerd Containerd
	Pool       Pool
	Telemetry  Telemetry

	// Passthrough is containerd's part of the file, by its top-level keys.
	// Paths in imports have been made absolute. Nil when there is none.
	Passthrough map[string]any
	// File is the file the values came from, for messages; empty without one.
	File string
}

// Log says what is logged, and how.
type Log struct {
	Level  string
	Format string
}

// Runtime says how containers are run.
type Runtime struct {
	Default       string // OCI runtime: a name looked up in PATH, or an absolute path
	Root          string // where the OCI runtime keeps its state; empty means <State>/runtime
	SystemdCgroup bool   // let systemd make the cgroups
	// CgroupParent holds the cgroups of sandboxes whose client names no parent;
	// empty means /caisson, or /caisson.slice if systemd makes them.
	CgroupParent string
}

// Network says how sandboxes that are not CRI's are connected.
type Network struct {
	CNIConfDir string
	CNIBinDirs []string
	Default    string // cni, host or none
}

// Containerd is about the containerd beside caissond, with EngineNone.
type Containerd struct {
	Address string // its gRPC socket; events go to <Address>.ttrpc
	// KeepConnections lets its connections outlive the daemon. It must be off if
	// nobody starts the daemon again.
	KeepConnections bool
}

// Pool is about what waits for sandboxes that are yet to come.
type Pool struct {
	Size int // monitors that wait; 0 is none
}

// Telemetry is about what is told to who watches the daemon.
type Telemetry struct {
	Address string // host:port where metrics and health are served to anybody; empty is nowhere
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
		{"engine", func() error { return checkChoice(string(c.Engine), engines) }},
		{"log.level", func() error { return checkChoice(c.Log.Level, logLevels) }},
		{"log.format", func() error { return checkChoice(c.Log.Format, logFormats) }},
		{"runtime.default", func() error { return checkBinary(c.Runtime.Default) }},
		{"runtime.root", func() error { return checkPath(c.Runtime.Root) }},
		{"runtime.cgroup_parent", func() error { return checkCgroup(c.Runtime.CgroupParent, c.Runtime.SystemdCgroup) }},
		{"network.cni_conf_dir", func() error { return checkPath(c.Network.CNIConfDir) }},
		{"network.default", func() error { return checkChoice(c.Network.Default, networks) }},
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
