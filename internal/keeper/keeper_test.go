package keeper

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"caisson/internal/monitor"
)

func marshal(m proto.Message) ([]byte, error)      { return proto.Marshal(m) }
func unmarshal(data []byte, m proto.Message) error { return proto.Unmarshal(data, m) }

func send(t testing.TB, c net.Conn, data []byte) {
	t.Helper()
	if _, err := c.Write(data); err != nil {
		t.Fatal(err)
	}
}

func answer(t testing.TB, c *Conn, stream uint32, text string) {
	t.Helper()
	if n, err := c.Write(frame(stream, typeResponse, []byte(text))); err != nil || n != frameHead+len(text) {
		t.Fatalf("wrote %d, %v", n, err)
	}
}

func expectCall(t testing.TB, c *Conn, stream uint32, method string, again bool) string {
	t.Helper()
	s, m, id, _ := readCall(t, c)
	if s != stream || m != method || id == "" {
		t.Errorf("stream %d, method %q, ID %q; want %d, %q", s, m, id, stream, method)
	}
	if a, _ := requestOf(c, stream); a != again {
		t.Errorf("stream %d comes again: %v", stream, a)
	}
	return id
}

func expectAnswer(t testing.TB, c net.Conn, stream uint32, text string) {
	t.Helper()
	h, data := readFrame(t, c)
	if h.stream != stream || h.typ != typeResponse || string(data) != text {
		t.Errorf("stream %d, type %d, %q; want %d, %q", h.stream, h.typ, data, stream, text)
	}
}

// TestOutlives: what has no answer is asked again, in order and under the same ID;
// what has one is not; what comes meanwhile waits; a note is there.
func TestOutlives(t *testing.T) {
	r := newRig(t)
	k := r.open()
	l := r.listen(k)
	client := r.dial()
	send(t, client, call(1, "Wait", nil))
	send(t, client, append(call(3, "State", nil), call(5, "Kill", nil)...))
	c := accept(t, l)
	first := expectCall(t, c, 1, "Wait", false)
	expectCall(t, c, 3, "State", false)
	answer(t, c, 3, "fine")
	expectCall(t, c, 5, "Kill", false)
	if err := c.request(5).Note([]byte("half done")); err != nil {
		t.Fatal(err)
	}
	expectAnswer(t, client, 3, "fine")
	if !r.idle(client) {
		t.Error("more than one answer")
	}
	kill(k)

	send(t, client, call(7, "Exec", nil))
	second := r.dial() // waits to be accepted
	send(t, second, call(1, "Connect", nil))
	k = r.open()
	if !k.Connected("ns/sb") || k.Connected("ns/other") || !k.Owes(first) || k.Owes(first+"1") || k.Owes("") {
		t.Error("it is not known what is owed")
	}
	l = r.listen(k)
	c = accept(t, l)
	if again := expectCall(t, c, 1, "Wait", true); again != first {
		t.Errorf("ID %q, before %q", again, first)
	}
	expectCall(t, c, 5, "Kill", true)
	if _, noted := requestOf(c, 5); string(noted) != "half done" {
		t.Errorf("noted %q", noted)
	}
	expectCall(t, c, 7, "Exec", false)
	answer(t, c, 7, "seven")
	answer(t, c, 1, "one")
	answer(t, c, 5, "five")
	expectAnswer(t, client, 7, "seven")
	expectAnswer(t, client, 1, "one")
	expectAnswer(t, client, 5, "five")
	other := accept(t, l)
	expectCall(t, other, 1, "Connect", false)

	// Clients go: the keeper has nothing of them any more.
	client.Close()
	second.Close()
	for _, c := range []*Conn{c, other} {
		if _, err := c.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("read: %v", err)
		}
		c.Close()
	}
	if err := l.Remove(); err != nil {
		t.Error(err)
	}
	if err := k.Close(testContext(t)); err != nil {
		t.Error(err)
	}
	if _, err := monitor.Dial(testContext(t), r.cfg.Dir); err == nil {
		t.Error("the keeper is there, and has nothing to keep")
	}
}

