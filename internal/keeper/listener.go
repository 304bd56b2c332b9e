package keeper

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/log"
	"golang.org/x/sys/unix"

	"caisson/internal/fault"
)

// Listener is a socket that stays open when the daemon ends. The keeper accepts
// its connections, at the daemon's request: a client is never known to a daemon
// alone, which could be killed.
type Listener struct {
	k     *Keeper
	name  string // of what the keeper keeps
	owner string
	sock  *os.File
	raw   syscall.RawConn
	close func() error

	mu      sync.Mutex
	adopted []*Conn // to be returned first
}

// Listen returns the owner's socket at path: the one that the last daemon left, or
// a new one. Its first connections are those that the last daemon left.
func (k *Keeper) Listen(ctx context.Context, owner, path string, make Make) (*Listener, error) {
	name := listenerPrefix + owner
	sock := k.takeListener(name)
	if sock == nil {
		var err error
		if sock, err = k.listen(ctx, name, path, make); err != nil {
			return nil, err
		}
	}
	raw, err := sock.SyscallConn()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("listen on %s: %w", path, err), sock.Close())
	}
	l := &Listener{k: k, name: name, owner: owner, sock: sock, raw: raw, adopted: k.takeConns(owner)}
	l.close = sync.OnceValue(sock.Close)
	return l, nil
}

// listen makes a socket.
func (k *Keeper) listen(ctx context.Context, name, path string, make Make) (*os.File, error) {
	l, err := make(path)
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false)
	sock, err := l.File()
	err = errors.Join(err, l.Close())
	if err == nil {
		if sock, err = pollable(sock); err == nil {
			err = k.keep(ctx, name, sock)
		}
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("listen on %s: %w", path, err), sock.Close(), os.Remove(path))
	}
	return sock, nil
}

// pollable makes a file whose readiness can be waited for; the old one is closed.
func pollable(f *os.File) (*os.File, error) {
	defer f.Close()
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return f, err
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		return f, errors.Join(err, unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}

// Addr is for messages.
func (l *Listener) Addr() net.Addr { return &net.UnixAddr{Name: l.owner, Net: "unix"} }

// Close lets go of the socket, which stays open: the next daemon gets it.
func (l *Listener) Close() error { return l.close() }

// Remove closes the socket for good. Connections stay.
func (l *Listener) Remove() error { return errors.Join(l.k.forget(l.name), l.close()) }

// retryPause is between two attempts to accept a connection when the machine is
// short of something.
const retryPause = 50 * time.Millisecond

// Accept returns the next connection.
func (l *Listener) Accept() (net.Conn, error) {
	l.mu.Lock()
	if len(l.adopted) > 0 {
		c := l.adopted[0]
		l.adopted = l.adopted[1:]
		l.mu.Unlock()
		return c, nil
	}
	l.mu.Unlock()
	for {
		var c *Conn
		var err error
		rerr := l.raw.Read(func(fd uintptr) bool {
			if !readable(int(fd)) {
				return false
			}
			c, err = l.accept()
			return !errors.Is(err, unix.EAGAIN)
		})
		if rerr != nil {
			return nil, net.ErrClosed
		}
		if err == nil {
			return c, nil
		}
		log.L.WithError(err).WithField("socket", l.owner).Error("accept a connection")
		select {
		case <-l.k.closing:
			return nil, net.ErrClosed
		case <-time.After(retryPause):
		}
	}
}

func readable(fd int) bool {
	p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	n, err := unix.Poll(p, 0)
	return err == nil && n > 0
}

func (l *Listener) accept() (*Conn, error) {
	j, err := createJournal()
	if err != nil {
		return nil, err
	}
	name := connPrefix + l.owner + "/" + randomID()
	sock, err := l.k.accept(l.name, name, j.f)
	if err != nil {
		return nil, errors.Join(err, j.f.Close())
	}
	fault.Point("connection:accepted")
	defer sock.Close()
	c, err := newConn(l.k, name, sock, j)
	if err != nil {
		return nil, errors.Join(err, l.k.forget(name), j.f.Close())
	}
	if !l.k.add(c) {
		return nil, errors.Join(net.ErrClosed, c.Close())
	}
	return c, nil
}

func randomID() string {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}
