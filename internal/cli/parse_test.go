package cli

import (
	"errors"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/testing/protocmp"

	sandboxapi "caisson/api/caisson/sandbox/v1"
)

// wantInvalid checks that bad input is told as such, and in words.
func wantInvalid(t *testing.T, input string, err error) {
	t.Helper()
	if !errdefs.IsInvalidArgument(err) {
		t.Errorf("%q: error %v, want InvalidArgument", input, err)
	}
	var adv *advice
	if !errors.As(err, &adv) {
		t.Errorf("%q: error %v is no advice", input, err)
	}
}

func TestParseMemory(t *testing.T) {
	for in, want := range map[string]int64{"": 0, "64m": 64 << 20, "1.5g": 3 << 29, "67108864": 64 << 20, "512K": 512 << 10, "2GiB": 2 << 30} {
		if got, err := parseMemory(in); err != nil || got != want {
			t.Errorf("%q: %d, %v, want %d", in, got, err, want)
		}
	}
	for _, in := range []string{"lots", "-1m", "0", "4k", "1x", "m", "64 m m"} {
		_, err := parseMemory(in)
		wantInvalid(t, in, err)
	}
}

func TestParseCPUs(t *testing.T) {
	for in, want := range map[string]int64{"": 0, "0.5": 50_000, "2": 200_000, "0.01": 1000, "1.25": 125_000} {
		if got, err := parseCPUs(in); err != nil || got != want {
			t.Errorf("%q: %d, %v, want %d", in, got, err, want)
		}
	}
	for _, in := range []string{"0", "-1", "0.001", "half", "NaN", "Inf", "1e30"} {
		_, err := parseCPUs(in)
		wantInvalid(t, in, err)
	}
}

func TestParseVolume(t *testing.T) {
	bind := func(src, dst, access string) specs.Mount {
		return specs.Mount{Source: src, Destination: dst, Type: "bind", Options: []string{"rbind", "rprivate", access}}
	}
	for in, want := range map[string]specs.Mount{
		"/a:/b":         bind("/a", "/b", "rw"),
		"/a/:/b/c/:ro":  bind("/a", "/b/c", "ro"),
		"/a:/b:rw":      bind("/a", "/b", "rw"),
		"./x:/b":        bind("/cwd/x", "/b", "rw"),
		"../x:/b":       bind("/x", "/b", "rw"),
		"/a:/../../etc": bind("/a", "/etc", "rw"),
	} {
		got, err := parseVolume(in, "/cwd")
		if err != nil {
			t.Errorf("%q: %v", in, err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%q: %s", in, diff)
		}
	}
	for _, in := range []string{"", "/a", ":", "/a:", ":/b", "/a:b", "data:/b", "/a:/b:rx", "/a:/b:ro:z", "/a:/", "/a:/.."} {
		_, err := parseVolume(in, "/cwd")
		wantInvalid(t, in, err)
	}
}

func FuzzParseVolume(f *testing.F) {
	for _, s := range []string{"/a:/b", "./a:/b:ro", "a:b", "::::", "/a:/../b"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		m, err := parseVolume(s, "/cwd")
		if err != nil {
			return
		}
		if m.Source[0] != '/' || m.Destination[0] != '/' || m.Destination == "/" || strings.Contains(m.Destination, "..") && strings.Contains(m.Destination, "/../") {
			t.Errorf("%q: %+v", s, m)
		}
	})
}

func TestParseEnv(t *testing.T) {
	own := map[string]string{"HOME": "/root"}
	got, err := parseEnv([]string{"A=1", "B=x=y", "C=", "HOME", "GONE"}, func(k string) string { return own[k] })
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"A=1", "B=x=y", "C=", "HOME=/root"}, got); diff != "" {
		t.Error(diff)
	}
	for _, in := range []string{"", "=x", "A=\x00"} {
		_, err := parseEnv([]string{in}, func(string) string { return "" })
		wantInvalid(t, in, err)
	}
}

func TestParsePairs(t *testing.T) {
	got, err := parsePairs("label", []string{"a=1", "b=", "c=x=y", "a=2"})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]string{"a": "2", "b": "", "c": "x=y"}, got); diff != "" {
		t.Error(diff)
	}
	for _, in := range []string{"", "a", "=a"} {
		_, err := parsePairs("label", []string{in})
		wantInvalid(t, in, err)
	}
}

