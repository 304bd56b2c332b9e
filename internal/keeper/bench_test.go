package keeper

import (
	"io"
	"net"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"caisson/internal/ceiling"
)

// BenchmarkCall is a request and its answer, through a connection that is kept and
// one that is not.
func BenchmarkCall(b *testing.B) {
	pair := func() (client, server *os.File) {
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			b.Fatal(err)
		}
		return os.NewFile(uintptr(fds[0]), "client"), os.NewFile(uintptr(fds[1]), "server")
	}
	run := func(b *testing.B, client *os.File, server net.Conn) {
		defer client.Close()
		payload := make([]byte, 100)
		buf := make([]byte, 4096)
		stream := uint32(1)
		defer ceiling.Allocs(b, 45)()
		for b.Loop() {
			if _, err := client.Write(call(stream, "State", payload)); err != nil {
				b.Fatal(err)
			}
			if _, err := server.Read(buf); err != nil {
				b.Fatal(err)
			}
			if _, err := server.Write(frame(stream, typeResponse, payload)); err != nil {
				b.Fatal(err)
			}
			if _, err := io.ReadFull(client, buf[:frameHead+len(payload)]); err != nil {
				b.Fatal(err)
			}
			stream += 2
		}
	}
	b.Run("kept", func(b *testing.B) {
		client, server := pair()
		c, err := newConn(&Keeper{closing: make(chan struct{})}, "c/bench/x", server, newTestJournal(b))
		if err != nil {
			b.Fatal(err)
		}
		server.Close()
		defer c.UnixConn.Close()
		run(b, client, c)
	})
	b.Run("plain", func(b *testing.B) {
		client, server := pair()
		c, err := net.FileConn(server)
		if err != nil {
			b.Fatal(err)
		}
		server.Close()
		defer c.Close()
		run(b, client, c)
	})
}
