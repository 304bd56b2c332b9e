package monitor

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const hello = "hello"

// listenKept hands the monitor a listening socket as "l" and returns its path.
func listenKept(t *testing.T, c *Conn) string {
	t.Helper()
	sock := listenPipe(t)
	if err := c.Keep(testContext(t), "l", sock); err != nil {
		t.Fatal(err)
	}
	addr, err := unix.Getsockname(int(sock.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	return addr.(*unix.SockaddrUnix).Name
}

// greetAndGo is a daemon that is killed before it takes the connections that wait.
func greetAndGo(t *testing.T, dir string, limit uint16) {
	t.Helper()
	d, err := Dial(testContext(t), dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Greet(testContext(t), "l", "g/", limit, []byte(hello)); err != nil {
		t.Error(err)
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
}

func dialGreeter(t *testing.T, path string) net.Conn {
	t.Helper()
	client, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	return client
}

func awaitGreeting(t *testing.T, client net.Conn) {
	t.Helper()
	_ = client.SetReadDeadline(time.Now().Add(20 * time.Second)) // sockets have them
	text := make([]byte, len(hello))
	if _, err := io.ReadFull(client, text); err != nil || string(text) != hello {
		t.Errorf("greeting %q, %v", text, err)
	}
}

func checkWaits(t *testing.T, client net.Conn) {
	t.Helper()
	_ = client.SetReadDeadline(time.Now().Add(10 * time.Millisecond)) // sockets have them
	if n, err := client.Read(make([]byte, 10)); n != 0 || !os.IsTimeout(err) {
		t.Errorf("it does not wait any more: %d bytes, %v", n, err)
	}
}

func greeted(ctx context.Context, t *testing.T, c *Conn) (names []string) {
	t.Helper()
	all, err := c.Kept(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return slices.DeleteFunc(all, func(name string) bool { return !strings.HasPrefix(name, "g/") })
}

// TestGreetTwice: what waits for a daemon waits on when that is killed too, and the
// next one says GREET anew.
func TestGreetTwice(t *testing.T) {
	c := startMonitor(t)
	ctx := testContext(t)
	path := listenKept(t, c)
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	const first = "g/1" // a name that is taken
	if err := c.Keep(ctx, first, null); err != nil {
		t.Fatal(err)
	}
	var clients []net.Conn
	const limit = 4
	for range limit - 1 {
		greetAndGo(t, c.dir, limit)
		client := dialGreeter(t, path)
		awaitGreeting(t, client)
		clients = append(clients, client)
	}
	names := greeted(ctx, t, c)
	if distinct := slices.Compact(slices.Sorted(slices.Values(names))); len(distinct) != limit {
		t.Errorf("kept: %q", names)
	}
	files, err := c.Fetch(ctx, first)
	if err != nil || len(files) != 1 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	defer closeFiles(files)
	if st, err := files[0].Stat(); err != nil || st.Mode()&os.ModeDevice == 0 {
		t.Errorf("something else is kept as %s: %v, %v", first, st, err)
	}
	// All of them count, whoever greeted.
	greetAndGo(t, c.dir, limit)
	next := dialGreeter(t, path)
	for _, client := range append(clients, next) {
		checkWaits(t, client)
	}
	if err := c.Drop(ctx, first); err != nil {
		t.Fatal(err)
	}
	awaitGreeting(t, next)
}

// TestGreetRootOnly: others are neither greeted nor kept.
func TestGreetRootOnly(t *testing.T) {
	c := startMonitor(t)
	ctx := testContext(t)
	path := listenKept(t, c)
	// Let nobody reach the socket, so that only the monitor refuses.
	dir := filepath.Dir(path)
	if err := errors.Join(os.Chmod(filepath.Dir(dir), 0o755), os.Chmod(dir, 0o755), os.Chmod(path, 0o777)); err != nil {
		t.Fatal(err)
	}
	greetAndGo(t, c.dir, 1)
	exits := mustSubscribe(t, c)
	mustSpawn(t, c, self(t, "stranger", path))
	if e := nextExit(t, exits); e.Status != 0 {
		t.Errorf("status %#x", e.Status)
	}
	if names := greeted(ctx, t, c); len(names) != 0 {
		t.Errorf("kept: %q", names)
	}
	awaitGreeting(t, dialGreeter(t, path))
}

// playStranger gives up root, connects and tells with its exit code whether it was
// greeted.
func playStranger(path string) int {
	if err := unix.Setresuid(65534, 65534, 65534); err != nil {
		return 3
	}
	conn, err := net.Dial("unix", path)
	if err != nil {
		return 4
	}
	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		return 5
	}
	n, err := conn.Read(make([]byte, 100))
	if n > 0 {
		return 1
	}
	if err == nil || os.IsTimeout(err) {
		return 2
	}
	return 0
}
