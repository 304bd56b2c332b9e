package manifest

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/pkg/identifiers"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	sandboxapi "caisson/api/caisson/sandbox/v1"
)

// Pod is a sandbox and what runs in it.
type Pod struct {
	Name                string
	Labels, Annotations map[string]string
	Options             *sandboxapi.Options
	Volumes             []Volume
	FSGroup             *int64 // owns what the volumes made for the Pod hold

	Init       []Container // one after the other; each must succeed, but for sidecars
	Containers []Container // together, after those

	// Digest changes when what is asked for does, in this Pod, in the ConfigMaps and
	// Secrets it uses or in the Options of Read.
	Digest string
}

// translator turns one Pod into what is to be run.
type translator struct {
	*report
	pod     *corev1.Pod
	files   *fileSet
	network sandboxapi.Network
	volumes map[string]bool
	used    [][]byte // documents that the Pod refers to
}

func (d *document) translate(files *fileSet, opts Options) Pod {
	t := &translator{report: &d.report, pod: d.pod, files: files, volumes: map[string]bool{}, network: opts.Network}
	spec := &d.pod.Spec
	switch {
	case spec.HostNetwork:
		t.network = sandboxapi.Network_NETWORK_HOST
	case t.network == sandboxapi.Network_NETWORK_UNSPECIFIED:
		t.network = sandboxapi.Network_NETWORK_CNI
	}
	t.checkPod()
	pod := Pod{Name: d.pod.Name, Labels: d.pod.Labels, Annotations: d.pod.Annotations}
	if sc := spec.SecurityContext; sc != nil {
		pod.FSGroup = t.id(sc.FSGroup, specPath.Child("securityContext", "fsGroup"))
	}
	for i := range spec.Volumes {
		pod.Volumes = append(pod.Volumes, t.volume(&spec.Volumes[i], specPath.Child("volumes").Index(i)))
	}
	names := map[string]bool{}
	for i := range spec.InitContainers {
		pod.Init = append(pod.Init, t.container(&spec.InitContainers[i], specPath.Child("initContainers").Index(i), true, names))
	}
	for i := range spec.Containers {
		pod.Containers = append(pod.Containers, t.container(&spec.Containers[i], specPath.Child("containers").Index(i), false, names))
	}
	pod.Options = t.options()
	pod.Digest = digest(append([][]byte{d.json, []byte(t.network.String())}, t.used...)...)
	return pod
}

func (t *translator) checkPod() {
	spec := &t.pod.Spec
	name := metadataPath.Child("name")
	for _, problem := range validation.IsDNS1123Subdomain(t.pod.Name) {
		t.fail(name, "%q: %s", t.pod.Name, problem)
	}
	if identifiers.Validate(t.pod.Name) != nil {
		t.fail(name, "%q cannot name a sandbox: use up to 76 letters and digits, with single . or - between them", t.pod.Name)
	}
	for label := range t.pod.Labels {
		if strings.HasPrefix(label, "caisson/") {
			t.fail(metadataPath.Child("labels").Key(label), "labels that begin with caisson/ are caisson's own")
		}
	}
	if len(spec.Containers) == 0 {
		t.fail(specPath.Child("containers"), "is missing: a Pod has at least one container")
	}
	switch spec.RestartPolicy {
	case "", corev1.RestartPolicyNever:
	case corev1.RestartPolicyAlways, corev1.RestartPolicyOnFailure:
		t.warn("spec.restartPolicy", "nobody starts a container again that has ended: %s is left to Kubernetes, Never is what is done", spec.RestartPolicy)
	default:
		t.fail(specPath.Child("restartPolicy"), "%q is not one of Always, OnFailure and Never", spec.RestartPolicy)
	}
	if spec.HostUsers != nil && !*spec.HostUsers {
		t.fail(specPath.Child("hostUsers"), "a user namespace is made by Kubernetes only, and the Pod would be less confined than it asks for: leave it out, or run it in Kubernetes")
	}
	if spec.OS != nil && spec.OS.Name != corev1.Linux {
		t.fail(specPath.Child("os", "name"), "%q is not linux", spec.OS.Name)
	}
	if spec.HostPID && spec.ShareProcessNamespace != nil && *spec.ShareProcessNamespace {
		t.fail(specPath.Child("shareProcessNamespace"), "excludes hostPID: give one of them")
	}
}

