package keeper

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/containerd/log"
	"golang.org/x/sys/unix"

	"caisson/internal/fault"
	"caisson/internal/request"
)

const (
	// chunk is how much is taken out of a socket at once.
	chunk = 32 << 10
	// sendBuffer is so large that no frame is ever cut in two: the kernel puts a
	// frame into the socket whole or, if queueLimit is exceeded, not at all.
	sendBuffer = 16 << 20
	queueLimit = 256 << 10
)

// Conn is a connection whose client does not notice the daemon's end. To a ttrpc
// server it is a net.Conn like any other; whoever reads from it gets the requests
// that an earlier daemon did not answer first, in the order of their streams.
type Conn struct {
	*net.UnixConn
	k       *Keeper
	name    string // of what the keeper keeps
	journal *journal
	raw     syscall.RawConn
	close   func() error

	// Of the one goroutine that reads.
	ready   [][]byte // frames for the server
	passing uint32   // bytes to come of a frame that is not recorded
	partial *slot    // the request that is being received

	// Of the one goroutine that writes.
	out []byte // the beginning of a frame

	frozen atomic.Bool
}

// newConn takes over a connection and its memory.
func newConn(k *Keeper, name string, sock *os.File, j *journal) (*Conn, error) {
	nc, err := net.FileConn(sock)
	if err != nil {
		return nil, fmt.Errorf("connection %s: %w", name, err)
	}
	uc, ok := nc.(*net.UnixConn)
	if !ok {
		return nil, errors.Join(fmt.Errorf("connection %s: it is a %T", name, nc), nc.Close())
	}
	c := &Conn{UnixConn: uc, k: k, name: name, journal: j}
	if c.raw, err = uc.SyscallConn(); err == nil {
		err = c.control(func(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, sendBuffer) })
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("connection %s: %w", name, err), uc.Close())
	}
	c.close = sync.OnceValue(c.end)
	return c, nil
}

func (c *Conn) control(f func(fd int) error) error {
	var inner error
	if err := c.raw.Control(func(fd uintptr) { inner = f(int(fd)) }); err != nil {
		return err
	}
	return inner
}

// adopt goes on where an earlier daemon ended. hungUp: there is no client any more.
func (c *Conn) adopt() (hungUp bool, err error) {
	found, err := c.journal.load()
	if err != nil {
		return false, fmt.Errorf("connection %s: %w", c.name, err)
	}
	err = c.control(func(fd int) error {
		hungUp = hangup(fd)
		return c.settlePeek(fd, found)
	})
	if hungUp || err != nil {
		return hungUp, err
	}
	for _, s := range found {
		switch s.state {
		case receiving:
			c.partial = s
		case received:
			c.ready = append(c.ready, c.tagged(s))
		case answered:
			// It may have been sent already; a client ignores what it does not wait for.
			if err := c.send(s.answer); err != nil {
				return false, err
			}
			if err := c.journal.close(s); err != nil {
				return false, err
			}
		}
	}
	return false, nil
}

func hangup(fd int) bool {
	p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
	n, err := unix.Poll(p, 0)
	return err == nil && n > 0 && p[0].Revents&(unix.POLLRDHUP|unix.POLLHUP|unix.POLLERR) != 0
}

// settlePeek takes out of the socket what was recorded and is still in there. The
// socket itself remembers how much was looked at and not taken (SO_PEEK_OFF).
func (c *Conn) settlePeek(fd int, found []*slot) error {
	peeked, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PEEK_OFF)
	if err != nil {
		return fmt.Errorf("connection %s: %w", c.name, err)
	}
	for _, s := range found {
		if s.pending == 0 {
			continue
		}
		switch peeked {
		case int(s.pending):
			err = take(fd, s.pending)
		case 0, -1: // it was taken
		default:
			err = corrupt("bytes that were looked at", peeked)
		}
		if err == nil {
			err = c.journal.taken(s)
		}
		if err != nil {
			return fmt.Errorf("connection %s: %w", c.name, err)
		}
	}
	return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PEEK_OFF, 0)
}

