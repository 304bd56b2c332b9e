package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestParseForwards(t *testing.T) {
	at := netip.MustParseAddrPort
	for text, want := range map[string][]forward{
		"127.0.0.1 80":           {{at("127.0.0.1:80"), 80}},
		"localhost 8080:80":      {{at("127.0.0.1:8080"), 80}},
		"::1 :80":                {{at("[::1]:0"), 80}},
		"0.0.0.0 1:2 65535":      {{at("0.0.0.0:1"), 2}, {at("0.0.0.0:65535"), 65535}},
		"127.0.0.1 ":             nil,
		"127.0.0.1 0":            nil,
		"127.0.0.1 80:":          nil,
		"127.0.0.1 1:2:3":        nil,
		"127.0.0.1 65536":        nil,
		"127.0.0.1 -1:80":        nil,
		"127.0.0.1 http":         nil,
		"127.0.0.1 +80":          nil,
		"example.com 80":         nil,
		"127.0.0.1:80 80":        nil,
		"127.0.0.1 192.0.2.1:80": nil,
	} {
		address, ports, _ := strings.Cut(text, " ")
		got, err := parseForwards([]string{address}, strings.Split(ports, " "))
		if !slices.Equal(got, want) || (err == nil) != (want != nil) {
			t.Errorf("%s: %v, %v", text, got, err)
		}
	}
	got, err := parseForwards([]string{"127.0.0.1", "::1"}, []string{"8080:80"})
	want := []forward{{at("127.0.0.1:8080"), 80}, {at("[::1]:8080"), 80}}
	if diff := cmp.Diff(fmt.Sprint(want), fmt.Sprint(got)); diff != "" || err != nil {
		t.Errorf("two addresses: %v\n%s", err, diff)
	}
}

// forwarding is a forwarder without a sandbox, to a server of the test.
func forwarding(t *testing.T, server func(*net.TCPConn)) (address string, errs *syncBuffer) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	t.Cleanup(wg.Wait)
	t.Cleanup(cancel)
	listen := func() net.Listener {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		return l
	}
	remote, local := listen(), listen()
	context.AfterFunc(ctx, func() { remote.Close() })
	wg.Go(func() {
		for {
			conn, err := remote.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer conn.Close()
				server(conn.(*net.TCPConn))
			})
		}
	})
	errs = &syncBuffer{}
	f := &forwarder{app: &app{sys: System{Stderr: errs}}, sandboxID: "pod1", port: uint16(remote.Addr().(*net.TCPAddr).Port)}
	wg.Go(func() { _ = f.serve(ctx, local) })
	return local.Addr().String(), errs
}

type syncBuffer struct {
	mu  sync.Mutex // guards buf
	buf bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

func dialTCP(t *testing.T, address string) *net.TCPConn {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn.(*net.TCPConn)
}

// Many at once; each side says that it has no more to say, and still hears the other.
func TestForwardHalfClose(t *testing.T) {
	address, errs := forwarding(t, func(conn *net.TCPConn) {
		all, err := io.ReadAll(conn) // until the client has closed its half
		if err == nil {
			_, _ = conn.Write(append([]byte("heard "), all...))
		}
	})
	var wg sync.WaitGroup
	for i := range 30 {
		conn := dialTCP(t, address)
		wg.Go(func() {
			said := strings.Repeat(fmt.Sprint(i), 10_000)
			if _, err := io.WriteString(conn, said); err != nil {
				t.Error(err)
			}
			if err := conn.CloseWrite(); err != nil {
				t.Error(err)
			}
			if answer, err := io.ReadAll(conn); err != nil || string(answer) != "heard "+said {
				t.Errorf("connection %d: %d bytes, %v", i, len(answer), err)
			}
		})
	}
	wg.Wait()
	if errs.String() != "" {
		t.Errorf("told %s", errs)
	}
}

// A server that is gone altogether ends the connection of a client that only sends.
func TestForwardServerGone(t *testing.T) {
	address, _ := forwarding(t, func(conn *net.TCPConn) {
		_ = conn.SetLinger(0)
	})
	conn, err := net.Dial("tcp", address)
	if errors.Is(err, syscall.ECONNRESET) {
		return // so soon
	}
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for {
		if _, err := conn.Write(make([]byte, 1<<16)); err != nil {
			return // in the end
		}
	}
}

func TestForwardNobodyListens(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := uint16(l.Addr().(*net.TCPAddr).Port)
	l.Close()
	local, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	errs := &syncBuffer{}
	f := &forwarder{app: &app{sys: System{Stderr: errs}}, sandboxID: "pod1", port: port}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- f.serve(ctx, local) }()
	if rest, err := io.ReadAll(dialTCP(t, local.Addr().String())); len(rest) > 0 {
		t.Errorf("got %q, %v", rest, err)
	}
	told := func() bool { // after the connection was closed
		return strings.Contains(errs.String(), fmt.Sprintf(`sandbox "pod1": port %d: `, port)) && strings.Contains(errs.String(), "connection refused")
	}
	for limit := time.Now().Add(10 * time.Second); !told() && time.Now().Before(limit); {
		runtime.Gosched()
	}
	cancel()
	<-done
	if !told() {
		t.Errorf("told %q", errs)
	}
}

func TestPortForwardRefuses(t *testing.T) {
	d := startFake(t)
	d.must(t, "sandbox", "create", "pod1")
	d.refused(t, "needs a sandbox and a port", "port-forward", "pod1")
	d.refused(t, "names no ports", "port-forward", "pod1", "web")
	d.refused(t, "no IP address", "port-forward", "--bind", "here", "pod1", "80")
	d.refused(t, `no sandbox "nowhere"`, "port-forward", "nowhere", "80")
	d.refused(t, "caisson sandbox start pod1", "port-forward", "pod1", "80")
	d.must(t, "sandbox", "start", "pod1")
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	d.refused(t, "is in use", "port-forward", "pod1", fmt.Sprint(taken.Addr().(*net.TCPAddr).Port)+":80")
	d.refused(t, "no address of this host", "port-forward", "--bind", "192.0.2.1", "pod1", ":80")
	// The fake's sandbox stops as soon as somebody waits for it.
	d.refused(t, `sandbox "pod1" has stopped`, "port-forward", "pod1", ":80")
}
