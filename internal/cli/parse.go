package cli

import (
	"fmt"
	"math"
	"net/netip"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/docker/go-units"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	sandboxapi "caisson/api/caisson/sandbox/v1"
)

const cpuPeriod = 100_000 // microseconds

// limits are the resources of a container or a sandbox; 0 means no limit.
type limits struct {
	memory int64 // bytes
	quota  int64 // microseconds of CPU per cpuPeriod
	pids   int64
}

// limitFlags are the flags as they were given.
type limitFlags struct {
	memory, cpus string
	pids         int64
}

func (f limitFlags) parse() (limits, error) {
	var l limits
	var err error
	if l.memory, err = parseMemory(f.memory); err != nil {
		return limits{}, err
	}
	if l.quota, err = parseCPUs(f.cpus); err != nil {
		return limits{}, err
	}
	if f.pids < 0 {
		return limits{}, advise(errdefs.ErrInvalidArgument, "--pids-limit %d is below zero: leave it out for no limit", f.pids)
	}
	l.pids = f.pids
	return l, nil
}

// minMemory is what the runtime itself needs to start anything at all.
const minMemory = 512 << 10

func parseMemory(s string) (int64, error) {
	if s == "" {
		return 0, nil
	}
	n, err := units.RAMInBytes(s)
	if err != nil || n <= 0 {
		return 0, advise(errdefs.ErrInvalidArgument, "memory %q is not a size: write it like 64m, 1.5g or 67108864", s)
	}
	if n < minMemory {
		return 0, advise(errdefs.ErrInvalidArgument, "memory %q is too little to start anything: give at least 512k", s)
	}
	return n, nil
}

func parseCPUs(s string) (int64, error) {
	if s == "" {
		return 0, nil
	}
	n, err := strconv.ParseFloat(s, 64)
	// The kernel refuses quotas below 1 ms; the upper bound keeps the product an integer.
	if err != nil || math.IsNaN(n) || n < 0.01 || n > 1<<20 {
		return 0, advise(errdefs.ErrInvalidArgument, "cpus %q is not a number of CPUs: write it like 0.5 or 2, at least 0.01", s)
	}
	return int64(math.Round(n * cpuPeriod)), nil
}

func (l limits) proto() *sandboxapi.Resources {
	if l == (limits{}) {
		return nil
	}
	r := &sandboxapi.Resources{MemoryLimit: l.memory, CpuQuota: l.quota, PidsLimit: l.pids}
	if l.quota != 0 {
		r.CpuPeriod = cpuPeriod
	}
	return r
}

// parseVolume reads src:dst[:ro|rw]. A relative source is below cwd.
func parseVolume(s, cwd string) (specs.Mount, error) {
	bad := func(why string) (specs.Mount, error) {
		return specs.Mount{}, advise(errdefs.ErrInvalidArgument, "volume %q: %s: write it like /host/dir:/container/dir or /host/dir:/container/dir:ro", s, why)
	}
	parts := strings.Split(s, ":")
	if len(parts) < 2 || len(parts) > 3 {
		return bad("it has no source and destination")
	}
	source, dest, access := parts[0], parts[1], "rw"
	if len(parts) == 3 {
		access = parts[2]
	}
	switch {
	case source == "" || dest == "":
		return bad("source or destination is empty")
	case access != "ro" && access != "rw":
		return bad(fmt.Sprintf("%q is neither ro nor rw", access))
	case !filepath.IsAbs(dest):
		return bad("the destination is not an absolute path")
	case filepath.Clean(dest) == "/":
		return bad("the destination is the root directory")
	case !filepath.IsAbs(source) && !strings.HasPrefix(source, "."):
		return bad("named volumes do not exist; the source is a path that begins with / or .")
	}
	if !filepath.IsAbs(source) {
		source = filepath.Join(cwd, source)
	}
	return specs.Mount{
		Destination: filepath.Clean(dest),
		Source:      filepath.Clean(source),
		Type:        "bind",
		Options:     []string{"rbind", "rprivate", access},
	}, nil
}

// parseEnv reads K=V; a bare K takes the value of caisson's own environment and
// is left out if there is none.
func parseEnv(list []string, lookup func(string) string) ([]string, error) {
	var env []string
	for _, s := range list {
		name, _, given := strings.Cut(s, "=")
		if name == "" || strings.ContainsRune(s, 0) {
			return nil, advise(errdefs.ErrInvalidArgument, "environment variable %q has no name: write it like NAME=value", s)
		}
		if !given {
			value := lookup(name)
			if value == "" {
				continue
			}
			s = name + "=" + value
		}
		env = append(env, s)
	}
	return env, nil
}

// parsePairs reads K=V flags such as labels and sysctls.
func parsePairs(flag string, list []string) (map[string]string, error) {
	if len(list) == 0 {
		return nil, nil
	}
	pairs := make(map[string]string, len(list))
	for _, s := range list {
		key, value, ok := strings.Cut(s, "=")
		if !ok || key == "" {
			return nil, advise(errdefs.ErrInvalidArgument, "--%s %q is not a pair: write it like name=value", flag, s)
		}
		pairs[key] = value
	}
	return pairs, nil
}

func parseNetwork(s string) (sandboxapi.Network, error) {
	switch s {
	case "":
		return sandboxapi.Network_NETWORK_UNSPECIFIED, nil
	case "none":
		return sandboxapi.Network_NETWORK_NONE, nil
	case "host":
		return sandboxapi.Network_NETWORK_HOST, nil
	case "cni":
		return sandboxapi.Network_NETWORK_CNI, nil
	}
	return 0, advise(errdefs.ErrInvalidArgument, "unknown network %q: use none, host or cni", s)
}

// parsePort reads [hostIP:]hostPort:containerPort[/protocol].
func parsePort(s string) (*sandboxapi.PortMapping, error) {
	bad := advise(errdefs.ErrInvalidArgument, "port %q is not a mapping: write it like 8080:80, 8080:80/udp or 127.0.0.1:8080:80", s)
	ports, protocol, _ := strings.Cut(s, "/")
	switch protocol {
	case "", "tcp", "udp", "sctp":
	default:
		return nil, bad
	}
	at := strings.LastIndexByte(ports, ':')
	if at < 0 {
		return nil, bad
	}
	host, inside := ports[:at], ports[at+1:]
	m := &sandboxapi.PortMapping{Protocol: protocol}
	if at := strings.LastIndexByte(host, ':'); at >= 0 {
		ip, err := netip.ParseAddr(strings.Trim(host[:at], "[]"))
		if err != nil {
			return nil, bad
		}
		m.HostIp, host = ip.String(), host[at+1:]
	}
	from, err1 := strconv.ParseUint(host, 10, 16)
	to, err2 := strconv.ParseUint(inside, 10, 16)
	if err1 != nil || err2 != nil || from == 0 || to == 0 {
		return nil, bad
	}
	m.HostPort, m.ContainerPort = uint32(from), uint32(to)
	return m, nil
}

func checkIP(flag, s string) error {
	if _, err := netip.ParseAddr(s); err != nil {
		return advise(errdefs.ErrInvalidArgument, "--%s %q is not an IP address", flag, s)
	}
	return nil
}