// TestMoreRequestsThanSlots: one for which there is no room is served all the same.
func TestMoreRequestsThanSlots(t *testing.T) {
	r := newRig(t)
	k := r.open()
	l := r.listen(k)
	client := r.dial()
	send(t, client, call(1, "Wait", nil))
	c := accept(t, l)
	expectCall(t, c, 1, "Wait", false)
	for stream := uint32(3); c.journal.open(stream, frameHead) != nil; stream += 2 {
	}
	send(t, client, call(1<<20+1, "Kill", []byte("which")))
	if stream, method, id, payload := readCall(t, c); stream != 1<<20+1 || method != "Kill" || id != "" || string(payload) != "which" {
		t.Errorf("stream %d, method %q, ID %q, payload %q", stream, method, id, payload)
	}
	answer(t, c, 1<<20+1, "killed")
	expectAnswer(t, client, 1<<20+1, "killed")
	answer(t, c, 1, "over")
	expectAnswer(t, client, 1, "over")
	client.Close()
	c.Close()
	if err := errors.Join(l.Remove(), k.Close(testContext(t))); err != nil {
		t.Error(err)
	}
}

// TestNoDescriptorsForAConnection: a daemon that cannot take a connection over does not
// start, and leaves it to one that can.
func TestNoDescriptorsForAConnection(t *testing.T) {
	r := newRig(t)
	k := r.open()
	l := r.listen(k)
	client := r.dial()
	send(t, client, call(1, "Wait", nil))
	expectCall(t, accept(t, l), 1, "Wait", false)
	kill(k)

	var before unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &before); err != nil {
		t.Fatal(err)
	}
	// At first none, then enough to ask the keeper, and then for all that it has.
	lowest, err := unix.Dup(2)
	if err != nil {
		t.Fatal(err)
	}
	unix.Close(lowest)
	refused := 0
	for more := range 100 {
		low := unix.Rlimit{Cur: uint64(lowest + more), Max: before.Max}
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &low); err != nil {
			t.Fatal(err)
		}
		k, err := Open(testContext(t), r.cfg)
		if rerr := unix.Setrlimit(unix.RLIMIT_NOFILE, &before); rerr != nil {
			t.Fatal(rerr)
		}
		if err == nil {
			kill(k)
			break
		}
		refused++
	}
	if refused < 5 {
		t.Errorf("only %d daemons did not start", refused)
	}
	k = r.open()
	l = r.listen(k)
	c := accept(t, l)
	expectCall(t, c, 1, "Wait", true)
	answer(t, c, 1, "over")
	expectAnswer(t, client, 1, "over")
	client.Close()
	c.Close()
	if err := errors.Join(l.Remove(), k.Close(testContext(t))); err != nil {
		t.Error(err)
	}
}

// idle tells that there is nothing to read.
func (r *rig) idle(c net.Conn) bool {
	raw, err := c.(*net.UnixConn).SyscallConn()
	if err != nil {
		r.t.Fatal(err)
	}
	idle := false
	err = raw.Control(func(fd uintptr) {
		_, _, e := unix.Recvfrom(int(fd), make([]byte, 1), unix.MSG_PEEK|unix.MSG_DONTWAIT)
		idle = e == unix.EAGAIN
	})
	if err != nil {
		r.t.Fatal(err)
	}
	return idle
}

