package monitor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"caisson/internal/fault"
	"caisson/internal/reap"
	"caisson/internal/tracing"
)

// Conn is a connection to a monitor. Its methods may be called concurrently.
// A request whose ctx ends may still be carried out. Once the connection is
// gone all requests fail with errdefs.ErrUnavailable. Close must be called in
// any case.
type Conn struct {
	sock     *net.UnixConn
	pid      int
	version  uint16          // of the protocol, from hello
	finished <-chan struct{} // the process was waited for; nil if it is not our child

	writing chan struct{} // a semaphore of one: who holds it may write and set the write deadline
	closing chan struct{} // closed by Close
	done    chan struct{} // closed when the reader ends; err is set then
	err     error
	wg      sync.WaitGroup
	close   func() error
	exits   exitQueue

	mu         sync.Mutex // guards what follows
	dir        string
	pending    map[uint32]chan reply
	lastID     uint32
	subscribed bool
	life       *os.File // of EndWithProcess: the monitor's pidfd
	closed     bool     // no new goroutines
}

// reply is what the reader hands to the request that waits for it.
type reply struct {
	typ   uint16
	flags uint32
	body  decoder
	files []*os.File
}

func newConn(dir string, sock *net.UnixConn, child started) *Conn {
	c := &Conn{
		dir:      dir,
		sock:     sock,
		pid:      child.pid,
		version:  protocolVersion,
		finished: child.finished,
		writing:  make(chan struct{}, 1),
		closing:  make(chan struct{}),
		done:     make(chan struct{}),
		pending:  make(map[uint32]chan reply),
	}
	c.exits.run, c.exits.closing = c.background, c.closing
	c.close = sync.OnceValue(func() error {
		c.mu.Lock()
		c.closed = true
		life := c.life
		c.mu.Unlock()
		close(c.closing)
		err := c.sock.Close()
		if life != nil {
			_ = life.Close() // only looked at
		}
		c.wg.Wait()
		c.exits.close()
		if errors.Is(err, net.ErrClosed) { // by the reader, which got what makes no sense
			return nil
		}
		return err
	})
	c.wg.Go(c.read)
	return c
}

// background runs what Close waits for; after Close, nothing.
func (c *Conn) background(f func()) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.closed {
		c.wg.Go(f)
	}
	return !c.closed
}

// where is the monitor's directory, for messages.
func (c *Conn) where() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.dir
}

// Pid is the monitor's process id.
func (c *Conn) Pid() int { return c.pid }

// Done is closed when the connection is gone.
func (c *Conn) Done() <-chan struct{} { return c.done }

// Err says why the connection is gone; nil before Done is closed.
func (c *Conn) Err() error {
	select {
	case <-c.done:
		return c.err
	default:
		return nil
	}
}

// EndWithProcess lets the connection end when the monitor's process does, after what it
// has sent: somebody else, like a process that it was just starting, may hold its end
// open. One that this process has started does so by itself. It is called at most once.
func (c *Conn) EndWithProcess() error {
	if c.finished != nil {
		return nil
	}
	fd, err := reap.Open(c.pid)
	if errors.Is(err, unix.ESRCH) {
		err = fmt.Errorf("%w: %w", errdefs.ErrUnavailable, err)
	}
	if err != nil {
		return c.wrap("watch its process", err)
	}
	life := os.NewFile(uintptr(fd), "pidfd")
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return c.wrap("watch its process", errors.Join(errdefs.ErrUnavailable, life.Close()))
	}
	c.life = life
	c.wg.Go(func() {
		if reap.AwaitEnd(life) == nil {
			_ = c.hangUp()
		}
	})
	return nil
}

// hangUp ends the connection once all is read that was sent.
func (c *Conn) hangUp() error { return c.sock.CloseRead() }

// Close drops the connection. The monitor and the sandbox live on.
func (c *Conn) Close() error { return c.close() }

// read is the goroutine that receives; Close waits for it.
func (c *Conn) read() {
	err := c.receive()
	select {
	case <-c.closing:
		err = fmt.Errorf("monitor %s: connection closed: %w", c.where(), errdefs.ErrUnavailable)
	default:
		err = fmt.Errorf("monitor %s: connection lost: %w: %w", c.where(), errdefs.ErrUnavailable, err)
	}
	c.err = err
	close(c.done)
	c.exits.finish()
}

// buffer is what one message is received into.
type buffer struct {
	msg [maxMessage + 1]byte
	oob [(unix.SizeofCmsghdr + maxFDs*4 + 7) &^ 7]byte // CmsgSpace
}

