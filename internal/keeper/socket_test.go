package keeper

import (
	"io"
	"net"
	"os"
	"testing"
)

// TestSocket: clients of the daemon's own sockets wait for the next daemon, and those
// that need a greeting get it.
func TestSocket(t *testing.T) {
	r := newRig(t)
	path := r.path()
	var waiting []net.Conn
	for range 3 {
		k := r.open()
		l, err := k.Greeted(testContext(t), path, []byte("hello"), listenAt)
		if err != nil {
			t.Fatal(err)
		}
		waiting = append(waiting, r.dial())
		for _, client := range waiting {
			c, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			if _, err := c.Write([]byte("served")); err != nil {
				t.Fatal(err)
			}
			c.Close()
			text, err := io.ReadAll(client)
			if err != nil || string(text) != "served" {
				t.Errorf("%q, %v", text, err)
			}
		}
		l.Close()
		kill(k)
		waiting = nil
		for range 2 {
			client := r.dial()
			var text [5]byte
			if _, err := io.ReadFull(client, text[:]); err != nil || string(text[:]) != "hello" {
				t.Errorf("greeting %q, %v", text, err)
			}
			waiting = append(waiting, client)
		}
	}
	// One that somebody removed is made anew.
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	k := r.open()
	l, err := k.Greeted(testContext(t), path, nil, listenAt)
	if err != nil {
		t.Fatal(err)
	}
	r.dial()
	l.Close()
	if err := k.Close(testContext(t)); err != nil {
		t.Error(err)
	}
}