// take removes n bytes from the socket that are known to be there.
func take(fd int, n uint32) error {
	buf := make([]byte, n)
	got, err := recv(fd, buf, unix.MSG_DONTWAIT)
	if err == nil && got != int(n) {
		err = corrupt("bytes taken", got)
	}
	return err
}

func recv(fd int, buf []byte, flags int) (int, error) {
	for {
		n, _, err := unix.Recvfrom(fd, buf, flags)
		if err != unix.EINTR {
			return n, err
		}
	}
}

func (c *Conn) id(stream uint32) string { return fmt.Sprintf("%s/%d", c.name, stream) }

// tagged is a request's frame with its ID, for the server.
func (c *Conn) tagged(s *slot) []byte {
	frame := withID(s.frame, c.id(s.stream))
	s.frame = nil
	return frame
}

// request is what handlers may know of one.
func (c *Conn) request(stream uint32) request.Request {
	s := c.journal.find(stream)
	if s == nil {
		return request.Request{}
	}
	return request.New(c.id(stream), s.again, s.note, func(note []byte) error { return c.journal.setNote(s, note) })
}

// Read is for one goroutine. Every error ends the connection.
func (c *Conn) Read(p []byte) (int, error) {
	for len(c.ready) == 0 {
		err := c.fill()
		select {
		case <-c.k.closing:
			<-c.k.closed // What was read is recorded, and the next daemon's.
			return 0, io.EOF
		default:
		}
		if err == io.EOF {
			return 0, err
		}
		if err != nil {
			return 0, fmt.Errorf("%w: %w", io.ErrUnexpectedEOF, err)
		}
	}
	n := copy(p, c.ready[0])
	if c.ready[0] = c.ready[0][n:]; len(c.ready[0]) == 0 {
		c.ready = c.ready[1:]
	}
	return n, nil
}

// fill waits until there is something to read, and reads it.
func (c *Conn) fill() error {
	var err error
	rerr := c.raw.Read(func(fd uintptr) bool {
		var done bool
		done, err = c.receive(int(fd))
		return done
	})
	if rerr != nil {
		return rerr
	}
	return err
}

var chunks = sync.Pool{New: func() any { return new([chunk]byte) }}

// receive looks at what is in the socket, records it and takes it out; false: wait
// for more.
func (c *Conn) receive(fd int) (done bool, err error) {
	buf := chunks.Get().(*[chunk]byte)
	defer chunks.Put(buf)
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PEEK_OFF, 0); err != nil {
		return true, err
	}
	n, err := recv(fd, buf[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
	switch {
	case err == unix.EAGAIN:
		return false, nil
	case err != nil:
		return true, os.NewSyscallError("recv", err)
	case n == 0:
		return true, c.ended()
	}
	if c.partial == nil && c.passing == 0 {
		if n < frameHead {
			// Nothing is taken before it can be recorded: the rest is about to come, or the end.
			if n, err := recv(fd, buf[n:], unix.MSG_PEEK|unix.MSG_DONTWAIT); err == nil && n == 0 {
				return true, io.ErrUnexpectedEOF
			}
			return false, nil
		}
		if err := c.begin(parseHead(buf[:n])); err != nil {
			return true, err
		}
	}
	return c.takePart(fd, buf[:n])
}

func (c *Conn) ended() error {
	if c.partial != nil || c.passing > 0 {
		return io.ErrUnexpectedEOF
	}
	return io.EOF
}

// begin decides what to do with a frame. What is not a request, which no client of
// these services sends, or has a stream that is in use, is passed on to be refused.
// So is a request for which the journal has no room, to be served all the same: it is
// lost if the daemon is killed before it has answered.
func (c *Conn) begin(h head) error {
	if h.length() > maxFrame {
		return fmt.Errorf("connection %s: frame of %d bytes: %w", c.name, h.payload, unix.EMSGSIZE)
	}
	if h.typ != typeRequest || c.journal.find(h.stream) != nil {
		c.passing = h.length()
		return nil
	}
	if c.partial = c.journal.open(h.stream, h.length()); c.partial == nil {
		log.L.WithField("connection", c.name).Warnf("%d requests wait for an answer: another one is not recorded", maxSlots)
		c.passing = h.length()
	}
	return nil
}

// takePart handles bytes that are in the socket: as many as belong to one frame.
func (c *Conn) takePart(fd int, data []byte) (done bool, err error) {
	s := c.partial
	if s == nil {
		data = data[:min(len(data), int(c.passing))]
		c.passing -= uint32(len(data))
		c.ready = append(c.ready, append([]byte(nil), data...))
		return true, take(fd, uint32(len(data)))
	}
	data = data[:min(len(data), int(s.want-s.got))]
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PEEK_OFF, len(data)); err != nil {
		return true, err
	}
	fault.Point("request:peeked")
	if err := c.journal.record(s, data); err != nil {
		return true, err
	}
	fault.Point("request:recorded")
	if err := take(fd, uint32(len(data))); err != nil {
		return true, err
	}
	fault.Point("request:taken")
	if err := c.journal.taken(s); err != nil {
		return true, err
	}
	if s.state == received {
		c.ready = append(c.ready, c.tagged(s))
		c.partial = nil
	}
	return true, nil
}