// TestKilledAnywhere stops between any two steps of taking a request and of
// answering it, for a small request and one that is larger than the socket.
func TestKilledAnywhere(t *testing.T) {
	large := bytes.Repeat([]byte("large."), 100_000)
	steps := map[string]func(t *testing.T, c *Conn, fd int){
		"peeked": func(t *testing.T, c *Conn, fd int) {
			if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PEEK_OFF, 0); err != nil {
				t.Fatal(err)
			}
			if n, err := recv(fd, make([]byte, chunk), unix.MSG_PEEK|unix.MSG_DONTWAIT); n <= frameHead || err != nil {
				t.Fatal(n, err)
			}
		},
		"recorded": func(t *testing.T, c *Conn, fd int) { c.half(t, fd, false, false) },
		"consumed": func(t *testing.T, c *Conn, fd int) { c.half(t, fd, true, false) },
		"noted":    func(t *testing.T, c *Conn, fd int) { c.half(t, fd, true, true) },
	}
	for name, step := range steps {
		for size, payload := range map[string][]byte{"small": []byte("x"), "large": large} {
			t.Run(name+" "+size, func(t *testing.T) {
				r := newRig(t)
				k := r.open()
				client := r.dialTo(k)
				sent := make(chan error, 1)
				go func() {
					_, err := client.Write(append(call(1, "A", payload), call(3, "B", nil)...))
					sent <- err
				}()
				c := accept(t, r.l)
				await(t, c)
				if err := c.control(func(fd int) error { step(t, c, fd); return nil }); err != nil {
					t.Fatal(err)
				}
				kill(k)
				k = r.open()
				defer k.Close(testContext(t)) //nolint:errcheck // the keeper is ended below
				c = accept(t, r.listen(k))
				s, m, _, got := readCall(t, c)
				if s != 1 || m != "A" || !bytes.Equal(got, payload) {
					t.Errorf("stream %d, method %s, %d bytes", s, m, len(got))
				}
				expectCall(t, c, 3, "B", false)
				if err := <-sent; err != nil {
					t.Error(err)
				}
				answer(t, c, 3, "b")
				answer(t, c, 1, "a")
				expectAnswer(t, client, 3, "b")
				expectAnswer(t, client, 1, "a")
			})
		}
	}
}

// half takes the first part of a request as takePart does, up to a step.
func (c *Conn) half(t *testing.T, fd int, consume, note bool) {
	buf := make([]byte, chunk)
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PEEK_OFF, 0); err != nil {
		t.Fatal(err)
	}
	n, err := recv(fd, buf, unix.MSG_PEEK|unix.MSG_DONTWAIT)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.begin(parseHead(buf)); err != nil {
		t.Fatal(err)
	}
	s := c.partial
	data := buf[:min(n, int(s.want))]
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PEEK_OFF, len(data)); err != nil {
		t.Fatal(err)
	}
	if err := c.journal.record(s, data); err != nil {
		t.Fatal(err)
	}
	if !consume {
		return
	}
	if err := take(fd, uint32(len(data))); err != nil {
		t.Fatal(err)
	}
	if note {
		if err := c.journal.taken(s); err != nil {
			t.Fatal(err)
		}
	}
}

