// Package peer tells who is at the other end of a unix socket.
package peer

import (
	"errors"
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// UID is the user who connected, or listened, as the kernel has it from connect: it
// needs no cooperation of theirs and so cannot hang. The connection must be a
// syscall.Conn, as those of unix sockets are.
func UID(conn net.Conn) (uint32, error) {
	sc, ok := conn.(syscall.Conn)
	if !ok {
		return 0, errors.ErrUnsupported
	}
	raw, err := sc.SyscallConn()
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
