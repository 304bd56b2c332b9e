package stdio

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"golang.org/x/sys/unix"

	"caisson/internal/fault"
	"caisson/internal/peer"
)

// maxSocketPath is what fits into sockaddr_un with its final zero byte.
const maxSocketPath = 107

// maxConsoleFiles bounds what is taken from a runtime that sends more than it should.
const maxConsoleFiles = 8

// ConsoleSocket is where the OCI runtime sends the master of the pty that it made for a
// process (its option --console-socket).
type ConsoleSocket struct {
	path     string
	listener *net.UnixListener
	file     *os.File // a duplicate, since a listener cannot be waited for
}

// Listen makes the socket, mode 0600, under a name of its own in dir.
func Listen(dir string) (*ConsoleSocket, error) {
	path := filepath.Join(dir, consolePrefix+rand.Text()[:8])
	if len(path) > maxSocketPath {
		return nil, fmt.Errorf("console socket %q: path longer than %d bytes: %w", path, maxSocketPath, errdefs.ErrInvalidArgument)
	}
	if err := fault.Fail("console:listen", unix.EMFILE, unix.ENOSPC); err != nil {
		return nil, fmt.Errorf("console socket %q: listen: %w", path, classify(err))
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("console socket %q: listen: %w", path, classify(err))
	}
	c := &ConsoleSocket{path: path, listener: l}
	if err = os.Chmod(path, 0o600); err == nil {
		c.file, err = l.File()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("console socket %q: %w", path, classify(err)), l.Close())
	}
	return c, nil
}

const consolePrefix = "console-"

// RemoveStale removes the sockets in dir whose daemon did not live to do so.
func RemoveStale(dir string) error {
	paths, err := filepath.Glob(filepath.Join(dir, consolePrefix+"*"))
	for _, path := range paths {
		err = errors.Join(err, os.Remove(path))
	}
	return err
}

// Path is what the OCI runtime is told.
func (c *ConsoleSocket) Path() string { return c.path }

// Close removes the socket. It may be repeated.
func (c *ConsoleSocket) Close() error {
	_ = c.file.Close() // a duplicate, perhaps closed already
	if err := c.listener.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("console socket %q: close: %w", c.path, err)
	}
	return nil
}

// File is the listening socket, for somebody who keeps it open: what the runtime sends
// then waits for another daemon. Close closes it here.
func (c *ConsoleSocket) File() *os.File { return c.file }

// Await waits for somebody to connect. ctx must end when the runtime does, since it may
// fail without connecting.
func (c *ConsoleSocket) Await(ctx context.Context) error {
	raw, err := c.file.SyscallConn()
	if err != nil {
		return fmt.Errorf("console socket %q: %w", c.path, err)
	}
	stop := context.AfterFunc(ctx, func() { _ = c.file.SetDeadline(past) }) // it has deadlines, or is closed
	defer stop()
	if err := raw.Read(connected); err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return fmt.Errorf("console socket %q: wait for the terminal: %w", c.path, err)
	}
	return nil
}

func connected(fd uintptr) bool {
	p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	n, err := unix.Poll(p, 0)
	return err == nil && n > 0
}

// past is a deadline that ends what waits.
var past = time.Unix(1, 0)

// Accept accepts connections until one has sent the master, and removes the socket, also
// after an error. As for Await, ctx must end when the runtime does.
func (c *ConsoleSocket) Accept(ctx context.Context) (_ *os.File, err error) {
	defer func() { err = errors.Join(err, c.Close()) }()
	for {
		if err := c.Await(ctx); err != nil {
			return nil, err
		}
		conn, err := c.listener.AcceptUnix()
		if err != nil {
			return nil, fmt.Errorf("console socket %q: %w", c.path, err)
		}
		f, err := conn.File()
		if err == nil {
			var master *os.File
			if master, err = SentTerminal(ctx, f); err == nil || !errdefs.IsPermissionDenied(err) {
				return master, errors.Join(err, f.Close(), conn.Close())
			}
		}
		_ = errors.Join(f.Close(), conn.Close()) // nothing was exchanged
	}
}

