package service

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"

	"github.com/containerd/log"
	"golang.org/x/net/http2"
	"golang.org/x/sys/unix"

	"caisson/internal/keeper"
	"caisson/internal/peer"
)

// Listen makes the unix socket at path, mode 0600, in place of one that an
// earlier daemon left behind. The caller holds the lock of the directory, so
// that no other daemon listens there. Connections of anyone but root are closed
// before a byte of theirs is read.
func Listen(path string) (net.Listener, error) {
	l, err := listenUnix(path)
	if err != nil {
		return nil, err
	}
	return rootOnly{l}, nil
}

// ListenKept is Listen for a ttrpc socket that stays open when the daemon ends.
func ListenKept(ctx context.Context, k *keeper.Keeper, path string) (net.Listener, error) {
	l, err := k.Socket(ctx, path, listenUnix)
	if err != nil {
		return nil, err
	}
	return rootOnly{l}, nil
}

// ListenKeptGRPC is the same for a gRPC socket. A client that was greeted takes the
// server's own first frame for a change of its settings.
func ListenKeptGRPC(ctx context.Context, k *keeper.Keeper, path string) (net.Listener, error) {
	var greeting bytes.Buffer
	if err := http2.NewFramer(&greeting, nil).WriteSettings(); err != nil {
		return nil, err
	}
	l, err := k.Greeted(ctx, path, greeting.Bytes(), listenUnix)
	if err != nil {
		return nil, err
	}
	return rootOnly{l}, nil
}

func listenUnix(path string) (*net.UnixListener, error) {
	if st, err := os.Lstat(path); err == nil && st.Mode().Type() != os.ModeSocket {
		return nil, fmt.Errorf("listen on %s: there is something that is not a socket", path)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("listen on %s: remove the old socket: %w", path, err)
	}
	private := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
		cerr := c.Control(func(fd uintptr) { err = unix.Fchmod(int(fd), 0o600) }) // the mode that bind gives the file
		return errors.Join(cerr, err)
	}}
	l, err := private.Listen(context.Background(), "unix", path)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	return l.(*net.UnixListener), nil
}

// rootOnly is a listener of unix sockets that lets only root in.
type rootOnly struct{ net.Listener }

// Accept asks the kernel who connected, which needs no cooperation of the peer
// and so cannot hang.
func (l rootOnly) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		uid, err := peer.UID(conn)
		if err == nil && uid == 0 {
			return conn, nil
		}
		log.L.WithError(err).WithField("uid", uid).WithField("socket", l.Addr().String()).Warn("connection refused: only root may use this socket")
		_ = conn.Close() // nothing was exchanged
	}
}