func TestParsePort(t *testing.T) {
	for in, want := range map[string]*sandboxapi.PortMapping{
		"8080:80":           {HostPort: 8080, ContainerPort: 80},
		"53:53/udp":         {HostPort: 53, ContainerPort: 53, Protocol: "udp"},
		"127.0.0.1:8080:80": {HostPort: 8080, ContainerPort: 80, HostIp: "127.0.0.1"},
		"[::1]:8080:80/tcp": {HostPort: 8080, ContainerPort: 80, HostIp: "::1", Protocol: "tcp"},
	} {
		got, err := parsePort(in)
		if err != nil {
			t.Errorf("%q: %v", in, err)
		}
		if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
			t.Errorf("%q: %s", in, diff)
		}
	}
	for _, in := range []string{"", "80", "0:80", "80:0", "70000:80", "80:70000", "a:b", "80:80/icmp", "host:80:80", "::80"} {
		_, err := parsePort(in)
		wantInvalid(t, in, err)
	}
}

func TestSandboxOptions(t *testing.T) {
	f := sandboxFlags{
		network: "cni", hostname: "box", isolation: "namespace", cgroupParent: "/pods", shmSize: "128m",
		dns: []string{"10.0.0.53"}, dnsSearch: []string{"example"}, dnsOption: []string{"ndots:2"},
		sysctls: []string{"net.core.somaxconn=10"}, ports: []string{"8080:80"}, hosts: []string{"db:10.0.0.2", "six:::1"},
		sharePID: true, hostIPC: true, limits: limitFlags{memory: "64m", cpus: "0.5", pids: 20},
	}
	got, err := f.options()
	if err != nil {
		t.Fatal(err)
	}
	want := &sandboxapi.Options{
		Hostname: "box", Network: sandboxapi.Network_NETWORK_CNI, Isolation: "namespace", CgroupParent: "/pods", ShmSize: 128 << 20,
		Dns:          &sandboxapi.DNS{Servers: []string{"10.0.0.53"}, Searches: []string{"example"}, Options: []string{"ndots:2"}},
		Sysctls:      map[string]string{"net.core.somaxconn": "10"},
		PortMappings: []*sandboxapi.PortMapping{{HostPort: 8080, ContainerPort: 80}},
		ExtraHosts:   map[string]string{"db": "10.0.0.2", "six": "::1"},
		Namespaces:   &sandboxapi.Namespaces{SharePid: true, HostIpc: true},
		Resources:    &sandboxapi.Resources{MemoryLimit: 64 << 20, CpuQuota: 50_000, CpuPeriod: cpuPeriod, PidsLimit: 20},
	}
	if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
	for name, bad := range map[string]sandboxFlags{
		"network":  {network: "bridge"},
		"hostname": {hostname: "a_b"},
		"long":     {hostname: strings.Repeat("a", 64)},
		"dns":      {dns: []string{"nameserver"}},
		"search":   {dnsSearch: []string{"a\nnameserver 1.2.3.4"}},
		"option":   {dnsOption: []string{""}},
		"hosts":    {hosts: []string{"db"}},
		"address":  {hosts: []string{"db:x"}},
		"publish":  {network: "none", ports: []string{"1:1"}},
		"shm":      {shmSize: "big"},
		"pids":     {limits: limitFlags{pids: -1}},
		"pid":      {sharePID: true, hostPID: true},
	} {
		_, err := bad.options()
		wantInvalid(t, name, err)
	}
}

func TestSandboxID(t *testing.T) {
	for _, c := range []struct {
		name string
		args []string
		want string
	}{{"", []string{"a1"}, "a1"}, {"a1", nil, "a1"}, {"a1", []string{"a1"}, "a1"}} {
		if got, err := (&sandboxFlags{name: c.name}).id(c.args); err != nil || got != c.want {
			t.Errorf("%+v: %q, %v", c, got, err)
		}
	}
	if got, err := (&sandboxFlags{}).id(nil); err != nil || len(got) != 12 {
		t.Errorf("random: %q, %v", got, err)
	}
	for _, bad := range []string{"a/b", "..", ".", "", "a..b", "-a", strings.Repeat("x", 77)} {
		_, err := (&sandboxFlags{}).id([]string{bad})
		wantInvalid(t, bad, err)
	}
	_, err := (&sandboxFlags{name: "a"}).id([]string{"b"})
	wantInvalid(t, "two names", err)
}
