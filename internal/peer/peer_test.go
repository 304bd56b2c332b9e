package peer

import (
	"net"
	"os"
	"path/filepath"
	"testing"
)

func TestUID(t *testing.T) {
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ours, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer ours.Close()
	theirs, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	for _, conn := range []net.Conn{ours, theirs} {
		if uid, err := UID(conn); err != nil || int(uid) != os.Getuid() {
			t.Errorf("user %d, %v", uid, err)
		}
	}
	a, b := net.Pipe()
	defer b.Close()
	if uid, err := UID(a); err == nil {
		t.Errorf("user %d of what is no socket", uid)
	}
	if err := theirs.Close(); err != nil {
		t.Fatal(err)
	}
	if uid, err := UID(theirs); err == nil {
		t.Errorf("user %d of what is closed", uid)
	}
}
