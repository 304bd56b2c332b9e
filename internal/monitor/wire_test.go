package monitor

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
)

// valid returns one acceptable body for each request with one; none of them does harm.
func valid() map[uint16][]byte {
	body := func(fill func(*encoder)) []byte {
		e := new(encoder)
		fill(e)
		return e.buf
	}
	str := body(func(e *encoder) { e.string("", "name", maxTag) })
	return map[uint16][]byte{
		msgHold: body(func(e *encoder) {
			e.string("", "", 64)
			e.u16(1)
			e.string("", "nonexistent/key", 200)
			e.string("", "value", 200)
		}),
		msgSpawn: body(func(e *encoder) {
			for _, s := range []string{"tag", "/", ""} {
				e.string("", s, maxTag)
			}
			e.strings("", []string{"/bin/true", "arg"})
			e.strings("", []string{"A=b"})
		}),
		msgSignal: body(func(e *encoder) { e.u64(1); e.u32(0) }),
		msgList:   body(func(e *encoder) { e.u64(0) }),
		msgAck:    body(func(e *encoder) { e.u64(1) }),
		msgKeep:   str,
		msgFetch:  str,
		msgDrop:   str,
		msgKept:   body(func(e *encoder) { e.u64(0) }),
		msgAccept: body(func(e *encoder) { e.string("", "name", maxTag); e.string("", "other", maxTag) }),
		msgTitle:  body(func(e *encoder) { e.string("name", "n", maxTag) }),
		msgGreet: body(func(e *encoder) {
			e.string("", "name", maxTag)
			e.string("", "g/", maxTag)
			e.u16(3)
			e.u16(2)
			e.u16(0)
		}),
	}
}

// cut returns all that a message can be cut to, and it with a byte too many.
func cut(typ uint16, body []byte) (list [][]byte) {
	msg := append(newEncoder(header{version: protocolVersion, typ: typ, id: 7}).buf, body...)
	for n := headerSize; n < len(msg); n++ {
		list = append(list, msg[:n])
	}
	return append(list, append(slices.Clone(msg), 0))
}

