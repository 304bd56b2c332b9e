// Package network gives a sandbox its network namespace, for clients other
// than CRI (which brings one along, set up).
//
// A namespace is a file <NetNSDir>/<name> onto which it is bind-mounted: it
// lives until Teardown, through restarts of the daemon, and needs no process.
// In mode CNI the plugins are run on it; what they were given is kept beside
// it, in <name>.cni, so that Teardown can give them the same however the
// configuration changed meanwhile.
//
// Setup either succeeds or leaves nothing. Teardown may be repeated, and
// finishes what a killed daemon left of either. Calls for one name must not
// overlap; calls for different names may.
package network

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"path/filepath"
	"regexp"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// Mode says whose network a sandbox has.
type Mode string

// The modes: the host's network; a namespace with nothing but loopback; one
// with what the CNI configuration adds; one that the client made. The first
// and the last need no work here, and Setup does none for them.
const (
	Host  Mode = "host"
	None  Mode = "none"
	CNI   Mode = "cni"
	Given Mode = "given"
)

// Config says where things are.
type Config struct {
	// NetNSDir gets the namespaces; it is made when the first one is. After a
	// reboot it must be empty, so it belongs on a tmpfs.
	NetNSDir string
	// CNIConfDir holds CNI configurations, of which the first by name is used.
	CNIConfDir string
	// CNIBinDirs hold the CNI plugins.
	CNIBinDirs []string
}

// Manager sets networks up and takes them down. It keeps no state in memory.
type Manager struct {
	cfg Config
}

// Request describes the network of one sandbox. Teardown needs Name and Mode
// only.
type Request struct {
	// ID is namespace/id of the sandbox, for messages.
	ID string
	// Name is the name of the namespace's file and, prefixed, the container
	// ID that CNI plugins see: unique on the host, of letters, digits, "_", "-".
	Name string
	Mode Mode

	// UIDs and GIDs, if set, make a user namespace with that mapping, which
	// owns the network namespace and lives as long as it; Owner opens it.
	UIDs, GIDs []specs.LinuxIDMapping

	// The rest is for CNI.

	// Labels are handed to the plugins as CNI_ARGS, those that can be: without
	// ";" and "=".
	Labels map[string]string
	// Ports need a plugin with the capability portMappings.
	Ports    []PortMapping
	Hostname string
}

// PortMapping makes a port of the sandbox reachable at a port of the host.
type PortMapping struct {
	HostPort      int32
	ContainerPort int32
	Protocol      string // tcp if empty, udp, sctp
	HostIP        string // all addresses if empty
}

// Result is what a sandbox got. It is made to be stored.
type Result struct {
	// NetNSPath is the namespace's file, empty for Host and Given.
	NetNSPath string
	// Addresses are the sandbox's IP addresses, without prefix lengths.
	Addresses  []string        `json:",omitempty"`
	Interfaces []Interface     `json:",omitempty"`
	Raw        json.RawMessage `json:",omitempty"` // array of CNI results
}

// Interface is a network interface inside the sandbox.
type Interface struct {
	Name      string
	MAC       string   `json:",omitempty"`
	Addresses []string `json:",omitempty"` // with prefix length
	Gateways  []string `json:",omitempty"`
}

// New checks the configuration; it touches nothing.
func New(cfg Config) (*Manager, error) {
	dirs := append([]string{cfg.NetNSDir, cfg.CNIConfDir}, cfg.CNIBinDirs...)
	for _, dir := range dirs {
		if !filepath.IsAbs(dir) {
			return nil, fmt.Errorf("network: directory %q is not an absolute path: %w", dir, errdefs.ErrInvalidArgument)
		}
	}
	if len(cfg.CNIBinDirs) == 0 {
		return nil, fmt.Errorf("network: no directory of CNI plugins: %w", errdefs.ErrInvalidArgument)
	}
	return &Manager{cfg: cfg}, nil
}

var nameRE = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_-]{0,63}$`)

func (m *Manager) check(req Request) error {
	if !nameRE.MatchString(req.Name) {
		return fmt.Errorf("name %q must be up to 64 letters, digits, \"_\" or \"-\": %w", req.Name, errdefs.ErrInvalidArgument)
	}
	if (len(req.UIDs) == 0) != (len(req.GIDs) == 0) {
		return fmt.Errorf("mappings of user IDs and of group IDs need each other: %w", errdefs.ErrInvalidArgument)
	}
	if len(req.Ports) > 0 && req.Mode != CNI {
		return fmt.Errorf("port mappings need network mode %q, not %q: %w", CNI, req.Mode, errdefs.ErrInvalidArgument)
	}
	for _, p := range req.Ports {
		if p.HostPort < 1 || p.HostPort > 65535 || p.ContainerPort < 1 || p.ContainerPort > 65535 {
			return fmt.Errorf("port mapping %d to %d: ports are 1 to 65535: %w", p.HostPort, p.ContainerPort, errdefs.ErrInvalidArgument)
		}
		switch p.Protocol {
		case "", "tcp", "udp", "sctp":
		default:
			return fmt.Errorf("port mapping %d to %d: protocol %q is not tcp, udp or sctp: %w", p.HostPort, p.ContainerPort, p.Protocol, errdefs.ErrInvalidArgument)
		}
		if p.HostIP != "" {
			if _, err := netip.ParseAddr(p.HostIP); err != nil {
				return fmt.Errorf("port mapping %d to %d: host address %q: %w: %w", p.HostPort, p.ContainerPort, p.HostIP, err, errdefs.ErrInvalidArgument)
			}
		}
	}
	return nil
}

func (m *Manager) nsPath(name string) string     { return filepath.Join(m.cfg.NetNSDir, name) }
func (m *Manager) recordPath(name string) string { return filepath.Join(m.cfg.NetNSDir, name+".cni") }
