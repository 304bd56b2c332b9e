package keeper

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"

	"github.com/containerd/errdefs"

	"caisson/internal/monitor"
)

// Make makes a listening socket at a path, in place of one that nobody listens on.
type Make func(path string) (*net.UnixListener, error)

// Socket returns the daemon's own socket at path: the one that the last daemon
// left, or one that make makes. Clients that connect while no daemon is there wait
// for the next one; its connections end with the daemon.
func (k *Keeper) Socket(ctx context.Context, path string, make Make) (net.Listener, error) {
	name := socketPrefix + path
	sock := k.takeListener(name)
	if sock != nil {
		if st, err := os.Lstat(path); err == nil && st.Mode().Type() == os.ModeSocket {
			return fileListener(sock)
		}
		// Somebody removed it: nobody can connect any more.
		if err := errors.Join(k.forget(name), sock.Close()); err != nil {
			return nil, err
		}
	}
	l, err := make(path)
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false)
	defer l.Close()
	if sock, err = l.File(); err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	if err := k.keep(ctx, name, sock); err != nil {
		return nil, errors.Join(fmt.Errorf("listen on %s: %w", path, err), sock.Close())
	}
	return fileListener(sock)
}

func fileListener(sock *os.File) (net.Listener, error) {
	l, err := net.FileListener(sock)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", sock.Name(), err)
	}
	return l, nil
}

// maxGreeted bounds the connections that wait while no daemon is there.
const maxGreeted = 64

// Greeted returns a listener at path, as Socket does, for clients that give up if a
// server has not begun to speak within a second or so, and then pause: gRPC's. While
// no daemon is there, the keeper sends them the greeting. Those that wait come first.
func (k *Keeper) Greeted(ctx context.Context, path string, greeting []byte, make Make) (net.Listener, error) {
	l, err := k.Socket(ctx, path, make)
	if err != nil {
		return nil, err
	}
	k.mu.Lock()
	k.greet = func(ctx context.Context, conn *monitor.Conn) error {
		err := conn.Greet(ctx, socketPrefix+path, greetedPrefix, maxGreeted, greeting)
		if errdefs.IsNotImplemented(err) {
			return nil // an earlier version's
		}
		return err
	}
	k.mu.Unlock()
	waiting := &queued{Listener: l}
	err = k.use(ctx, func(ctx context.Context, conn *monitor.Conn) (err error) {
		if err = k.greet(ctx, conn); err == nil {
			waiting.first, err = takeGreeted(ctx, conn)
		}
		return err
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("listen on %s: %w", path, err), l.Close())
	}
	return waiting, nil
}

// takeGreeted takes over the connections that wait. Nothing was read from them.
func takeGreeted(ctx context.Context, conn *monitor.Conn) (conns []net.Conn, err error) {
	names, err := conn.Kept(ctx)
	for _, name := range names {
		if err != nil {
			break
		}
		if !strings.HasPrefix(name, greetedPrefix) {
			continue
		}
		var files []*os.File
		if files, err = conn.Fetch(ctx, name); err != nil {
			break
		}
		for _, f := range files {
			if nc, e := net.FileConn(f); e == nil { // else nobody can do anything with it
				conns = append(conns, nc)
			}
			f.Close()
		}
		err = conn.Drop(ctx, name) // from now on it ends with the daemon
	}
	return conns, err
}

// queued is a listener with connections that are there already.
type queued struct {
	net.Listener
	mu    sync.Mutex
	first []net.Conn
}

func (l *queued) Accept() (net.Conn, error) {
	l.mu.Lock()
	if len(l.first) > 0 {
		c := l.first[0]
		l.first = l.first[1:]
		l.mu.Unlock()
		return c, nil
	}
	l.mu.Unlock()
	return l.Listener.Accept()
}
