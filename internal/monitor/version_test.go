package monitor

import (
	"net"
	"os"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// TestVersionsOfDaemons: a monitor speaks to earlier and to later daemons.
func TestVersionsOfDaemons(t *testing.T) {
	c := startMonitor(t)
	for _, v := range []struct{ asked, answered uint16 }{{1, 1}, {2, 2}, {99, protocolVersion}, {0, protocolVersion}} {
		raw := dialRaw(t, c.dir)
		raw.send(t, header{version: v.asked, typ: msgHello, id: 1}, nil)
		h, d := raw.receive(t)
		if h.typ != msgHello|msgReply || h.version != v.answered || d.u32() != uint32(v.answered) {
			t.Errorf("HELLO of version %d: %+v", v.asked, h)
		}
		raw.send(t, header{version: v.answered, typ: msgList, id: 2}, make([]byte, 8))
		if h, _ := raw.receive(t); h.typ != msgList|msgReply || h.version != v.answered {
			t.Errorf("LIST of version %d: %+v", v.answered, h)
		}
		raw.send(t, header{version: protocolVersion + 1, typ: msgList, id: 3}, make([]byte, 8))
		if h, d := raw.receive(t); h.typ != msgError || unix.Errno(d.u32()) != unix.EPROTONOSUPPORT {
			t.Errorf("LIST of a version to come: %+v", h)
		}
	}
}

// monitorOf answers HELLO as a monitor of the version does, and everything else as the
// first of all monitors, which had no ACCEPT and no flags, with success or an error.
// The channel gets the headers.
func monitorOf(version uint32, conn *net.UnixConn) <-chan header {
	asked := make(chan header, 10)
	go func() {
		defer close(asked)
		defer conn.Close()
		buf, oob := make([]byte, maxMessage), make([]byte, unix.CmsgSpace(maxFDs*4))
		for {
			n, oobn, _, _, err := conn.ReadMsgUnix(buf, oob)
			if err != nil || n < headerSize {
				return
			}
			if files, err := parseFiles(oob[:oobn]); err == nil {
				closeFiles(files)
			}
			d := decoder{buf: buf[:n]}
			h := d.header()
			asked <- h
			typ, body := h.typ|msgReply, []byte(nil)
			switch {
			case h.typ == msgHello:
				body = []byte{byte(version), 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
			case h.typ > msgEnd:
				typ, body = msgError, []byte{byte(unix.ENOSYS), 0, 0, 0, 0, 0, 0}
			case h.flags != 0:
				typ, body = msgError, []byte{byte(unix.EINVAL), 0, 0, 0, 0, 0, 0}
			}
			e := newEncoder(header{version: uint16(version), typ: typ, id: h.id})
			e.buf = append(e.buf, body...)
			if _, err := conn.Write(e.buf); err != nil {
				return
			}
		}
	}()
	return asked
}

// TestVersionsOfMonitors: a daemon does without what an earlier monitor does not know,
// and has nothing to say to a later one that does not speak the daemon's version.
func TestVersionsOfMonitors(t *testing.T) {
	ours, theirs := socketPair(t)
	asked := monitorOf(1, theirs)
	c := newConn("old", ours, started{})
	if err := c.hello(t.Context()); err != nil {
		t.Fatal(err)
	}
	if h := <-asked; h.version != protocolVersion {
		t.Errorf("HELLO of version %d", h.version)
	}
	if err := c.SignalOnce(t.Context(), 1, unix.SIGTERM, 5); err != nil {
		t.Error(err)
	}
	for _, flags := range []uint32{flagSignalOnce, 0} {
		if h := <-asked; h.version != 1 || h.typ != msgSignal || h.flags != flags {
			t.Errorf("SIGNAL as %+v", h)
		}
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	_, kerr := c.KeepFIFO(t.Context(), "name", null)
	_, aerr := c.Accept(t.Context(), "listener", "name")
	for what, err := range map[string]error{"KeepFIFO": kerr, "Accept": aerr, "Greet": c.Greet(t.Context(), "listener", "prefix", 1, nil)} {
		if !errdefs.IsNotImplemented(err) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	for h := range asked {
		if h.version != 1 {
			t.Errorf("asked as %+v", h)
		}
	}

	for _, version := range []uint32{0, protocolVersion + 1} {
		ours, theirs := socketPair(t)
		asked := monitorOf(version, theirs)
		c := newConn("other", ours, started{})
		if err := c.hello(t.Context()); !errdefs.IsNotImplemented(err) {
			t.Errorf("HELLO of a monitor of version %d: %v", version, err)
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		for range asked {
		}
	}
}