func (t *translator) options() *sandboxapi.Options {
	spec := &t.pod.Spec
	o := &sandboxapi.Options{Hostname: t.hostname(), Network: t.network, Dns: t.dns(), ExtraHosts: t.hosts(), PortMappings: t.ports()}
	share := spec.ShareProcessNamespace != nil && *spec.ShareProcessNamespace
	if share || spec.HostIPC || spec.HostPID {
		o.Namespaces = &sandboxapi.Namespaces{SharePid: share, HostIpc: spec.HostIPC, HostPid: spec.HostPID}
	}
	if sc := spec.SecurityContext; sc != nil {
		for i, s := range sc.Sysctls {
			if s.Name == "" {
				t.fail(specPath.Child("securityContext", "sysctls").Index(i).Child("name"), "is missing")
				continue
			}
			if o.Sysctls == nil {
				o.Sysctls = map[string]string{}
			}
			// Both forms are written: net/ipv4/ip_forward and net.ipv4.ip_forward.
			o.Sysctls[strings.ReplaceAll(s.Name, "/", ".")] = s.Value
		}
	}
	if spec.Resources != nil {
		if r := t.resources(*spec.Resources, specPath.Child("resources")); r != (Resources{}) {
			o.Resources = &sandboxapi.Resources{MemoryLimit: r.Memory, CpuQuota: r.CPUQuota, CpuShares: r.CPUShares}
			if r.CPUQuota != 0 {
				o.Resources.CpuPeriod = CPUPeriod
			}
		}
	}
	return o
}

// hostname is the Pod's name if it gives none, cut as Kubernetes does.
func (t *translator) hostname() string {
	name := t.pod.Spec.Hostname
	for _, problem := range validation.IsDNS1123Label(name) {
		if name != "" {
			t.fail(specPath.Child("hostname"), "%q: %s", name, problem)
		}
	}
	if name == "" && !t.pod.Spec.HostNetwork {
		name = t.pod.Name
	}
	const longest = validation.DNS1123LabelMaxLength
	if len(name) > longest {
		name = strings.TrimRight(name[:longest], "-.")
	}
	return name
}

// dns is nil for the host's, which is what all policies but None come to without a cluster.
func (t *translator) dns() *sandboxapi.DNS {
	spec, at := &t.pod.Spec, specPath.Child("dnsConfig")
	switch spec.DNSPolicy {
	case corev1.DNSNone:
	case "", corev1.DNSClusterFirst, corev1.DNSClusterFirstWithHostNet, corev1.DNSDefault:
		if spec.DNSConfig != nil {
			t.warn(at.String(), "is used with dnsPolicy: None only, ignored")
		}
		return nil
	default:
		t.fail(specPath.Child("dnsPolicy"), "%q is not one of None, Default, ClusterFirst and ClusterFirstWithHostNet", spec.DNSPolicy)
		return nil
	}
	if spec.DNSConfig == nil || len(spec.DNSConfig.Nameservers) == 0 {
		t.fail(at.Child("nameservers"), "is missing: dnsPolicy None needs at least one")
		return nil
	}
	dns := &sandboxapi.DNS{Servers: spec.DNSConfig.Nameservers, Searches: spec.DNSConfig.Searches}
	for i, s := range dns.Servers {
		t.address(s, at.Child("nameservers").Index(i))
	}
	for i, s := range dns.Searches {
		t.word(s, at.Child("searches").Index(i))
	}
	for i, opt := range spec.DNSConfig.Options {
		word := opt.Name
		if opt.Value != nil && *opt.Value != "" {
			word += ":" + *opt.Value
		}
		t.word(word, at.Child("options").Index(i))
		dns.Options = append(dns.Options, word)
	}
	return dns
}