// await waits until there is something to read.
func await(t testing.TB, c *Conn) {
	t.Helper()
	err := c.raw.Read(func(fd uintptr) bool {
		n, err := recv(int(fd), make([]byte, frameHead+1), unix.MSG_PEEK|unix.MSG_DONTWAIT)
		return err == nil && n > frameHead
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestAnswerHalfWay: an answer that was recorded is the next daemon's to send,
// whole, whether it was sent or not; the request is not made again.
func TestAnswerHalfWay(t *testing.T) {
	for _, sent := range []bool{false, true} {
		r := newRig(t)
		k := r.open()
		client := r.dialTo(k)
		send(t, client, append(call(1, "Wait", nil), call(3, "Kill", nil)...))
		c := accept(t, r.l)
		expectCall(t, c, 1, "Wait", false)
		expectCall(t, c, 3, "Kill", false)
		reply := frame(3, typeResponse, []byte("done"))
		if err := c.journal.setAnswer(c.journal.find(3), reply); err != nil {
			t.Fatal(err)
		}
		if sent {
			if err := c.send(reply); err != nil {
				t.Fatal(err)
			}
		}
		kill(k)
		k = r.open()
		if sent {
			expectAnswer(t, client, 3, "done")
		}
		expectAnswer(t, client, 3, "done")
		c = accept(t, r.listen(k))
		expectCall(t, c, 1, "Wait", true)
		send(t, client, call(5, "State", nil))
		expectCall(t, c, 5, "State", false)
		if err := k.Close(testContext(t)); err != nil {
			t.Error(err)
		}
	}
}

// TestAnswersAreWhole: answers far larger than a socket's usual buffer, to a client
// that does not read for a while.
func TestAnswersAreWhole(t *testing.T) {
	r := newRig(t)
	k := r.open()
	client := r.dialTo(k)
	const n = 5
	text := strings.Repeat("0123456789", 400_000)
	for i := range n {
		send(t, client, call(uint32(2*i+1), "Pids", nil))
	}
	c := accept(t, r.l)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := range n {
			expectCall(t, c, uint32(2*i+1), "Pids", false)
			whole := frame(uint32(2*i+1), typeResponse, []byte(text))
			for len(whole) > 0 { // as a buffered writer does
				part := min(len(whole), 1_000_003)
				if _, err := c.Write(whole[:part]); err != nil {
					t.Error(err)
					return
				}
				whole = whole[part:]
			}
		}
	}()
	for i := range n {
		expectAnswer(t, client, uint32(2*i+1), text)
	}
	<-done
	if st, err := c.journal.f.Stat(); err != nil || st.Sys().(*syscall.Stat_t).Blocks > 16*n {
		t.Errorf("memory of answered requests: %+v, %v", st.Sys(), err)
	}
	if err := k.Close(testContext(t)); err != nil {
		t.Error(err)
	}
}

// dialTo listens, once per rig, and connects.
func (r *rig) dialTo(k *Keeper) net.Conn {
	r.t.Helper()
	r.l = r.listen(k)
	return r.dial()
}

// TestKeeperDies: the daemon gives another one everything.
func TestKeeperDies(t *testing.T) {
	r := newRig(t)
	k := r.open()
	client := r.dialTo(k)
	send(t, client, call(1, "Wait", nil))
	c := accept(t, r.l)
	expectCall(t, c, 1, "Wait", false)
	k.mu.Lock()
	old := k.conn.Pid()
	k.mu.Unlock()
	if err := unix.Kill(old, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	second := r.dial()
	send(t, second, call(1, "Connect", nil))
	expectCall(t, accept(t, r.l), 1, "Connect", false)
	if n := k.Deaths(); n != 1 {
		t.Errorf("%d keepers died", n)
	}
	kill(k)
	k = r.open()
	if k.conn.Pid() == old {
		t.Fatal("it lives")
	}
	l := r.listen(k)
	for range 2 {
		c := accept(t, l)
		_, m, _, _ := readCall(t, c)
		answer(t, c, 1, m)
	}
	expectAnswer(t, client, 1, "Wait")
	expectAnswer(t, second, 1, "Connect")
	if err := k.Close(testContext(t)); err != nil {
		t.Error(err)
	}
}

// TestStop: a daemon that stops finishes what it does, answers nothing any more,
// and leaves the rest to the next.
func TestStop(t *testing.T) {
	r := newRig(t)
	k := r.open()
	client := r.dialTo(k)
	send(t, client, append(call(1, "Wait", nil), call(3, "Start", nil)...))
	c := accept(t, r.l)
	expectCall(t, c, 1, "Wait", false)
	expectCall(t, c, 3, "Start", false)
	done := k.Serving()
	quiet := make(chan struct{})
	go func() { k.Quiesce(); close(quiet) }()
	<-k.closing
	answer(t, c, 3, "started")
	expectAnswer(t, client, 3, "started")
	done()
	<-quiet
	late := make(chan error, 1)
	go func() {
		_, err := c.Write(frame(1, typeResponse, []byte("the daemon ends")))
		late <- err
	}()
	send(t, client, call(5, "State", nil))
	if err := k.Close(testContext(t)); err != nil {
		t.Error(err)
	}
	if err := <-late; err != nil {
		t.Error(err)
	}
	if !r.idle(client) {
		t.Error("there was an answer")
	}
	k = r.open()
	c = accept(t, r.listen(k))
	expectCall(t, c, 1, "Wait", true)
	expectCall(t, c, 5, "State", false)
	answer(t, c, 1, "exited")
	expectAnswer(t, client, 1, "exited")
	if err := k.Close(testContext(t)); err != nil {
		t.Error(err)
	}
}

// TestClientGone: nobody's requests are made again.
func TestClientGone(t *testing.T) {
	r := newRig(t)
	k := r.open()
	client := r.dialTo(k)
	send(t, client, call(1, "Create", nil))
	c := accept(t, r.l)
	id := expectCall(t, c, 1, "Create", false)
	kill(k)
	client.Close()
	k = r.open()
	if k.Connected("ns/sb") || k.Owes(id) {
		t.Error("a client that is gone is waited for")
	}
	if rest, err := k.Rest(); err != nil || len(rest) != 0 {
		t.Errorf("left: %v, %v", rest, err)
	}
	if err := k.Close(testContext(t)); err != nil {
		t.Error(err)
	}
	if _, err := monitor.Dial(testContext(t), r.cfg.Dir); err == nil {
		t.Error("the keeper keeps something")
	}
}

// TestBadFrames end the connection of who sends them.
func TestBadFrames(t *testing.T) {
	for name, data := range map[string][]byte{
		"too long":      {0xff, 0xff, 0xff, 0xff, 0, 0, 0, 1, typeRequest, 0},
		"cut head":      {0, 0},
		"cut payload":   frame(1, typeRequest, make([]byte, 100))[:50],
		"cut of no use": frame(1, 3, make([]byte, 100))[:50],
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			k := r.open()
			client := r.dialTo(k)
			send(t, client, data)
			if err := client.(*net.UnixConn).CloseWrite(); err != nil {
				t.Fatal(err)
			}
			c := accept(t, r.l)
			if _, err := io.Copy(io.Discard, onlyReader{c}); !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("read: %v", err)
			}
			c.Close()
			if err := r.l.Remove(); err != nil {
				t.Error(err)
			}
			if err := k.Close(testContext(t)); err != nil {
				t.Error(err)
			}
		})
	}
}

