package libcontainerd

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"

	"caisson/test/harness"
)

// proxy stands between a client and a server's socket, and breaks connections.
type proxy struct {
	address, server string
	listener        net.Listener
	serving         sync.WaitGroup

	mu     sync.Mutex // guards those below
	conns  map[net.Conn]struct{}
	paused bool
}

func newProxy(t testing.TB, server string) *proxy {
	t.Helper()
	p := &proxy{address: server + unique("p"), server: server, conns: map[net.Conn]struct{}{}}
	var err error
	if p.listener, err = net.Listen("unix", p.address); err != nil {
		t.Fatal(err)
	}
	p.serving.Go(p.serve)
	t.Cleanup(func() {
		_ = p.listener.Close() // and the socket is gone
		p.pause()
		p.serving.Wait()
	})
	return p
}

func (p *proxy) serve() {
	for {
		conn, err := p.listener.Accept()
		if err != nil {
			return
		}
		p.serving.Go(func() { p.pass(conn) })
	}
}

func (p *proxy) pass(conn net.Conn) {
	defer conn.Close()
	if !p.add(conn) {
		return
	}
	defer p.remove(conn)
	server, err := net.Dial("unix", p.server)
	if err != nil {
		return
	}
	defer server.Close()
	p.serving.Go(func() {
		_, _ = io.Copy(server, conn)
		_ = server.Close()
	})
	_, _ = io.Copy(conn, server) // until one of the two is closed
}

func (p *proxy) add(conn net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.paused {
		return false
	}
	p.conns[conn] = struct{}{}
	return true
}

func (p *proxy) remove(conn net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.conns, conn)
}

// pause breaks all connections and lets none through until resume.
func (p *proxy) pause() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.paused = true
	for conn := range p.conns {
		_ = conn.Close()
	}
}

func (p *proxy) resume() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.paused = false
}

// cut breaks all connections; new ones come through.
func (p *proxy) cut() {
	p.pause()
	p.resume()
}

// client makes clients that go through the proxy, and come back fast.
func (p *proxy) client(namespace string) func() (*containerd.Client, error) {
	return func() (*containerd.Client, error) {
		return containerd.New(p.address, containerd.WithDefaultNamespace(namespace), containerd.WithExtraDialOpts([]grpc.DialOption{
			grpc.WithConnectParams(grpc.ConnectParams{
				Backoff:           backoff.Config{BaseDelay: 20 * time.Millisecond, Multiplier: 1.5, MaxDelay: 200 * time.Millisecond},
				MinConnectTimeout: 5 * time.Second,
			}),
		}))
	}
}

// theirs is an exec of another program.
type theirs struct {
	containerd.Process
	ctx    context.Context
	exited <-chan containerd.ExitStatus
}

func otherExec(ctx context.Context, t *testing.T, other *containerd.Client, id, exec, script string) *theirs {
	t.Helper()
	x, err := startOther(ctx, other, id, exec, script)
	must(t, "exec of another program", err)
	return x
}

func startOther(ctx context.Context, other *containerd.Client, id, exec, script string) (*theirs, error) {
	c, err := other.LoadContainer(ctx, id)
	if err != nil {
		return nil, err
	}
	task, err := c.Task(ctx, nil)
	if err != nil {
		return nil, err
	}
	p, err := task.Exec(ctx, exec, shell(script), cio.NullIO)
	if err != nil {
		return nil, err
	}
	exited, err := p.Wait(ctx)
	if err != nil {
		return nil, err
	}
	return &theirs{Process: p, ctx: ctx, exited: exited}, p.Start(ctx)
}

func (x *theirs) wait() error {
	st := <-x.exited
	return st.Error()
}

func (x *theirs) remove() error {
	_, err := x.Delete(x.ctx)
	return err
}

// endpoint is where a program that does not use the library finds the task service
// of the sandbox: in the sandboxer's verbose answer.
func (s *server) endpoint(e *engine) []containerd.NewTaskOpts {
	if e.sandbox == nil {
		return nil
	}
	st, err := e.sandbox.Status(harness.Context(s.t, limit), true)
	must(s.t, "Status", err)
	var at struct {
		Address string
		Version uint32
	}
	must(s.t, fmt.Sprintf("info %q", st.Info["info"]), json.Unmarshal([]byte(st.Info["info"]), &at))
	return []containerd.NewTaskOpts{containerd.WithTaskAPIEndpoint(at.Address, at.Version)}
}
