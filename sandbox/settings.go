package sandbox

import (
	"fmt"
	"maps"
	"net/netip"
	"os"
	"regexp"
	"strings"

	core "github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	api "caisson/api/caisson/sandbox/v1"
	"caisson/internal/network"
)

// settings are what a sandbox is made from, whichever client described it.
type settings struct {
	// CRI is set if Kubernetes' CRI is the client, which does the network and
	// never comes back for a sandbox whose start it saw fail.
	CRI         bool `json:",omitempty"`
	Isolation   string
	Hostname    string
	DNS         *dns `json:",omitempty"`
	ExtraHosts  map[string]string
	Network     network.Mode
	HostUTS     bool
	HostIPC     bool
	HostPID     bool
	SharePID    bool
	UIDs, GIDs  []specs.LinuxIDMapping
	Sysctls     map[string]string
	ShmSize     uint64
	Annotations map[string]string
	// CgroupParent of a CRI sandbox is the pod's own cgroup, made by the kubelet.
	CgroupParent string
	Resources    *specs.LinuxResources `json:",omitempty"`
	Ports        []network.PortMapping
}

type dns struct {
	Servers, Searches, Options []string
}

// The size of /dev/shm unless the client says otherwise: docker's, and Kubernetes'.
const defaultShmSize = 64 << 20

// The type URLs of the options that Create understands.
const (
	criOptions = "runtime.v1.PodSandboxConfig"
	ownOptions = "caisson.sandbox.v1.Options"
)

func (s settings) userNS() bool { return len(s.UIDs) > 0 }

// root is who the sandbox's root is on the host, 0 and 0 without a user
// namespace; mapped says whether one has a root at all.
func (s settings) root() (uid, gid int, mapped bool) {
	uid, uidMapped := hostRoot(s.UIDs)
	gid, gidMapped := hostRoot(s.GIDs)
	return uid, gid, uidMapped && gidMapped
}

// parseSettings reads what a client passed to Create. InvalidArgument: options
// of another kind, or values that cannot be.
func parseSettings(sb core.Sandbox, opts core.CreateOptions, unspecified network.Mode) (settings, error) {
	s, err := decodeSettings(sb, opts)
	if err == nil && s.Network == "" {
		s.Network = unspecified
	}
	if err == nil {
		err = s.check()
	}
	if err != nil {
		return settings{}, fmt.Errorf("sandbox %q: options: %w", sb.ID, err)
	}
	if len(opts.Annotations) > 0 {
		merged := maps.Clone(opts.Annotations)
		maps.Copy(merged, s.Annotations)
		s.Annotations = merged
	}
	return s, nil
}

func decodeSettings(sb core.Sandbox, opts core.CreateOptions) (settings, error) {
	if opts.Options == nil || opts.Options.GetTypeUrl() == "" {
		return fromOptions(sb.ID, opts.NetNSPath, &api.Options{})
	}
	unmarshal := func(m proto.Message) error {
		if err := proto.Unmarshal(opts.Options.GetValue(), m); err != nil {
			return fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
		}
		return nil
	}
	switch url := typeName(opts.Options); url {
	case criOptions:
		var config cri.PodSandboxConfig
		if err := unmarshal(&config); err != nil {
			return settings{}, err
		}
		return fromCRI(opts.NetNSPath, &config)
	case ownOptions:
		var o api.Options
		if err := unmarshal(&o); err != nil {
			return settings{}, err
		}
		return fromOptions(sb.ID, opts.NetNSPath, &o)
	default:
		return settings{}, fmt.Errorf("of type %q; %s and %s are understood: %w", url, criOptions, ownOptions, errdefs.ErrInvalidArgument)
	}
}

// typeName is a type URL without the host that some clients put before it.
func typeName(any typeurl.Any) string {
	url := any.GetTypeUrl()
	return url[strings.LastIndexByte(url, '/')+1:]
}

func fromOptions(id, netNSPath string, o *api.Options) (settings, error) {
	ns := o.GetNamespaces()
	s := settings{
		Isolation:    o.GetIsolation(),
		Hostname:     o.GetHostname(),
		ExtraHosts:   o.GetExtraHosts(),
		HostIPC:      ns.GetHostIpc(),
		HostPID:      ns.GetHostPid(),
		SharePID:     ns.GetSharePid(),
		UIDs:         ownMappings(ns.GetUids()),
		GIDs:         ownMappings(ns.GetGids()),
		Sysctls:      o.GetSysctls(),
		ShmSize:      o.GetShmSize(),
		CgroupParent: o.GetCgroupParent(),
		Resources:    ownResources(o.GetResources()),
		Annotations:  o.GetAnnotations(),
	}
	if s.Hostname == "" {
		s.Hostname = hostnameOf(id)
	}
	if d := o.GetDns(); d != nil {
		s.DNS = &dns{d.GetServers(), d.GetSearches(), d.GetOptions()}
	}
	for _, p := range o.GetPortMappings() {
		s.Ports = append(s.Ports, network.PortMapping{
			HostPort:      int32(p.GetHostPort()),
			ContainerPort: int32(p.GetContainerPort()),
			Protocol:      p.GetProtocol(),
			HostIP:        p.GetHostIp(),
		})
	}
	switch mode := o.GetNetwork(); mode {
	case api.Network_NETWORK_UNSPECIFIED:
		if netNSPath != "" {
			s.Network = network.Given
		}
	case api.Network_NETWORK_NONE:
		s.Network = network.None
	case api.Network_NETWORK_HOST:
		s.Network = network.Host
	case api.Network_NETWORK_CNI:
		s.Network = network.CNI
	default:
		return settings{}, fmt.Errorf("network %d is unknown: %w", mode, errdefs.ErrInvalidArgument)
	}
	if netNSPath != "" && s.Network != network.Given {
		return settings{}, fmt.Errorf("network %s and a network namespace path %q exclude each other: %w", s.Network, netNSPath, errdefs.ErrInvalidArgument)
	}
	return s, nil
}