type onlyReader struct{ io.Reader }

// TestIdle: a connection at rest has one page of memory, and nobody who works for it.
func TestIdle(t *testing.T) {
	r := newRig(t)
	k := r.open()
	client := r.dialTo(k)
	send(t, client, call(1, "Wait", bytes.Repeat([]byte("x"), 130)))
	c := accept(t, r.l)
	expectCall(t, c, 1, "Wait", false)
	for i := range 1000 {
		stream := uint32(2*i + 3)
		send(t, client, call(stream, "State", nil))
		expectCall(t, c, stream, "State", false)
		answer(t, c, stream, "running")
		expectAnswer(t, client, stream, "running")
	}
	st, err := c.journal.f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	if pages := st.Sys().(*syscall.Stat_t).Blocks * 512 / int64(os.Getpagesize()); pages > 2 {
		t.Errorf("%d pages", pages)
	}
	if err := k.Close(testContext(t)); err != nil {
		t.Error(err)
	}
}

// TestManyIdle: adopting connections starts nothing that runs, and takes little time.
func TestManyIdle(t *testing.T) {
	const n = 500
	r := newRig(t)
	k := r.open()
	r.l = r.listen(k)
	for range n {
		client := r.dial()
		send(t, client, call(1, "Wait", nil))
		expectCall(t, accept(t, r.l), 1, "Wait", false)
	}
	kill(k)
	before := runtime.NumGoroutine()
	start := time.Now()
	k = r.open()
	t.Logf("%d connections were taken over in %v", n, time.Since(start))
	l := r.listen(k)
	for range n {
		expectCall(t, accept(t, l), 1, "Wait", true)
	}
	if now := runtime.NumGoroutine(); now > before+4 { // for the keeper, not for connections
		t.Errorf("%d goroutines, %d before", now, before)
	}
	if err := k.Close(testContext(t)); err != nil {
		t.Error(err)
	}
}