// Write is for one goroutine. What it is given is sent when a frame is complete.
func (c *Conn) Write(p []byte) (int, error) {
	rest := p
	if len(c.out) > 0 {
		rest = append(c.out, p...)
	}
	for len(rest) >= frameHead {
		h := parseHead(rest)
		if h.length() > maxFrame {
			return 0, fmt.Errorf("connection %s: answer of %d bytes: %w", c.name, h.payload, unix.EMSGSIZE)
		}
		if len(rest) < int(h.length()) {
			break
		}
		if err := c.reply(h, rest[:h.length()]); err != nil {
			return 0, err
		}
		rest = rest[h.length():]
	}
	c.out = append([]byte(nil), rest...)
	return len(p), nil
}

// reply records an answer, sends it, and forgets the request. If the daemon is
// killed in between, the next one sends it, perhaps for the second time.
func (c *Conn) reply(h head, frame []byte) error {
	if c.frozen.Load() {
		// The client must not see how a daemon takes itself apart.
		<-c.k.closed
		return nil
	}
	s := c.journal.find(h.stream)
	if s == nil || h.typ != typeResponse {
		return c.send(frame)
	}
	fault.Point("request:handled")
	if err := c.journal.setAnswer(s, frame); err != nil {
		return err
	}
	fault.Point("request:answered")
	if err := c.send(frame); err != nil {
		return err
	}
	fault.Point("request:sent")
	return c.journal.close(s)
}

// send puts a frame into the socket, in one piece.
func (c *Conn) send(frame []byte) error {
	var err error
	werr := c.raw.Write(func(fd uintptr) bool {
		var queued, n int
		if queued, err = unix.IoctlGetInt(int(fd), unix.SIOCOUTQ); err != nil {
			return true
		}
		if queued > queueLimit {
			return false // until the client has read some
		}
		for {
			n, err = unix.SendmsgN(int(fd), frame, nil, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
			if err != unix.EINTR {
				break
			}
		}
		if err == unix.EAGAIN {
			return false
		}
		if err == nil && n != len(frame) {
			err = fmt.Errorf("connection %s: %d of %d bytes were sent: %w", c.name, n, len(frame), io.ErrShortWrite)
		}
		return true
	})
	if werr != nil {
		return werr
	}
	if err != nil {
		return os.NewSyscallError("sendmsg", err)
	}
	return nil
}

// freeze keeps answers back from now on: they are the next daemon's to give.
func (c *Conn) freeze() { c.frozen.Store(true) }

// Close ends the connection, unless the daemon is about to end: then it is the
// next one's.
func (c *Conn) Close() error { return c.close() }

func (c *Conn) end() error {
	var err error
	if c.frozen.Load() {
		gone := false
		_ = c.control(func(fd int) error { gone = hangup(fd); return nil }) // it is open
		if gone {
			err = c.k.forget(c.name)
		}
	} else {
		err = c.k.forget(c.name)
	}
	err = errors.Join(err, c.UnixConn.Close(), c.journal.f.Close())
	if err != nil {
		log.G(context.Background()).WithError(err).WithField("connection", c.name).Warn("close a client's connection")
	}
	return err
}
