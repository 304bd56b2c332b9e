package crisuite

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"testing"
	"time"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"caisson/test/daemon"
)

// TestDNS: what the pod says, and the node's own if it says nothing.
func TestDNS(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		p := s.pod(func(cfg *runtime.PodSandboxConfig) {
			cfg.DnsConfig = &runtime.DNSConfig{
				Servers: []string{"192.0.2.1", "2001:db8::1"}, Searches: []string{"a.example", "b.example"}, Options: []string{"ndots:8", "debug"},
			}
		})
		s.expect(p.sleeper("c"), "cat /etc/resolv.conf", "search a.example b.example\nnameserver 192.0.2.1\nnameserver 2001:db8::1\noptions ndots:8 debug\n")
		nodes, err := os.ReadFile("/etc/resolv.conf")
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		p = s.pod(func(cfg *runtime.PodSandboxConfig) { cfg.DnsConfig = nil })
		s.expect(p.sleeper("c"), "cat /etc/resolv.conf", string(nodes))
	})
}

// TestHostname: the pod's, the pod's sandbox's if it has none, the node's on its
// network.
func TestHostname(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		nodes, err := os.Hostname()
		if err != nil {
			t.Fatal(err)
		}
		named := s.pod(func(cfg *runtime.PodSandboxConfig) { cfg.Hostname = "a-name" })
		a := named.sleeper("c")
		s.expect(a, "hostname; cat /etc/hostname; echo $HOSTNAME", "a-name\na-name\na-name\n")
		s.refused(a, "not permitted", "hostname", "another")
		on := s.pod(namespaces(func(o *runtime.NamespaceOption) { o.Network = runtime.NamespaceMode_NODE }))
		s.expect(on.sleeper("c"), "hostname; cat /etc/hostname; echo $HOSTNAME", nodes+"\n"+nodes+"\n"+nodes+"\n")
	})
}

// TestHosts: a file of the pod, for all of its containers.
func TestHosts(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		p := s.pod()
		a, b := p.sleeper("a"), p.sleeper("b")
		s.expect(a, "echo 192.0.2.9 other >>/etc/hosts; grep -c localhost /etc/hosts | grep -v '^0'", s.Shell(b, "grep -c localhost /etc/hosts"))
		s.expect(b, "tail -n 1 /etc/hosts", "192.0.2.9 other\n")
	})
}

// webServer answers with a page that says which pod it is.
const webServer = "mkdir /www; echo page of $HOSTNAME >/www/index.html; exec httpd -f -p 80 -h /www"

// expectPage waits for the page of a pod: a server needs a moment to listen.
func (s *server) expectPage(address, hostname string) {
	s.t.Helper()
	client := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	err := daemon.Poll(s.Host.Context(time.Minute), 10*time.Second, func() error {
		resp, err := client.Get("http://" + address + "/")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err == nil && string(body) != "page of "+hostname+"\n" {
			err = fmt.Errorf("%s: %q", resp.Status, body)
		}
		return err
	})
	if err != nil {
		s.t.Errorf("http://%s: %v", address, err)
	}
}

// TestPodAddress: the node reaches the pod, and pods reach each other.
func TestPodAddress(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		p := s.pod(func(cfg *runtime.PodSandboxConfig) { cfg.PortMappings = []*runtime.PortMapping{{ContainerPort: 80}} })
		if _, err := p.start(p.config("web", webServer)); err != nil {
			t.Fatal(err)
		}
		address := p.address()
		s.expectPage(net.JoinHostPort(address, "80"), p.cfg.Hostname)
		other := s.pod()
		id := other.sleeper("c")
		s.expect(id, "wget -q -O - http://"+address+"/", "page of "+p.cfg.Hostname+"\n")
		s.expect(id, "ip -4 -o address show eth0 | grep -o 'inet [0-9.]*'", "inet "+other.address()+"\n")
		// kubelet lets pods use low ports and ping without capabilities.
		s.expect(id, "cat /proc/sys/net/ipv4/ip_unprivileged_port_start; tr '\\t' ' ' </proc/sys/net/ipv4/ping_group_range", "0\n0 2147483647\n")
		s.expect(id, "ip -o link show lo | grep -o 'LOOPBACK,UP'", "LOOPBACK,UP\n")
	})
}

// address is the pod's, in its network.
func (p *pod) address() string {
	p.s.t.Helper()
	resp, err := p.s.PodSandboxStatus(p.s.Host.Context(time.Minute), &runtime.PodSandboxStatusRequest{PodSandboxId: p.id})
	if err != nil || net.ParseIP(resp.GetStatus().GetNetwork().GetIp()) == nil {
		p.s.t.Fatalf("PodSandboxStatus: %v, %v", resp, err)
	}
	return resp.Status.Network.Ip
}

// TestHostPort: a port of the node leads into the pod until the pod has stopped.
func TestHostPort(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		port, err := freePort()
		if err != nil {
			t.Fatal(err)
		}
		p := s.pod(func(cfg *runtime.PodSandboxConfig) {
			cfg.PortMappings = []*runtime.PortMapping{{ContainerPort: 80, HostPort: port}}
		})
		if _, err := p.start(p.config("web", webServer)); err != nil {
			t.Fatal(err)
		}
		address := fmt.Sprintf("127.0.0.1:%d", port)
		s.expectPage(address, p.cfg.Hostname)
		if _, err := s.StopPodSandbox(s.Host.Context(time.Minute), &runtime.StopPodSandboxRequest{PodSandboxId: p.id}); err != nil {
			t.Errorf("StopPodSandbox: %v", err)
		}
		if conn, err := net.DialTimeout("tcp", address, 5*time.Second); err == nil {
			t.Errorf("port %d still leads somewhere", port)
			_ = conn.Close()
		}
	})
}

// freePort is one that nobody listens on; the network is the suite's own.
func freePort() (int32, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	return int32(listener.Addr().(*net.TCPAddr).Port), listener.Close()
}