func (t *translator) hosts() map[string]string {
	var hosts map[string]string
	for i, alias := range t.pod.Spec.HostAliases {
		at := specPath.Child("hostAliases").Index(i)
		t.address(alias.IP, at.Child("ip"))
		for j, name := range alias.Hostnames {
			t.word(name, at.Child("hostnames").Index(j))
			if hosts == nil {
				hosts = map[string]string{}
			}
			hosts[name] = alias.IP
		}
	}
	return hosts
}

func (t *translator) address(s string, at *field.Path) {
	if _, err := netip.ParseAddr(s); err != nil {
		t.fail(at, "%q is not an IP address", s)
	}
}

// word is one of a line in resolv.conf or hosts.
func (t *translator) word(s string, at *field.Path) {
	if s == "" || strings.ContainsAny(s, " \t\r\n\x00#") {
		t.fail(at, "%q is not one word", s)
	}
}

// ports are those of the host. Others lead nowhere but say what the image serves.
func (t *translator) ports() []*sandboxapi.PortMapping {
	var mappings []*sandboxapi.PortMapping
	for i, c := range t.pod.Spec.Containers {
		for j, p := range c.Ports {
			at := specPath.Child("containers").Index(i).Child("ports").Index(j)
			m := &sandboxapi.PortMapping{
				HostPort: uint32(p.HostPort), ContainerPort: uint32(p.ContainerPort),
				Protocol: strings.ToLower(string(p.Protocol)), HostIp: p.HostIP,
			}
			switch {
			case len(validation.IsValidPortNum(int(p.ContainerPort))) > 0:
				t.fail(at.Child("containerPort"), "%d is not a port, 1 to 65535", p.ContainerPort)
			case p.Protocol != "" && !slices.Contains([]string{"tcp", "udp", "sctp"}, m.Protocol):
				t.fail(at.Child("protocol"), "%q is not one of TCP, UDP and SCTP", p.Protocol)
			case p.HostPort == 0:
				continue
			case len(validation.IsValidPortNum(int(p.HostPort))) > 0:
				t.fail(at.Child("hostPort"), "%d is not a port, 1 to 65535", p.HostPort)
			case t.network == sandboxapi.Network_NETWORK_HOST && p.HostPort != p.ContainerPort:
				t.fail(at.Child("hostPort"), "must be the containerPort in the host's network")
			case t.network == sandboxapi.Network_NETWORK_HOST:
				continue
			case t.network == sandboxapi.Network_NETWORK_NONE:
				t.fail(at.Child("hostPort"), "leads nowhere without a network: leave it or --net none out")
			case slices.ContainsFunc(mappings, func(o *sandboxapi.PortMapping) bool {
				return o.HostPort == m.HostPort && o.HostIp == m.HostIp && cmpProtocol(o) == cmpProtocol(m)
			}):
				t.fail(at.Child("hostPort"), "%d is taken twice in this Pod", p.HostPort)
			default:
				if p.HostIP != "" {
					t.address(p.HostIP, at.Child("hostIP"))
				}
				mappings = append(mappings, m)
			}
		}
	}
	return mappings
}

func cmpProtocol(m *sandboxapi.PortMapping) string {
	if m.GetProtocol() == "" {
		return "tcp"
	}
	return m.GetProtocol()
}

// id checks a user's or group's number.
func (t *translator) id(n *int64, at *field.Path) *int64 {
	const most = 1<<31 - 1 // as Kubernetes has it
	if n != nil && (*n < 0 || *n > most) {
		t.fail(at, "%d is not a number of a user or group, 0 to %d", *n, most)
		return nil
	}
	return n
}
