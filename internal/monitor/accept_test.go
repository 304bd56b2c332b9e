package monitor

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// listenPipe is a listening socket, as a file.
func listenPipe(t testing.TB) *os.File {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(t.TempDir(), "s"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	l.SetUnlinkOnClose(false)
	f, err := l.File()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func TestAccept(t *testing.T) {
	c := startMonitor(t)
	ctx := testContext(t)
	sock := listenPipe(t)
	addr, err := unix.Getsockname(int(sock.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	path := addr.(*unix.SockaddrUnix).Name
	if err := c.Keep(ctx, "l", sock); err != nil {
		t.Fatal(err)
	}
	base := len(openFDs(fmt.Sprint(c.Pid())))
	// The socket blocks, the monitor must not.
	if err := unix.SetNonblock(int(sock.Fd()), false); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Accept(ctx, "l", "c/1"); !errors.Is(err, unix.EAGAIN) {
		t.Errorf("nobody connected: %v", err)
	}
	client, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	for name, accept := range map[string]func() error{
		"unknown listener": func() error { _, err := c.Accept(ctx, "x", "c/1"); return err },
		"its own name":     func() error { _, err := c.Accept(ctx, "l", "l"); return err },
		"no name":          func() error { _, err := c.Accept(ctx, "l", ""); return err },
		"too many": func() error {
			_, err := c.Accept(ctx, "l", "c/1", null, null, null, null, null, null, null, null)
			return err
		},
	} {
		if err := accept(); !errdefs.IsNotFound(err) && !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	conn, err := c.Accept(ctx, "l", "c/1", null)
	if err != nil {
		t.Fatal(err)
	}
	// It goes on without whoever asked for it.
	if err := conn.Close(); err != nil {
		t.Fatal(err)
	}
	files, err := c.Fetch(ctx, "c/1")
	if err != nil || len(files) != 2 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	defer closeFiles(files)
	if _, err := files[0].WriteString("hello"); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 10)
	if n, err := client.Read(buf); err != nil || string(buf[:n]) != "hello" {
		t.Errorf("read %q, %v", buf[:n], err)
	}
	if err := c.DropPrefix(ctx, "c/"); err != nil {
		t.Fatal(err)
	}
	closeFiles(files)
	if n, err := client.Read(buf); n != 0 || err == nil {
		t.Errorf("the connection is open: %v", err)
	}
	if now := openFDs(fmt.Sprint(c.Pid())); len(now) != base {
		t.Errorf("descriptors: %v, at first %d", now, base)
	}
}

func TestKeepFIFO(t *testing.T) {
	c := startMonitor(t)
	ctx := testContext(t)
	name := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(name, 0o600); err != nil {
		t.Fatal(err)
	}
	open := func(name string) *os.File {
		fd, err := unix.Open(name, unix.O_PATH|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		f := os.NewFile(uintptr(fd), name)
		t.Cleanup(func() { f.Close() })
		return f
	}
	kept, err := c.KeepFIFO(ctx, "f", open(name))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := kept.WriteString("x"); err != nil {
		t.Fatal(err)
	}
	if err := kept.Close(); err != nil {
		t.Fatal(err)
	}
	// The monitor alone has it open: the reader neither waits for a writer nor
	// loses what was written, and sees an end only when it is dropped.
	fd, err := unix.Open(name, unix.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	buf := make([]byte, 2)
	if n, err := unix.Read(fd, buf); n != 1 || err != nil {
		t.Errorf("read %d, %v", n, err)
	}
	if _, err := unix.Read(fd, buf); err != unix.EAGAIN {
		t.Errorf("read: %v", err)
	}
	if err := c.Drop(ctx, "f"); err != nil {
		t.Fatal(err)
	}
	if n, err := unix.Read(fd, buf); n != 0 || err != nil {
		t.Errorf("read %d, %v after the end", n, err)
	}
	for _, other := range []string{os.DevNull, t.TempDir()} {
		if _, err := c.KeepFIFO(ctx, "f", open(other)); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v", other, err)
		}
	}
}

func TestSignalOnce(t *testing.T) {
	c := startMonitor(t)
	ctx := testContext(t)
	out, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	ready, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer ready.Close()
	p := mustSpawn(t, c, SpawnRequest{Args: sh(`trap 'echo got' USR1; trap 'exit 0' TERM; echo; while :; do /bin/sleep 0.01; done`), Files: []*os.File{nil, out, nil, w}})
	w.Close()
	exits := mustSubscribe(t, c)
	eventually(t, "the shell is ready", func() bool { st, err := out.Stat(); return err == nil && st.Size() == 1 })
	lines := int64(1)
	for i, token := range []uint64{7, 7, 8, 8, 7} {
		if err := c.SignalOnce(ctx, p.Serial, unix.SIGUSR1, token); err != nil {
			t.Fatal(err)
		}
		if i%2 == 0 { // a new token
			lines += int64(len("got\n"))
			eventually(t, "the signal comes", func() bool { st, err := out.Stat(); return err == nil && st.Size() == lines })
		}
	}
	if err := c.SignalOnce(ctx, p.Serial, unix.SIGTERM, 9); err != nil {
		t.Fatal(err)
	}
	nextExit(t, exits)
	if st, err := out.Stat(); err != nil || st.Size() != lines {
		t.Errorf("%d bytes, want %d, %v", st.Size(), lines, err)
	}
	if err := c.SignalOnce(ctx, p.Serial, unix.SIGTERM, 9); !errdefs.IsNotFound(err) {
		t.Errorf("signal to what has ended: %v", err)
	}
}