func TestMalformedMessages(t *testing.T) {
	c := startMonitor(t)
	base := len(openFDs(fmt.Sprint(c.Pid())))
	raw := dialRaw(t, c.dir)
	msg := func(h header, body ...byte) []byte { return append(newEncoder(h).buf, body...) }
	v := uint16(protocolVersion)
	reserved := msg(header{version: v, typ: msgHello, id: 7})
	reserved[14] = 1
	type packet struct {
		name  string
		data  []byte
		fds   int
		errno unix.Errno
	}
	packets := []packet{
		{"empty", nil, 0, unix.EBADMSG},
		{"empty with descriptors", nil, 3, unix.EBADMSG},
		{"one byte", []byte{1}, 0, unix.EBADMSG},
		{"short header", reserved[:15], 2, unix.EBADMSG},
		{"reserved field", reserved, 0, unix.EBADMSG},
		{"another version", msg(header{version: v + 1, typ: msgList, id: 7}, make([]byte, 8)...), 0, unix.EPROTONOSUPPORT},
		{"type 0", msg(header{version: v, id: 7}), 0, unix.ENOSYS},
		{"type 16", msg(header{version: v, typ: 16, id: 7}), 0, unix.ENOSYS},
		{"type of a reply", msg(header{version: v, typ: msgHello | msgReply, id: 7}), 0, unix.ENOSYS},
		{"unknown flags", msg(header{version: v, typ: msgHello, id: 7, flags: 1}), 0, unix.EINVAL},
		{"unknown flags of END", msg(header{version: v, typ: msgEnd, id: 7, flags: 2}), 0, unix.EINVAL},
		{"body of HELLO", msg(header{version: v, typ: msgHello, id: 7}, 0), 0, unix.EINVAL},
		{"body of END", msg(header{version: v, typ: msgEnd, id: 7}, 0), 0, unix.EINVAL},
		{"descriptors missing", msg(header{version: v, typ: msgKeep, id: 7, fds: 1}, valid()[msgKeep]...), 0, unix.EBADMSG},
		{"descriptors not announced", msg(header{version: v, typ: msgHello, id: 7}), 2, unix.EBADMSG},
		{"descriptors not wanted", msg(header{version: v, typ: msgHello, id: 7, fds: 2}), 2, unix.EINVAL},
		{"descriptors for HOLD", msg(header{version: v, typ: msgHold, id: 7, fds: 200}, valid()[msgHold]...), 200, unix.EINVAL},
		{"no descriptors for KEEP", msg(header{version: v, typ: msgKeep, id: 7}, valid()[msgKeep]...), 0, unix.EINVAL},
		{"too many for KEEP", msg(header{version: v, typ: msgKeep, id: 7, fds: 9}, valid()[msgKeep]...), 9, unix.EINVAL},
		{"too long", msg(header{version: v, typ: msgHello, id: 7}, make([]byte, maxMessage)...), 0, unix.EMSGSIZE},
		{"too long with descriptors", msg(header{version: v, typ: msgKeep, id: 7, fds: 5}, make([]byte, maxMessage)...), 5, unix.EMSGSIZE},
		{"NUL in a string", msg(header{version: v, typ: msgFetch, id: 7}, 3, 0, 'a', 0, 'b', 0), 0, unix.EINVAL},
		{"no NUL after a string", msg(header{version: v, typ: msgFetch, id: 7}, 1, 0, 'a', 'b'), 0, unix.EINVAL},
		{"string of 65535", msg(header{version: v, typ: msgFetch, id: 7}, 0xff, 0xff, 'a', 0), 0, unix.EINVAL},
		{"65535 sysctls", msg(header{version: v, typ: msgHold, id: 7}, 0, 0, 0, 0xff, 0xff), 0, unix.EINVAL},
		{"65535 arguments", msg(header{version: v, typ: msgSpawn, id: 7}, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff), 0, unix.EINVAL},
	}
	for typ, body := range valid() {
		for i, data := range cut(typ, body) {
			packets = append(packets, packet{fmt.Sprintf("request %d cut %d", typ, i), data, 0, unix.EINVAL})
		}
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	for _, p := range packets {
		var oob []byte
		if p.fds > 0 {
			oob = unix.UnixRights(slices.Repeat([]int{int(null.Fd())}, p.fds)...)
		}
		if err := raw.sendPacket(p.data, oob); err != nil {
			t.Fatal(p.name, err)
		}
		h, d := raw.receive(t)
		if errno := unix.Errno(d.u32()); h.typ != msgError || errno != p.errno || d.string() == "" {
			t.Errorf("%s: answer %+v, %v", p.name, h, errno)
		}
		if len(p.data) >= 8 && h.id != 7 {
			t.Errorf("%s: id %d", p.name, h.id)
		}
	}
	raw.send(t, header{version: 99, typ: msgHello, id: 9}, nil) // of any version
	if h, _ := raw.receive(t); h.typ != msgHello|msgReply || h.id != 9 {
		t.Errorf("HELLO: %+v", h)
	}
	// An empty packet is no end of a connection, even if that comes at once.
	if err := unix.Kill(c.Pid(), unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	if err := raw.sendPacket(nil, unix.UnixRights(int(null.Fd()))); err != nil {
		t.Error(err)
	}
	raw.Close()
	if err := unix.Kill(c.Pid(), unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	eventually(t, "descriptors are closed", func() bool { return len(openFDs(fmt.Sprint(c.Pid()))) == base })
	if left := childrenOf(c.Pid()); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

// TestEmbeddedMonitorIsCurrent builds the monitor again.
func TestEmbeddedMonitorIsCurrent(t *testing.T) {
	b, err := os.ReadFile(makeMonitor(t, t.TempDir(), nil))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(b, program) {
		t.Error("caisson-monitor is older than its source: run `make monitor`")
	}
}

func makeMonitor(t testing.TB, dir string, args []string) string {
	t.Helper()
	out := filepath.Join(dir, "mon")
	cmd := exec.Command("make", append([]string{"-s", "-C", "c", "OUT=" + out}, args...)...)
	cmd.Env = append(os.Environ(), "MAKEFLAGS=")
	if b, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("make: %v\n%s", err, b)
	}
	return out
}

// sanitized starts a monitor with address and undefined behaviour checks,
// for which all file systems but its own directory are read-only.
func sanitized(t testing.TB) (c *Conn, reports func() string) {
	t.Helper()
	dir := shortDir(t)
	bin := makeMonitor(t, dir, []string{"asan"})
	script := filepath.Join(dir, "start")
	text := fmt.Sprintf(`#!/bin/sh
exec unshare --mount /bin/sh -e -c '
mount --bind %[1]s %[1]s
mount -o remount,ro,bind /
mount --bind /proc/sys /proc/sys
mount -o remount,ro,bind /proc/sys
exec %[2]s "$1"' sh "$1"
`, dir, bin)
	if err := os.WriteFile(script, []byte(text), 0o700); err != nil {
		t.Fatal(err)
	}
	c = startBinary(t, script, []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "ASAN_OPTIONS=log_path=" + dir + "/report", "UBSAN_OPTIONS=print_stacktrace=1:log_path=" + dir + "/report"})
	return c, func() string {
		var all strings.Builder
		paths, _ := filepath.Glob(dir + "/report*") // the pattern is good
		for _, p := range paths {
			b, err := os.ReadFile(p)
			fmt.Fprintln(&all, string(b), err)
		}
		return all.String()
	}
}

// FuzzMonitor throws packets at a real monitor. The input is a list of
// {number of descriptors, packet length / 256, packet length % 256, packet}.
func FuzzMonitor(f *testing.F) {
	for typ, body := range valid() {
		for _, data := range cut(typ, body)[len(body)-1:] { // one byte too few, one too many
			f.Add(fuzzInput(0, data[:headerSize+len(body)-1]))
		}
		msg := append(newEncoder(header{version: protocolVersion, typ: typ, id: 1}).buf, body...)
		f.Add(fuzzInput(0, msg))
		f.Add(append(fuzzInput(1, msg), fuzzInput(0, msg)...))
	}
	c, reports := sanitized(f)
	null, err := os.Open(os.DevNull)
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { null.Close() })
	listener := listenPipe(f)
	pool := slices.Repeat([]int{int(listener.Fd()), int(null.Fd())}, maxFDs)
	f.Fuzz(func(t *testing.T, input []byte) {
		raw := dialRaw(t, c.dir)
		answered := make(chan error, 1)
		var sent atomic.Int64
		go func() { answered <- readAnswers(raw, &sent) }() // the monitor waits for readers
		for len(input) >= 3 {
			n := min(int(input[1])<<8|int(input[2]), len(input)-3)
			fds, data := int(input[0]), input[3:3+n]
			input = input[3+n:]
			if len(data) >= 4 && data[2] == msgEnd && data[3] == 0 {
				continue // it would obey
			}
			var oob []byte
			if fds = min(fds, maxFDs); fds > 0 {
				oob = unix.UnixRights(pool[:fds]...)
			}
			if err := raw.sendPacket(data, oob); err != nil {
				t.Fatalf("send: %v\n%s", err, reports())
			}
			sent.Add(1)
		}
		sent.Add(1)
		raw.send(t, header{version: protocolVersion, typ: msgHello, id: lastHello}, nil)
		if err := <-answered; err != nil {
			t.Fatalf("%v\n%s", err, reports())
		}
		if s := reports(); s != "" {
			t.Fatal(s)
		}
		forget(t, c)
	})
}

const lastHello = 0xabcdef01

// readAnswers reads until the last HELLO is answered, as the last of all requests.
func readAnswers(raw rawConn, sent *atomic.Int64) error {
	buf := make([]byte, maxMessage)
	for answers := int64(0); ; {
		n, err := raw.Read(buf)
		if err != nil || n < headerSize {
			return fmt.Errorf("no answer to HELLO: %d bytes, %w", n, err)
		}
		d := decoder{buf: buf[:n]}
		h := d.header()
		if h.typ == msgExit {
			continue
		}
		answers++
		if h.typ == msgHello|msgReply && h.id == lastHello && answers == sent.Load() {
			return nil
		}
	}
}

func fuzzInput(fds byte, packet []byte) []byte {
	return append([]byte{fds, byte(len(packet) >> 8), byte(len(packet))}, packet...)
}

// forget acknowledges all exits, so that the next input finds few.
func forget(t testing.TB, c *Conn) {
	t.Helper()
	list, err := c.List(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range list {
		if r.Running {
			continue
		}
		if err := c.Ack(testContext(t), r.Serial); err != nil {
			t.Fatal(err)
		}
	}
}
