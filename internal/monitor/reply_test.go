package monitor

import (
	"context"
	"encoding/binary"
	"net"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// impostor answers whatever it is asked, with the packets of a fuzzInput, one for
// each request and more if they are exits, and hangs up when it has no more. A packet of the type 0xffff is
// the right type for the request, and every packet gets the request's ID.
func impostor(conn *net.UnixConn, input []byte, fd int) {
	defer conn.Close()
	buf, oob := make([]byte, maxMessage), make([]byte, unix.CmsgSpace(maxFDs*4))
	asked := false
	for len(input) >= 3 {
		if !asked {
			n, oobn, _, _, err := conn.ReadMsgUnix(buf, oob)
			if err != nil || n < headerSize {
				return
			}
			if files, err := parseFiles(oob[:oobn]); err == nil {
				closeFiles(files)
			}
		}
		size := min(int(input[1])<<8|int(input[2]), len(input)-3)
		count, data := min(int(input[0]), 8), append([]byte(nil), input[3:3+size]...)
		input = input[3+size:]
		if len(data) >= headerSize {
			if binary.LittleEndian.Uint16(data[2:]) == 0xffff {
				binary.LittleEndian.PutUint16(data[2:], binary.LittleEndian.Uint16(buf[2:])|msgReply)
			}
			copy(data[4:8], buf[4:8])
			asked = binary.LittleEndian.Uint16(data[2:]) == msgExit // that is no answer
			if count > 0 {
				binary.LittleEndian.PutUint16(data[12:], uint16(count))
			}
		}
		var rights []byte
		for range count {
			rights = append(rights, unix.UnixRights(fd)...)
		}
		if _, _, err := conn.WriteMsgUnix(data, rights, nil); err != nil {
			return
		}
	}
}

// FuzzReplies lets a connection talk to a monitor that says anything. Every call
// returns, what it returns makes sense, and no descriptor is left.
func FuzzReplies(f *testing.F) {
	answer := func(typ uint16, body ...byte) []byte {
		return fuzzInput(0, append(newEncoder(header{version: protocolVersion, typ: typ}).buf, body...))
	}
	record := make([]byte, 200)
	record[0], record[24] = 1, byte(Adopted)
	one := append([]byte{1, 0}, record...)
	hello := answer(0xffff, 1, 0, 0, 0, 7, 0, 0, 0)
	f.Add([]byte(nil))
	f.Add(hello)
	f.Add(append(hello, answer(0xffff, one...)...))
	f.Add(append(hello, answer(msgExit, record...)...))
	f.Add(append(hello, answer(msgError, 2, 0, 0, 0, 4, 0, 's', 't', 'e', 'p', 0)...))
	f.Add(append(append(hello, answer(0xffff, 0, 0)...), answer(0xffff, 1, 0, 1, 0, 'n', 0, 0, 0)...))
	with := answer(0xffff)
	with[0] = 2
	f.Add(append(append(append(hello, with...), with...), with...))
	null, err := os.Open(os.DevNull)
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { null.Close() })
	f.Fuzz(func(t *testing.T, input []byte) {
		ours, theirs := socketPair(t)
		gone := make(chan struct{})
		go func() {
			defer close(gone)
			impostor(theirs, input, int(null.Fd()))
		}()
		before := len(openFDs("self"))
		c := newConn("impostor", ours, started{})
		ask(t, c)
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		<-gone
		// Two are the ends of the connection, which are closed now.
		if now := len(openFDs("self")); now > before-1 {
			t.Errorf("%d descriptors, %d with the connection", now, before)
		}
	})
}

// ask makes each kind of call whose answer has something to decode.
func ask(t *testing.T, c *Conn) {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	_ = c.hello(ctx) // any of these may fail; none may hang or panic
	if list, err := c.List(ctx); err == nil {
		for i := 1; i < len(list); i++ {
			if list[i].Serial <= list[i-1].Serial {
				t.Errorf("records out of order: %d, %d", list[i-1].Serial, list[i].Serial)
			}
		}
	}
	_, _ = c.Kept(ctx)
	files, err := c.Fetch(ctx, "name")
	if err == nil {
		closeFiles(files)
	}
	if f, err := c.Accept(ctx, "listener", "name"); err == nil && f != nil {
		f.Close()
	}
	_, _ = c.Hold(ctx, HoldRequest{})
	if err := c.Subscribe(ctx); err == nil {
		c.hangUp()
		for range delivered(c) {
		}
	}
	if ctx.Err() != nil {
		t.Error("a call did not return")
	}
}

func socketPair(t *testing.T) (a, b *net.UnixConn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	var conns [2]*net.UnixConn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "pair")
		conn, err := net.FileConn(f)
		if err != nil {
			t.Fatal(err)
		}
		f.Close()
		conns[i] = conn.(*net.UnixConn)
	}
	return conns[0], conns[1]
}
