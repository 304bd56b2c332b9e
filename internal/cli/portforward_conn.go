package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"sync"
	"time"

	"github.com/containernetworking/plugins/pkg/ns"
)

// retryPause is how long to wait before what failed is tried again.
const retryPause = 100 * time.Millisecond

// forwarder passes the connections of one listener on.
type forwarder struct {
	app       *app
	netNS     string
	sandboxID string
	port      uint16
}

// serve ends with ctx, when the listener and all connections are closed. Nothing but that
// ends it: what keeps a connection from being accepted, such as too many open files, passes.
func (f *forwarder) serve(ctx context.Context, l net.Listener) error {
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	var conns sync.WaitGroup
	defer conns.Wait()
	for {
		conn, err := l.Accept()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				conn.Close()
			}
			return ctx.Err()
		case errors.Is(err, net.ErrClosed):
			return err
		case err != nil:
			f.app.warn(err)
			if err := sleep(ctx, retryPause); err != nil {
				return err
			}
			continue
		}
		conns.Go(func() {
			if err := f.pass(ctx, conn); err != nil && ctx.Err() == nil {
				f.app.warn(err)
			}
		})
	}
}

// pass connects to the sandbox and copies both ways, until both ends have been reached.
func (f *forwarder) pass(ctx context.Context, local net.Conn) error {
	defer local.Close()
	remote, err := f.dial(ctx)
	if err != nil {
		return fmt.Errorf("sandbox %q: port %d: %w", f.sandboxID, f.port, err)
	}
	defer remote.Close()
	stop := context.AfterFunc(ctx, func() { local.Close(); remote.Close() })
	defer stop()
	var wg sync.WaitGroup
	defer wg.Wait()
	for _, way := range [][2]net.Conn{{local, remote}, {remote, local}} {
		wg.Go(func() {
			from, to := way[0].(*net.TCPConn), way[1].(*net.TCPConn)
			_, err := io.Copy(to, from)
			if err == nil {
				err = to.CloseWrite() // the other way goes on
			}
			if err != nil {
				// One of them broke off. The other one must not take that for an end.
				for _, conn := range []*net.TCPConn{from, to} {
					_ = conn.SetLinger(0) // it may be closed already
					conn.Close()
				}
			}
		})
	}
	return nil
}

// dial connects to a server that listens at either loopback address. With an address
// instead of a name, the socket is made by the thread that is in the sandbox's network.
func (f *forwarder) dial(ctx context.Context) (conn net.Conn, err error) {
	connect := func(ns.NetNS) error {
		var dialer net.Dialer
		var refused error
		for _, loopback := range []string{"127.0.0.1", "::1"} {
			c, err := dialer.DialContext(ctx, "tcp", net.JoinHostPort(loopback, strconv.Itoa(int(f.port))))
			if err == nil {
				conn = c
				return nil
			}
			if refused == nil {
				refused = err
			}
		}
		return refused
	}
	if f.netNS == "" {
		err = connect(nil)
	} else {
		err = ns.WithNetNSPath(f.netNS, connect)
	}
	return conn, err
}
