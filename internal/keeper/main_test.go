package keeper

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/ttrpc"
	"golang.org/x/sys/unix"

	"caisson/internal/monitor"
)

// The tests run real keepers and need root.
func TestMain(m *testing.M) {
	if os.Getuid() != 0 {
		fmt.Fprintln(os.Stderr, "keeper tests: need root, nothing was tested")
		os.Exit(1)
	}
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		fmt.Fprintln(os.Stderr, "keeper tests:", err)
		os.Exit(1)
	}
	before := openFDs()
	code := m.Run()
	if after := openFDs(); after > before+2 { // the runtime's epoll and eventfd
		fmt.Fprintf(os.Stderr, "keeper tests: %d descriptors, %d before\n", after, before)
		code = 1
	}
	os.Exit(code)
}

func openFDs() int {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		panic(err)
	}
	return len(entries)
}

func testContext(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// rig is a keeper's directory, and the daemons that come and go there.
type rig struct {
	t   testing.TB
	cfg Config
	l   *Listener
	dir string
}

func newRig(t testing.TB) *rig {
	t.Helper()
	dir, err := os.MkdirTemp("", "k")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	program, err := monitor.Install(filepath.Join(dir, "bin"))
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, dir: dir, cfg: Config{Binary: program, Dir: filepath.Join(dir, "keeper")}}
	t.Cleanup(r.endKeeper)
	return r
}

func (r *rig) endKeeper() {
	conn, err := monitor.Dial(context.Background(), r.cfg.Dir)
	if err != nil {
		return // a test has ended it
	}
	if err := errors.Join(conn.End(context.Background(), true), conn.Close()); err != nil {
		r.t.Error(err)
	}
}

func (r *rig) open() *Keeper {
	r.t.Helper()
	k, err := Open(testContext(r.t), r.cfg)
	if err != nil {
		r.t.Fatal(err)
	}
	return k
}

// kill is the end of a daemon as SIGKILL is: its descriptors are closed, and nobody
// is told anything.
func kill(k *Keeper) {
	close(k.closing)
	k.mu.Lock()
	for _, c := range k.conns {
		c.freeze()
		c.UnixConn.Close()
	}
	k.mu.Unlock()
	close(k.closed)
	k.wg.Wait()
	k.letGo()
	k.conn.Close()
}

func (r *rig) path() string { return filepath.Join(r.dir, "s") }

func (r *rig) listen(k *Keeper) *Listener {
	r.t.Helper()
	l, err := k.Listen(testContext(r.t), "ns/sb", r.path(), listenAt)
	if err != nil {
		r.t.Fatal(err)
	}
	return l
}

// listenAt makes a socket in place of one that is left.
func listenAt(path string) (*net.UnixListener, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	return net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
}

func (r *rig) dial() net.Conn {
	r.t.Helper()
	c, err := net.Dial("unix", r.path())
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		r.t.Fatal(err)
	}
	return c
}

func accept(t testing.TB, l *Listener) *Conn {
	t.Helper()
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	return c.(*Conn)
}

// frame of a stream.
func frame(stream uint32, typ byte, payload []byte) []byte {
	b := []byte{0, 0, 0, 0, byte(stream >> 24), byte(stream >> 16), byte(stream >> 8), byte(stream), typ, 0}
	n := len(payload)
	b[0], b[1], b[2], b[3] = byte(n>>24), byte(n>>16), byte(n>>8), byte(n)
	return append(b, payload...)
}

// call is a request's frame whose payload is a message of ttrpc's.
func call(stream uint32, method string, payload []byte) []byte {
	req := &ttrpc.Request{Service: "s", Method: method, Payload: payload}
	data, err := marshal(req)
	if err != nil {
		panic(err)
	}
	return frame(stream, typeRequest, data)
}

// readFrame reads one frame from a server's or a client's end.
func readFrame(t testing.TB, r io.Reader) (head, []byte) {
	t.Helper()
	var b [frameHead]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		t.Fatal(err)
	}
	h := parseHead(b[:])
	payload := make([]byte, h.payload)
	if _, err := io.ReadFull(r, payload); err != nil {
		t.Fatal(err)
	}
	return h, payload
}

// readCall reads one request as a server does, with its ID.
func readCall(t testing.TB, c *Conn) (stream uint32, method, id string, payload []byte) {
	t.Helper()
	h, data := readFrame(t, c)
	var req ttrpc.Request
	if err := unmarshal(data, &req); err != nil {
		t.Fatal(err)
	}
	for _, kv := range req.Metadata {
		if kv.Key == metadataKey {
			id = kv.Value
		}
	}
	return h.stream, req.Method, id, req.Payload
}

// requestOf is what a handler is told.
func requestOf(c *Conn, stream uint32) (again bool, noted []byte) {
	r := c.request(stream)
	return r.Again, r.Noted
}
