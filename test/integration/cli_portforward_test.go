package integration

import (
	"fmt"
	"io"
	"net"
	"regexp"
	"strings"
	"sync"
	"testing"

	"github.com/containernetworking/plugins/pkg/ns"

	"caisson/test/daemon"
	"caisson/test/harness"
)

var forwarded = regexp.MustCompile(`Forwarding from (\S+) ->`)

func TestCLIPortForward(t *testing.T) {
	h := harness.Start(t, daemon.Options{})
	defer h.Caisson("sandbox", "rm", "-f", "pod1")
	h.Caisson("sandbox", "create", "pod1")
	h.Caisson("sandbox", "start", "pod1")
	h.Caisson("run", "-d", "--name", "echo", "--sandbox", "pod1", harness.Image, "sh", "-c", "trap exit TERM; nc -ll -p 7 -e cat & wait")
	h.Caisson("exec", "echo", "sh", "-c", "until echo | nc 127.0.0.1 7; do usleep 20000; done")
	serveEcho(t, strings.TrimSpace(h.Caisson("sandbox", "inspect", "-f", "{{.info.netnsPath}}", "pod1")), "127.0.0.1:70", "[::1]:71")

	term := h.Terminal("caisson", "port-forward", "pod1", ":70", ":71", ":7")
	seen := term.Expect("-> 7\r\n")
	var ports []string
	for _, m := range forwarded.FindAllStringSubmatch(seen, -1) {
		ports = append(ports, m[1])
	}
	if len(ports) != 3 {
		t.Fatalf("port-forward: %q", seen)
	}
	var wg sync.WaitGroup
	for i := range 60 {
		text := strings.Repeat(fmt.Sprint(i), 100_000)
		wg.Go(func() {
			if answer, err := echo(ports[i%2], text); err != nil || answer != text {
				t.Errorf("connection %d: %d bytes, %v", i, len(answer), err)
			}
		})
	}
	wg.Wait()
	address := ports[2]
	if answer, err := echo(address, "to a container"); err != nil || answer != "to a container" {
		t.Errorf("got %q, %v", answer, err)
	}
	// It does not need the daemon for what comes next.
	h.Crash()
	if answer, err := echo(address, "without a daemon"); err != nil || answer != "without a daemon" {
		t.Errorf("got %q, %v", answer, err)
	}
	h.StartDaemon()
	open, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	term.Type("\x03")
	if code, out := term.Wait(); code != 0 {
		t.Errorf("after Ctrl-C: exit code %d:\n%s", code, out)
	}
	if n, err := open.Read(make([]byte, 1)); err == nil {
		t.Errorf("a connection outlives it: %d bytes", n)
	}

	term = h.Terminal("caisson", "port-forward", "pod1", ":9")
	if answer, _ := echo(forwarded.FindStringSubmatch(term.Expect("-> 9\r\n"))[1], "x"); answer != "" {
		t.Errorf("a port without a server answers %q", answer)
	}
	term.Expect("connection refused")
	h.Caisson("sandbox", "stop", "pod1")
	if code, out := term.Wait(); code != 1 || !strings.Contains(out, `sandbox "pod1" has stopped`) {
		t.Errorf("after the sandbox has stopped: exit code %d:\n%s", code, out)
	}
	if res := h.TryCaisson("port-forward", "pod1", "7"); res.Code != 1 || !strings.Contains(res.Stderr, "caisson sandbox start pod1") {
		t.Errorf("port-forward to a sandbox that has stopped: %+v", res)
	}
}

// serveEcho sends everything back, in a sandbox's network, until the test ends. Unlike
// busybox's servers it takes many connections at once.
func serveEcho(t *testing.T, netNS string, addresses ...string) {
	t.Helper()
	var wg sync.WaitGroup
	t.Cleanup(wg.Wait)
	for _, address := range addresses {
		var l net.Listener
		if err := ns.WithNetNSPath(netNS, func(ns.NetNS) (err error) {
			l, err = net.Listen("tcp", address)
			return err
		}); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		wg.Go(func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				wg.Go(func() {
					defer conn.Close()
					_, _ = io.Copy(conn, conn) // the client says what is wrong
				})
			}
		})
	}
}

// echo says something, and nothing more, and hears what comes back.
func echo(address, text string) (string, error) {
	conn, err := net.Dial("tcp", address)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	said := make(chan error, 1)
	go func() {
		_, err := io.WriteString(conn, text)
		if err == nil {
			err = conn.(*net.TCPConn).CloseWrite()
		}
		said <- err
	}()
	answer, err := io.ReadAll(conn)
	if serr := <-said; err == nil {
		err = serr
	}
	return string(answer), err
}