// buffers are for one message each. A connection has none while it waits: there
// are as many as sandboxes, and nearly all are silent.
var buffers = sync.Pool{New: func() any { return new(buffer) }}

func (c *Conn) receive() error {
	raw, err := c.sock.SyscallConn()
	if err != nil {
		return err
	}
	for {
		msg, files, err := receiveMessage(raw)
		if err == nil {
			err = c.dispatch(msg, files)
		}
		if err == io.EOF {
			return err
		}
		if err != nil {
			return fmt.Errorf("receive: %w", errors.Join(err, c.sock.Close()))
		}
	}
}

// receiveMessage waits for a message and the files that came with it.
func receiveMessage(raw syscall.RawConn) (msg []byte, files []*os.File, err error) {
	var failed error
	err = raw.Read(func(fd uintptr) bool {
		msg, files, failed = receiveNow(int(fd))
		return failed != unix.EAGAIN
	})
	if err == nil {
		err = failed
	}
	return msg, files, err
}

// receiveNow fails with EAGAIN if there is no message.
func receiveNow(fd int) (msg []byte, files []*os.File, err error) {
	buf := buffers.Get().(*buffer)
	defer buffers.Put(buf)
	var n, oobn, flags int
	for {
		n, oobn, flags, _, err = unix.Recvmsg(fd, buf.msg[:], buf.oob[:], unix.MSG_CMSG_CLOEXEC)
		if err != unix.EINTR {
			break
		}
	}
	if err != nil {
		return nil, nil, err
	}
	if n == 0 && oobn == 0 {
		return nil, nil, io.EOF
	}
	files, err = parseFiles(buf.oob[:oobn])
	if err == nil && (flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 || n > maxMessage) {
		err = errors.New("message was cut")
	}
	if err != nil {
		closeFiles(files)
		return nil, nil, err
	}
	return slices.Clone(buf.msg[:n]), files, nil
}

// dispatch hands a message, and its files, to the one it is for.
func (c *Conn) dispatch(msg []byte, files []*os.File) error {
	d := decoder{buf: msg}
	h := d.header()
	if d.bad || int(h.fds) != len(files) {
		closeFiles(files)
		return errors.New("malformed message")
	}
	if h.typ == msgExit {
		closeFiles(files)
		r := d.record()
		if d.bad {
			return errors.New("malformed exit")
		}
		c.mu.Lock()
		subscribed := c.subscribed
		c.mu.Unlock()
		if subscribed {
			c.exits.put(r.Exit)
		}
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	ch := c.pending[h.id]
	delete(c.pending, h.id)
	if ch == nil { // its request was given up
		closeFiles(files)
		return nil
	}
	ch <- reply{typ: h.typ, flags: h.flags, body: d, files: files} // buffered
	return nil
}

// request is one message to the monitor; fill writes its body.
type request struct {
	typ   uint16
	flags uint32
	files []*os.File
	// blocking puts the files, as a process expects its own, into blocking mode.
	blocking bool
	fill     func(*encoder)
}

// call sends a request and waits for its reply, whose files are the caller's.
func (c *Conn) call(ctx context.Context, r request) (reply, error) {
	ctx, end := tracing.Child(ctx, spans[r.typ])
	rep, err := c.exchange(ctx, r)
	end(err)
	return rep, err
}

func (c *Conn) exchange(ctx context.Context, r request) (reply, error) {
	ch := make(chan reply, 1)
	c.mu.Lock()
	for c.lastID++; c.lastID == 0 || c.pending[c.lastID] != nil; c.lastID++ {
	}
	id := c.lastID
	c.pending[id] = ch
	c.mu.Unlock()

	err := c.send(ctx, id, r)
	if err == nil {
		fault.Point("monitor:sent")
		select {
		case rep := <-ch:
			return c.checkReply(r.typ, rep)
		case <-ctx.Done():
			err = ctx.Err()
		case <-c.done:
			err = c.err
		}
	}
	c.mu.Lock()
	delete(c.pending, id)
	c.mu.Unlock()
	select {
	case rep := <-ch: // it came just now: an answer is better than a doubt
		return c.checkReply(r.typ, rep)
	default:
		return reply{}, err
	}
}

func (c *Conn) checkReply(typ uint16, rep reply) (reply, error) {
	fault.Point("monitor:answered")
	if rep.typ == typ|msgReply {
		return rep, nil
	}
	closeFiles(rep.files)
	errno := unix.Errno(rep.body.u32())
	step := rep.body.string()
	if rep.typ != msgError || rep.body.bad {
		return reply{}, fmt.Errorf("malformed reply: %w", errdefs.ErrInternal)
	}
	return reply{}, &Error{Step: step, Errno: errno}
}

func (c *Conn) send(ctx context.Context, id uint32, r request) error {
	if len(r.files) > maxFDs {
		return &Error{Step: "number of files", Errno: unix.E2BIG}
	}
	e := newEncoder(header{version: c.version, typ: r.typ, id: id, flags: r.flags, fds: uint16(len(r.files))})
	if r.fill != nil {
		r.fill(e)
	}
	msg, err := e.bytes()
	if err != nil {
		return err
	}
	fds, err := dupFiles(r.files)
	defer closeFDs(fds)
	if err != nil {
		return err
	}
	for _, fd := range fds {
		if !r.blocking {
			break
		}
		if err := unix.SetNonblock(fd, false); err != nil {
			return fmt.Errorf("file in blocking mode: %w", err)
		}
	}
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	select {
	case c.writing <- struct{}{}:
		defer func() { <-c.writing }()
	case <-ctx.Done():
		return ctx.Err()
	case <-c.done:
		return c.err
	}
	return c.write(ctx, msg, oob)
}

// write sends one packet, which is never cut; the caller holds c.writing.
func (c *Conn) write(ctx context.Context, msg, oob []byte) error {
	if err := c.sock.SetWriteDeadline(time.Time{}); err != nil {
		return fmt.Errorf("send: %w: %w", errdefs.ErrUnavailable, err)
	}
	interrupted := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(interrupted)
		// An error means that it is closed, which wakes the writer as well.
		_ = c.sock.SetWriteDeadline(time.Unix(1, 0))
	})
	err := c.writeMsg(ctx, msg, oob)
	if !stop() {
		<-interrupted // or it would hit the next writer
	}
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, unix.ETOOMANYREFS), errors.Is(err, unix.ENOBUFS), errors.Is(err, unix.ENOMEM):
		return fmt.Errorf("send: %w: %w", errdefs.ErrResourceExhausted, err)
	default:
		return fmt.Errorf("send: %w: %w", errdefs.ErrUnavailable, err)
	}
}

