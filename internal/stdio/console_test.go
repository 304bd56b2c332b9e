package stdio

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// socketDir is short: a socket's path has room for 107 bytes.
func socketDir(t *testing.T) string {
	t.Helper()
	dir := must(os.MkdirTemp("", "c"))(t)
	t.Cleanup(func() {
		if err := os.Remove(dir); err != nil { // not RemoveAll: it must be empty
			t.Error(err)
		}
	})
	return dir
}

// send does what an OCI runtime does, with any number of descriptors.
func send(path string, files ...*os.File) error {
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return err
	}
	defer conn.Close()
	var fds []int
	for _, f := range files {
		if err := withFD(f, func(fd int) error { fds = append(fds, fd); return nil }); err != nil {
			return err
		}
	}
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	_, _, err = conn.WriteMsgUnix([]byte("/dev/pts/0"), oob, nil)
	return err
}

func TestConsoleSocket(t *testing.T) {
	c := must(Listen(socketDir(t)))(t)
	info := must(os.Stat(c.Path()))(t)
	if info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v", info.Mode())
	}
	master, slave := openPTY(t)
	sent := make(chan error, 1)
	go func() { sent <- send(c.Path(), master) }()
	got := must(c.Accept(testContext(t)))(t)
	defer got.Close()
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
	must(slave.WriteString("through"))(t)
	expect(t, got, "through")
	if err := c.Close(); err != nil {
		t.Errorf("close after accept: %v", err)
	}
	if err := send(c.Path(), master); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("second connection: %v, want that nothing is there", err)
	}
}

// TestConsoleSocketOfRoot: what another user sends is not taken, and does not keep the
// runtime from sending.
func TestConsoleSocketOfRoot(t *testing.T) {
	dir := socketDir(t)
	c := must(Listen(dir))(t)
	// Let nobody reach the socket, so that only Accept refuses.
	if err := errors.Join(os.Chmod(dir, 0o755), os.Chmod(c.Path(), 0o777)); err != nil {
		t.Fatal(err)
	}
	stranger := exec.Command("/proc/self/exe", c.Path())
	stranger.Env = append(os.Environ(), roleVar+"=stranger")
	stranger.Stderr = os.Stderr
	type terminal struct {
		file *os.File
		err  error
	}
	accepted := make(chan terminal, 1)
	ctx := testContext(t)
	go func() {
		f, err := c.Accept(ctx)
		accepted <- terminal{f, err}
	}()
	if err := stranger.Run(); err != nil {
		t.Errorf("the stranger was not refused: %v", err)
	}
	master, slave := openPTY(t)
	sent := send(c.Path(), master)
	got := <-accepted
	if got.err != nil {
		t.Fatal(got.err)
	}
	defer got.file.Close()
	if sent != nil {
		t.Fatalf("nobody waited for the runtime: %v", sent)
	}
	must(slave.WriteString("of root"))(t)
	expect(t, got.file, "of root")
}

// playStranger sends a terminal as nobody, and fails unless it is hung up on.
func playStranger() {
	master, err := os.OpenFile("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY, 0)
	if err == nil {
		err = unix.Setresuid(65534, 65534, 65534)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: os.Args[1], Net: "unix"})
	if err == nil {
		// It may be refused before that.
		_, _, _ = conn.WriteMsgUnix([]byte("/dev/pts/0"), unix.UnixRights(int(master.Fd())), nil)
		err = conn.SetReadDeadline(time.Now().Add(patience))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	if n, err := conn.Read(make([]byte, 1)); n > 0 || err == nil || os.IsTimeout(err) {
		os.Exit(1)
	}
	os.Exit(0)
}

func TestConsoleSocketRefuses(t *testing.T) {
	master, slave := openPTY(t)
	null := must(os.Open(os.DevNull))(t)
	defer null.Close()
	var many []*os.File
	for range 3 * maxConsoleFiles {
		many = append(many, master)
	}
	before := len(openFiles())
	for name, files := range map[string][]*os.File{
		"nothing": nil, "no terminal": {null}, "slave": {slave}, "two": {master, master}, "many": many,
	} {
		c := must(Listen(socketDir(t)))(t)
		sent := make(chan error, 1)
		go func() { sent <- send(c.Path(), files...) }()
		if f, err := c.Accept(testContext(t)); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v, %v, want InvalidArgument", name, f, err)
		}
		if err := <-sent; err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if after := len(openFiles()); after != before {
		t.Errorf("%d descriptors, before %d: %q", after, before, openFiles())
	}
}

func TestConsoleSocketGivesUp(t *testing.T) {
	ctx, cancel := context.WithCancel(testContext(t))
	c := must(Listen(socketDir(t)))(t)
	cancel()
	if _, err := c.Accept(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("nobody connects: %v", err)
	}

	ctx, cancel = context.WithCancel(testContext(t))
	c = must(Listen(socketDir(t)))(t)
	conn := must(net.Dial("unix", c.Path()))(t)
	defer conn.Close()
	cancel()
	if _, err := c.Accept(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("nobody sends: %v", err)
	}

	c = must(Listen(socketDir(t)))(t)
	must(net.Dial("unix", c.Path()))(t).Close()
	if _, err := c.Accept(testContext(t)); !errdefs.IsUnavailable(err) {
		t.Errorf("the runtime hangs up: %v, want Unavailable", err)
	}
	if _, err := Listen("/" + strings.Repeat("x", 110)); !errdefs.IsInvalidArgument(err) {
		t.Errorf("long path: %v, want InvalidArgument", err)
	}
	if _, err := Listen(t.TempDir() + "/none"); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("no directory: %v, want FailedPrecondition", err)
	}
}
