package stdio

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"golang.org/x/sys/unix"

	"caisson/internal/fault"
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
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("console socket %q: %w", path, err), l.Close())
	}
	return &ConsoleSocket{path: path, listener: l}, nil
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
	if err := c.listener.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("console socket %q: close: %w", c.path, err)
	}
	return nil
}

// Accept waits for the runtime to connect and send the master, and removes the socket, also
// after an error. ctx must end when the runtime does, since it may fail without connecting.
func (c *ConsoleSocket) Accept(ctx context.Context) (_ *os.File, err error) {
	defer func() { err = errors.Join(err, c.Close()) }()
	master, err := c.receive(ctx)
	if err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return nil, fmt.Errorf("console socket %q: receive terminal: %w", c.path, err)
	}
	return master, nil
}

func (c *ConsoleSocket) receive(ctx context.Context) (*os.File, error) {
	past := time.Unix(1, 0)
	stop := context.AfterFunc(ctx, func() { c.listener.SetDeadline(past) })
	defer stop()
	if err := fault.Fail("console:accept", unix.EMFILE); err != nil {
		return nil, err
	}
	conn, err := c.acceptRoot(ctx)
	if err != nil {
		return nil, err
	}
	defer conn.Close() // only read from
	stopConn := context.AfterFunc(ctx, func() { conn.SetDeadline(past) })
	defer stopConn()

	// The runtime sends the pty's name along, which says nothing to us.
	text, oob := make([]byte, 4096), make([]byte, unix.CmsgSpace(4*maxConsoleFiles))
	_, oobn, flags, _, err := conn.ReadMsgUnix(text, oob)
	if errors.Is(err, io.EOF) {
		err = fmt.Errorf("the runtime closed the connection: %w", errdefs.ErrUnavailable)
	}
	if err != nil {
		return nil, err
	}
	files, err := receivedFiles(oob[:oobn])
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

// acceptRoot waits for the runtime, which is root where the daemon is, whatever users
// its container has. Nobody else may give a process its terminal, or keep it from one.
func (c *ConsoleSocket) acceptRoot(ctx context.Context) (*net.UnixConn, error) {
	for {
		conn, err := c.listener.AcceptUnix()
		if err != nil {
			return nil, err
		}
		uid, err := peerUID(conn)
		if err == nil && uid == 0 {
			return conn, nil
		}
		log.G(ctx).WithError(err).WithField("uid", uid).WithField("socket", c.path).Warn("connection refused: only root may send a terminal")
		_ = conn.Close() // nothing was exchanged
	}
}

// peerUID asks the kernel, which knows it from connect.
func peerUID(conn *net.UnixConn) (uint32, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, err
	}
	var (
		cred  *unix.Ucred
		inner error
	)
	err = raw.Control(func(fd uintptr) {
		cred, inner = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if err := errors.Join(err, inner); err != nil {
		return 0, err
	}
	return cred.Uid, nil
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