// writePatience is how long writeMsg waits for memory.
const writePatience = 3 * time.Second

// writeMsg waits a while for the kernel to have memory again: that it has none now
// says nothing about the monitor.
func (c *Conn) writeMsg(ctx context.Context, msg, oob []byte) error {
	ctx, cancel := context.WithTimeout(ctx, writePatience)
	defer cancel()
	for pause := time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		err := fault.Fail("monitor:request", unix.ENOBUFS, unix.ENOMEM)
		if err == nil {
			_, _, err = c.sock.WriteMsgUnix(msg, oob, nil)
		}
		if !errors.Is(err, unix.ENOBUFS) && !errors.Is(err, unix.ENOMEM) {
			return err
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return err
		}
	}
}

// dupFiles takes descriptors that nobody can close meanwhile; nil is /dev/null.
func dupFiles(files []*os.File) (fds []int, err error) {
	for _, f := range files {
		if err := fault.Fail("monitor:file", unix.EMFILE); err != nil {
			return fds, fmt.Errorf("duplicate file: %w", err)
		}
		fd := -1
		if f == nil {
			fd, err = unix.Open(os.DevNull, unix.O_RDWR|unix.O_CLOEXEC, 0)
		} else {
			fd, err = dupFile(f)
		}
		if err != nil {
			return fds, fmt.Errorf("duplicate file: %w", err)
		}
		fds = append(fds, fd)
	}
	return fds, nil
}

func dupFile(f *os.File) (int, error) {
	raw, err := f.SyscallConn() // unlike Fd, leaves the mode of the file alone
	if err != nil {
		return -1, err
	}
	fd, dupErr := -1, error(nil)
	if err := raw.Control(func(p uintptr) { fd, dupErr = unix.FcntlInt(p, unix.F_DUPFD_CLOEXEC, 0) }); err != nil {
		return -1, err
	}
	return fd, dupErr
}

func closeFDs(fds []int) {
	for _, fd := range fds {
		_ = unix.Close(fd) // duplicates: nothing can be lost
	}
}

func closeFiles(files []*os.File) {
	for _, f := range files {
		_ = f.Close() // nobody will use them
	}
}

// parseFiles wraps received descriptors, which are close-on-exec.
func parseFiles(oob []byte) (files []*os.File, err error) {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	for _, m := range msgs {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			closeFiles(files)
			return nil, err
		}
		for _, fd := range fds {
			files = append(files, os.NewFile(uintptr(fd), "monitor-kept"))
		}
	}
	return files, nil
}
