package stdio

import (
	"context"
	"errors"
	"net"
	"os"
	"strings"
	"testing"

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