// hostnameOf makes an ID a hostname: what is no letter, digit or dash becomes a
// dash, and 63 characters are kept.
func hostnameOf(id string) string {
	name := strings.Map(func(r rune) rune {
		if r == '.' || r == '_' {
			return '-'
		}
		return r
	}, id)
	return strings.Trim(name[:min(len(name), 63)], "-")
}

func ownMappings(list []*api.IDMapping) []specs.LinuxIDMapping {
	var out []specs.LinuxIDMapping
	for _, m := range list {
		out = append(out, specs.LinuxIDMapping{ContainerID: m.GetContainerId(), HostID: m.GetHostId(), Size: m.GetSize()})
	}
	return out
}

func ownResources(r *api.Resources) *specs.LinuxResources {
	if r == nil {
		return nil
	}
	return limits(r.GetCpuQuota(), r.GetCpuPeriod(), r.GetCpuShares(), r.GetCpusetCpus(), r.GetCpusetMems(), r.GetMemoryLimit(), r.GetMemorySwap(), r.GetPidsLimit())
}

// limits leaves out what is zero: no limit.
func limits(quota int64, period, shares uint64, cpus, mems string, memory, swap, pids int64) *specs.LinuxResources {
	res := &specs.LinuxResources{}
	if quota != 0 || shares != 0 || cpus != "" || mems != "" {
		res.CPU = &specs.LinuxCPU{Cpus: cpus, Mems: mems}
		if quota != 0 {
			if period == 0 {
				period = 100000
			}
			res.CPU.Quota, res.CPU.Period = &quota, &period
		}
		if shares != 0 {
			res.CPU.Shares = &shares
		}
	}
	if memory != 0 {
		res.Memory = &specs.LinuxMemory{Limit: &memory}
		if swap != 0 {
			res.Memory.Swap = &swap
		}
	}
	if pids != 0 {
		res.Pids = &specs.LinuxPids{Limit: &pids}
	}
	return res
}

func fromCRI(netNSPath string, config *cri.PodSandboxConfig) (settings, error) {
	linux := config.GetLinux()
	security := linux.GetSecurityContext()
	if security.GetRunAsGroup() != nil && security.GetRunAsUser() == nil {
		// Nothing runs as them here, but CRI wants it refused.
		return settings{}, fmt.Errorf("a group to run as, %d, without a user: %w", security.GetRunAsGroup().GetValue(), errdefs.ErrInvalidArgument)
	}
	ns := security.GetNamespaceOptions()
	s := settings{
		CRI:          true,
		Hostname:     config.GetHostname(),
		Network:      network.Given,
		HostIPC:      ns.GetIpc() == cri.NamespaceMode_NODE,
		HostPID:      ns.GetPid() == cri.NamespaceMode_NODE,
		SharePID:     ns.GetPid() == cri.NamespaceMode_POD,
		Sysctls:      maps.Clone(linux.GetSysctls()),
		Annotations:  config.GetAnnotations(),
		CgroupParent: linux.GetCgroupParent(),
	}
	if d := config.GetDnsConfig(); d != nil {
		s.DNS = &dns{d.GetServers(), d.GetSearches(), d.GetOptions()}
	}
	if u := ns.GetUsernsOptions(); u != nil {
		switch u.GetMode() {
		case cri.NamespaceMode_NODE:
		case cri.NamespaceMode_POD:
			s.UIDs, s.GIDs = criMappings(u.GetUids()), criMappings(u.GetGids())
			if len(s.UIDs) == 0 || len(s.GIDs) == 0 {
				return settings{}, fmt.Errorf("a user namespace needs mappings of users and groups: %w", errdefs.ErrInvalidArgument)
			}
		default:
			return settings{}, fmt.Errorf("user namespace mode %s is not supported: %w", u.GetMode(), errdefs.ErrInvalidArgument)
		}
	}
	if ns.GetNetwork() == cri.NamespaceMode_NODE {
		s.Network, s.HostUTS = network.Host, true
	} else if netNSPath == "" {
		return settings{}, fmt.Errorf("a pod network without a network namespace path: %w", errdefs.ErrInvalidArgument)
	}
	if s.Hostname == "" {
		host, err := os.Hostname()
		if err != nil {
			return settings{}, fmt.Errorf("hostname: %w", err)
		}
		s.Hostname = host
	}
	if s.CgroupParent == "" {
		s.Resources = criResources(linux.GetResources())
	}
	s.defaultSysctls()
	return s, nil
}