// SentTerminal is the master that the runtime has sent through a connection to a console
// socket, or is about to. It stays in there, too: who receives it may not live to keep
// it. PermissionDenied: somebody else than the runtime connected, which is root where
// the daemon is, whatever users its container has. Nobody else may give a process its
// terminal, or keep it from one.
func SentTerminal(ctx context.Context, conn *os.File) (*os.File, error) {
	master, err := receive(ctx, conn)
	if err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return nil, fmt.Errorf("receive terminal: %w", err)
	}
	return master, nil
}

func receive(ctx context.Context, f *os.File) (*os.File, error) {
	if err := fault.Fail("console:accept", unix.EMFILE); err != nil {
		return nil, err
	}
	nc, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	defer nc.Close() // only read from
	conn, ok := nc.(*net.UnixConn)
	if !ok {
		return nil, fmt.Errorf("it is a %T: %w", nc, errdefs.ErrInvalidArgument)
	}
	if uid, err := peer.UID(conn); err != nil || uid != 0 {
		log.G(ctx).WithError(err).WithField("uid", uid).Warn("connection refused: only root may send a terminal")
		return nil, fmt.Errorf("user %d connected: %w", uid, errdefs.ErrPermissionDenied)
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(past) }) // it is open until then
	defer stop()
	files, flags, err := peekFiles(conn)
	if err == nil {
		err = checkMaster(files, flags)
	}
	if err != nil {
		for _, f := range files {
			err = errors.Join(err, f.Close())
		}
		return nil, err
	}
	return files[0], nil
}

// peekFiles waits for a message and takes duplicates of the descriptors in it.
func peekFiles(conn *net.UnixConn) (files []*os.File, flags int, err error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, 0, err
	}
	// The runtime sends the pty's name along, which says nothing to us.
	text, oob := make([]byte, 4096), make([]byte, unix.CmsgSpace(4*maxConsoleFiles))
	var n, oobn int
	var inner error
	err = raw.Read(func(fd uintptr) bool {
		for {
			n, oobn, flags, _, inner = unix.Recvmsg(int(fd), text, oob, unix.MSG_PEEK|unix.MSG_DONTWAIT|unix.MSG_CMSG_CLOEXEC)
			if inner != unix.EINTR {
				return inner != unix.EAGAIN
			}
		}
	})
	if err = errors.Join(err, inner); err != nil {
		return nil, 0, err
	}
	if n == 0 && oobn == 0 {
		return nil, 0, fmt.Errorf("the runtime closed the connection: %w", errdefs.ErrUnavailable)
	}
	files, err = receivedFiles(oob[:oobn])
	return files, flags, err
}

// receivedFiles takes every descriptor out of a control message, so that each can be
// closed.
func receivedFiles(oob []byte) (files []*os.File, err error) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	for _, m := range messages {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			continue // another kind of message
		}
		for _, fd := range fds {
			files = append(files, os.NewFile(uintptr(fd), "ptmx"))
		}
	}
	return files, nil
}

func checkMaster(files []*os.File, flags int) error {
	if flags&unix.MSG_CTRUNC != 0 || len(files) > 1 {
		return fmt.Errorf("more than one descriptor: %w", errdefs.ErrInvalidArgument)
	}
	if len(files) == 0 {
		return fmt.Errorf("no descriptor: %w", errdefs.ErrInvalidArgument)
	}
	return withFD(files[0], isMaster)
}

// isMaster checks that the descriptor is the master of a pty: only a master has a number
// of a slave.
func isMaster(fd int) error {
	if _, err := unix.IoctlGetInt(fd, unix.TIOCGPTN); err != nil {
		return fmt.Errorf("not the master of a terminal: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	return nil
}
