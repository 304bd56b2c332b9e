package monitor

import (
	"net"
	"path/filepath"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// rawConn speaks to a monitor without the client's manners.
type rawConn struct{ *net.UnixConn }

func dialRaw(t testing.TB, dir string) rawConn {
	t.Helper()
	sock, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Net: "unixpacket", Name: filepath.Join(dir, socketName)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { sock.Close() })
	if err := sock.SetDeadline(time.Now().Add(60 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if err := sock.SetWriteBuffer(1 << 20); err != nil {
		t.Fatal(err)
	}
	return rawConn{sock}
}

func (c rawConn) send(t testing.TB, h header, body []byte) {
	t.Helper()
	if _, err := c.Write(append(newEncoder(h).buf, body...)); err != nil {
		t.Fatal(err)
	}
}

func (c rawConn) receive(t testing.TB) (header, decoder) {
	t.Helper()
	buf := make([]byte, maxMessage)
	n, err := c.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	d := decoder{buf: buf[:n]}
	return d.header(), d
}

// sendPacket also sends what net's Write takes for nothing, and what unix.Sendmsg adds
// a byte to: an empty packet, without and with descriptors.
func (c rawConn) sendPacket(data, oob []byte) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	iov := unix.Iovec{Base: unsafe.SliceData(data)}
	iov.SetLen(len(data))
	msg := unix.Msghdr{Iov: &iov, Control: unsafe.SliceData(oob)}
	msg.SetIovlen(1)
	msg.SetControllen(len(oob))
	werr := raw.Write(func(fd uintptr) bool {
		_, _, errno := unix.Syscall(unix.SYS_SENDMSG, fd, uintptr(unsafe.Pointer(&msg)), unix.MSG_NOSIGNAL)
		if err = nil; errno != 0 {
			err = errno
		}
		return errno != unix.EAGAIN
	})
	if werr != nil {
		return werr
	}
	return err
}