// defaultSysctls are those that containerd's own sandboxes set and that reach no
// remote sandboxer: unprivileged processes may use low ports and ping.
func (s *settings) defaultSysctls() {
	if s.Network == network.Host {
		return
	}
	set := func(name, value string) {
		if s.Sysctls == nil {
			s.Sysctls = map[string]string{}
		}
		if _, ok := s.Sysctls[name]; !ok {
			s.Sysctls[name] = value
		}
	}
	set("net.ipv4.ip_unprivileged_port_start", "0")
	if !s.userNS() {
		set("net.ipv4.ping_group_range", "0 2147483647")
	}
}

func criMappings(list []*cri.IDMapping) []specs.LinuxIDMapping {
	var out []specs.LinuxIDMapping
	for _, m := range list {
		out = append(out, specs.LinuxIDMapping{ContainerID: m.GetContainerId(), HostID: m.GetHostId(), Size: m.GetLength()})
	}
	return out
}

// hostRoot is who user or group 0 of a mapping is on the host.
func hostRoot(list []specs.LinuxIDMapping) (id int, mapped bool) {
	for _, m := range list {
		if m.ContainerID == 0 && m.Size > 0 {
			return int(m.HostID), true
		}
	}
	return 0, false
}

func criResources(r *cri.LinuxContainerResources) *specs.LinuxResources {
	if r == nil {
		return nil
	}
	return limits(r.GetCpuQuota(), uint64(r.GetCpuPeriod()), uint64(r.GetCpuShares()), r.GetCpusetCpus(), r.GetCpusetMems(), r.GetMemoryLimitInBytes(), r.GetMemorySwapLimitInBytes(), 0)
}

var (
	hostnamePattern = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9.-]{0,62}[A-Za-z0-9])?$`)
	sysctlPattern   = regexp.MustCompile(`^[a-z0-9_]+([./][a-zA-Z0-9_-]+)+$`)
)

// check refuses values that would only fail later, or land in files as something else.
func (s settings) check() error {
	invalid := func(format string, args ...any) error {
		return fmt.Errorf(format+": %w", append(args, errdefs.ErrInvalidArgument)...)
	}
	// The host's own name is whatever it is.
	if !s.HostUTS && !hostnamePattern.MatchString(s.Hostname) {
		return invalid("hostname %q: want letters, digits, dots and dashes, at most 64", s.Hostname)
	}
	if (len(s.UIDs) == 0) != (len(s.GIDs) == 0) {
		return invalid("a user namespace needs mappings of users and groups, both")
	}
	_, _, mapped := s.root()
	if s.userNS() && !mapped {
		return invalid("a user namespace needs mappings of user 0 and group 0: the sandbox's own processes have them")
	}
	if len(s.Ports) > 0 && s.Network != network.CNI {
		return invalid("port mappings need the network %s", network.CNI)
	}
	if s.SharePID && s.HostPID {
		return invalid("a shared PID namespace and the host's exclude each other")
	}
	for name := range s.Sysctls {
		if err := s.checkSysctl(name); err != nil {
			return err
		}
	}
	for name, addr := range s.ExtraHosts {
		if _, err := netip.ParseAddr(addr); err != nil {
			return invalid("host %q: %q is no IP address", name, addr)
		}
		if !hostnamePattern.MatchString(name) {
			return invalid("host name %q", name)
		}
	}
	if s.DNS != nil {
		for _, word := range append(append(append([]string{}, s.DNS.Servers...), s.DNS.Searches...), s.DNS.Options...) {
			if word == "" || strings.ContainsAny(word, " \t\r\n") {
				return invalid("DNS: %q is not one word", word)
			}
		}
	}
	return nil
}

// checkSysctl allows what belongs to a namespace of the sandbox, as runc and
// Kubernetes do: anything else would change the host.
func (s settings) checkSysctl(name string) error {
	if !sysctlPattern.MatchString(name) {
		return fmt.Errorf("sysctl %q: not a name: %w", name, errdefs.ErrInvalidArgument)
	}
	dotted := strings.ReplaceAll(name, "/", ".")
	refuse := func(why string) error {
		return fmt.Errorf("sysctl %q: %s: %w", name, why, errdefs.ErrInvalidArgument)
	}
	switch {
	case strings.HasPrefix(dotted, "net."):
		if s.Network == network.Host {
			return refuse("the sandbox has the host's network")
		}
	case strings.HasPrefix(dotted, "kernel.shm"), strings.HasPrefix(dotted, "kernel.msg"), dotted == "kernel.sem", strings.HasPrefix(dotted, "fs.mqueue."):
		if s.HostIPC {
			return refuse("the sandbox has the host's IPC")
		}
	case dotted == "kernel.domainname":
		if s.HostUTS {
			return refuse("the sandbox has the host's UTS namespace")
		}
	default:
		return refuse("it is the host's, not of a namespace")
	}
	return nil
}
