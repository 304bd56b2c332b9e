package crisuite

import (
	"fmt"
	"io"
	"strings"
	"testing"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// echo runs a container that listens on ports, says which and sends back what it
// is sent.
func (p *pod) echo(t *testing.T, ports ...int) (id string) {
	t.Helper()
	var script strings.Builder
	for _, port := range ports {
		fmt.Fprintf(&script, "nc -ll -p %d -e sh -c 'printf \"%d \"; exec cat' & ", port, port)
	}
	id = p.launch("echo", script.String()+"wait")
	for _, port := range ports { // it answers by now
		p.s.expect(id, fmt.Sprintf("until nc 127.0.0.1 %d </dev/null 2>/dev/null; do usleep 20000; done", port), fmt.Sprintf("%d ", port))
	}
	return id
}

func (p *pod) forward(ports ...int32) (url string) {
	p.s.t.Helper()
	return ask(p.s, p.s.PortForward, &runtime.PortForwardRequest{PodSandboxId: p.id, Port: ports}).Url
}

// TestForward forwards several connections to several ports at once.
func TestForward(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		p := s.pod()
		p.echo(t, 8080, 8081)
		f := s.Host.Forwarder(p.forward(8080, 8081))
		type connection struct {
			port    int
			data    io.ReadWriteCloser
			failure io.Reader
		}
		var all []connection
		for _, port := range []int{8080, 8081, 8080} {
			data, failure := f.Connect(port)
			all = append(all, connection{port, data, failure})
		}
		for i, c := range all { // all are open, each is its own
			s.say(c.data, fmt.Sprintf("number %d\n", i))
		}
		for i, c := range all {
			if before := s.hear(c.data, fmt.Sprintf("%d number %d\n", c.port, i)); before != "" {
				t.Errorf("connection %d: %q", i, before)
			}
		}
		for i, c := range all {
			if err := c.data.Close(); err != nil {
				t.Fatal(err)
			}
			if rest, failure := s.hearAll(c.data), s.hearAll(c.failure); rest != "" || failure != "" {
				t.Errorf("connection %d ends with %q, failure %q", i, rest, failure)
			}
		}
	})
}

// TestForwardLarge moves data both ways at once.
func TestForwardLarge(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		p := s.pod()
		p.echo(t, 8080)
		data, failure := s.Host.Forwarder(p.forward(8080)).Connect(8080)
		big := letters(2 << 20)
		go func() {
			_, _ = io.WriteString(data, big) // an error shows in what comes back
			_ = data.Close()
		}()
		if got := s.hearAll(data); got != "8080 "+big {
			t.Errorf("of %d bytes %d came back", len(big), len(got)-len("8080 "))
		}
		if why := s.hearAll(failure); why != "" {
			t.Errorf("failure %q", why)
		}
	})
}

// TestForwardNowhere: a port that nobody listens on says so, and harms no other.
func TestForwardNowhere(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		p := s.pod()
		p.echo(t, 8080)
		f := s.Host.Forwarder(p.forward(8080, 8089))
		data, failure := f.Connect(8089)
		if why := s.hearAll(failure); !strings.Contains(why, "8089") || !strings.Contains(why, "refused") {
			t.Errorf("failure: %q", why)
		}
		if got := s.hearAll(data); got != "" {
			t.Errorf("data: %q", got)
		}
	})
}

// TestForwardHostNetwork forwards to a port of the host.
func TestForwardHostNetwork(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		p := s.pod(namespaces(func(n *runtime.NamespaceOption) { n.Network = runtime.NamespaceMode_NODE }))
		port := map[string]int{embedded: 18091, stock: 18092, reference: 18093}[s.Name] // the servers share the network
		p.echo(t, port)
		data, _ := s.Host.Forwarder(p.forward(int32(port))).Connect(port)
		s.say(data, "hello\n")
		s.hear(data, fmt.Sprintf("%d hello\n", port))
	})
}

// TestForwardStopped: a pod that is stopped has no ports.
func TestForwardStopped(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		p := s.pod()
		p.stop()
		refuse(s, s.PortForward, &runtime.PortForwardRequest{PodSandboxId: p.id, Port: []int32{80}})
	})
}
