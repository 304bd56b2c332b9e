package service

import (
	"net"
	"sync"
)

// tracked remembers the connections a listener accepted, to close them all. A
// ttrpc server has no way to end a connection with a call in flight.
type tracked struct {
	net.Listener

	mu     sync.Mutex // guards what follows
	conns  map[*trackedConn]struct{}
	closed bool
}

type trackedConn struct {
	net.Conn
	owner *tracked
}

func track(l net.Listener) *tracked {
	return &tracked{Listener: l, conns: map[*trackedConn]struct{}{}}
}

func (t *tracked) Accept() (net.Conn, error) {
	conn, err := t.Listener.Accept()
	if err != nil {
		return nil, err
	}
	tc := &trackedConn{conn, t}
	t.mu.Lock()
	closed := t.closed
	if !closed {
		t.conns[tc] = struct{}{}
	}
	t.mu.Unlock()
	if closed {
		_ = conn.Close() // nothing was exchanged
		return nil, net.ErrClosed
	}
	return tc, nil
}

// closeConns closes every open connection, and those still to be accepted.
func (t *tracked) closeConns() {
	t.mu.Lock()
	t.closed = true
	var open []*trackedConn
	for c := range t.conns {
		open = append(open, c)
	}
	t.mu.Unlock()
	for _, c := range open {
		_ = c.Close() // the point is to cut off
	}
}

func (c *trackedConn) Close() error {
	c.owner.mu.Lock()
	delete(c.owner.conns, c)
	c.owner.mu.Unlock()
	return c.Conn.Close()
}
