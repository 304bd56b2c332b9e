package monitor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"caisson/internal/fault"
	"caisson/internal/reap"
)

// malformed is the answer to a reply that makes no sense.
func malformed(what string) error {
	return fmt.Errorf("%s: malformed reply: %w", what, errdefs.ErrInternal)
}

// wrap names the monitor and what was asked of it.
func (c *Conn) wrap(what string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("monitor %s: %s: %w", c.where(), what, err)
}

// do is a request whose reply says nothing but that it was done.
func (c *Conn) do(ctx context.Context, what string, r request) error {
	rep, err := c.call(ctx, r)
	closeFiles(rep.files)
	return c.wrap(what, err)
}

// start is a request answered with a process.
func (c *Conn) start(ctx context.Context, what string, r request) (Process, error) {
	rep, err := c.call(ctx, r)
	closeFiles(rep.files)
	if err != nil {
		return Process{}, c.wrap(what, err)
	}
	p := rep.body.process()
	if rep.body.bad {
		return Process{}, c.wrap(what, malformed("process"))
	}
	return p, nil
}

func (c *Conn) hello(ctx context.Context) error {
	rep, err := c.call(ctx, request{typ: msgHello})
	closeFiles(rep.files)
	if err != nil {
		return c.wrap("hello", err)
	}
	version := rep.body.u32()
	c.pid = int(rep.body.u32())
	if rep.body.bad {
		return c.wrap("hello", malformed("hello"))
	}
	if version < 1 || version > protocolVersion {
		return c.wrap("hello", fmt.Errorf("it speaks version %d of the protocol, this daemon up to version %d: %w",
			version, protocolVersion, errdefs.ErrNotImplemented))
	}
	c.version = uint16(version)
	return nil
}

// unknownFlag tells whether an error is a monitor's that does not know the flag of a
// request: one of version 1 may be older than the flag.
func (c *Conn) unknownFlag(err error) bool {
	return c.version < 2 && errdefs.IsInvalidArgument(err)
}

// Hold starts the holder. There is at most one at a time.
func (c *Conn) Hold(ctx context.Context, hr HoldRequest) (Process, error) {
	r := request{typ: msgHold}
	add := func(f *os.File, flag uint32) {
		if f != nil {
			r.files = append(r.files, f)
			r.flags |= flag
		}
	}
	add(hr.User, flagHoldUser)
	add(hr.Net, flagHoldNet)
	for flag, on := range map[uint32]bool{flagHoldNewIPC: hr.NewIPC, flagHoldNewUTS: hr.NewUTS, flagHoldNewPID: hr.NewPID} {
		if on {
			r.flags |= flag
		}
	}
	r.fill = func(e *encoder) {
		e.string("hostname", hr.Hostname, 64)
		e.u16(uint16(min(len(hr.Sysctls), 1<<15)))
		for _, s := range hr.Sysctls {
			e.string("sysctl "+s.Key, s.Key, 200)
			e.string("sysctl "+s.Key, s.Value, 4096)
		}
	}
	return c.start(ctx, "hold", r)
}

// Spawn starts a process as a child of the monitor. It returns after a
// successful execve. Its Exit may reach a subscriber before Spawn returns.
func (c *Conn) Spawn(ctx context.Context, sr SpawnRequest) (Process, error) {
	r := request{typ: msgSpawn, files: sr.Files, blocking: true}
	if sr.PidFile != "" {
		r.flags = flagSpawnAdopt
	}
	r.fill = func(e *encoder) {
		e.string("tag", sr.Tag, maxTag)
		e.string("directory", sr.Dir, unix.PathMax-1)
		e.string("pid file", sr.PidFile, unix.PathMax-1)
		e.strings("arguments", sr.Args)
		e.strings("environment", sr.Env)
	}
	return c.start(ctx, fmt.Sprintf("spawn %q", sr.Tag), r)
}

// Signal sends a signal to a process that has not been reaped, else it fails
// with errdefs.ErrNotFound. Signal 0 only asks.
func (c *Conn) Signal(ctx context.Context, serial uint64, sig unix.Signal) error {
	return c.do(ctx, fmt.Sprintf("signal process %d", serial), request{typ: msgSignal, fill: func(e *encoder) {
		e.u64(serial)
		e.u32(uint32(sig))
	}})
}

// SignalOnce is Signal, but does nothing if the last SignalOnce for the process had
// the same token, which is not 0. A monitor of an earlier version may repeat it.
func (c *Conn) SignalOnce(ctx context.Context, serial uint64, sig unix.Signal, token uint64) error {
	err := c.do(ctx, fmt.Sprintf("signal process %d", serial), request{typ: msgSignal, flags: flagSignalOnce, fill: func(e *encoder) {
		e.u64(serial)
		e.u32(uint32(sig))
		e.u64(token)
	}})
	if c.unknownFlag(err) {
		return c.Signal(ctx, serial, sig)
	}
	return err
}

// List returns all records in the order in which the processes started.
func (c *Conn) List(ctx context.Context) ([]Record, error) {
	var list []Record
	for after, more := uint64(0), true; more; {
		rep, err := c.call(ctx, request{typ: msgList, fill: func(e *encoder) { e.u64(after) }})
		closeFiles(rep.files)
		if err != nil {
			return nil, c.wrap("list", err)
		}
		n := int(rep.body.u16())
		for range n {
			r := rep.body.record()
			if rep.body.bad || r.Serial <= after { // else it might never end
				return nil, c.wrap("list", malformed("record"))
			}
			list = append(list, r)
			after = r.Serial
		}
		more = rep.flags&flagMore != 0 && n > 0
	}
	return list, nil
}

// Ack makes the monitor forget an exited process.
func (c *Conn) Ack(ctx context.Context, serial uint64) error {
	return c.do(ctx, fmt.Sprintf("acknowledge process %d", serial), request{typ: msgAck, fill: func(e *encoder) { e.u64(serial) }})
}

// Subscribe asks for the exits that nobody acknowledged, oldest first, and from then
// on for each new one. Deliver says who gets them. A Conn can be subscribed once.
func (c *Conn) Subscribe(ctx context.Context) error {
	const what = "subscribe"
	c.mu.Lock()
	again := c.subscribed
	c.subscribed = true
	c.mu.Unlock()
	if again {
		return c.wrap(what, errdefs.ErrAlreadyExists)
	}
	err := c.do(ctx, what, request{typ: msgSubscribe})
	if err != nil {
		c.mu.Lock()
		c.subscribed = false
		c.mu.Unlock()
	}
	return err
}

// Deliver lets take have each exit that Subscribe asked for, those that came before
// Deliver as well, and calls end after the last one: when the connection is lost, or by
// Close, which drops those that are left. One call is made at a time; it may be slow, and
// may itself use the Conn, but not close it. Deliver is called once.
func (c *Conn) Deliver(take func(Exit), end func()) { c.exits.serve(take, end) }

// Keep hands the monitor 1 to 8 files to hold open under a name, in place of
// those it held under that name. The caller's stay open too.
func (c *Conn) Keep(ctx context.Context, name string, files ...*os.File) error {
	what := fmt.Sprintf("keep %q", name)
	if len(files) < 1 || len(files) > maxKeepFDs {
		return c.wrap(what, &Error{Step: "number of files", Errno: unix.EINVAL})
	}
	return c.do(ctx, what, request{typ: msgKeep, files: files, fill: func(e *encoder) { e.string("name", name, maxTag) }})
}

// KeepFIFO hands the monitor a FIFO, opened with O_PATH, and returns a duplicate of
// what it keeps under the name: the FIFO opened for reading and writing. A daemon
// that is killed meanwhile leaves it closed or kept, but does not close it again.
// errdefs.ErrNotImplemented: the monitor is of an earlier version.
func (c *Conn) KeepFIFO(ctx context.Context, name string, path *os.File) (*os.File, error) {
	what := fmt.Sprintf("keep %q", name)
	rep, err := c.call(ctx, request{typ: msgKeep, flags: flagKeepOpen, files: []*os.File{path}, fill: func(e *encoder) { e.string("name", name, maxTag) }})
	if c.unknownFlag(err) {
		err = fmt.Errorf("%w: %w", errdefs.ErrNotImplemented, err)
	}
	return one(rep, c.wrap(what, err))
}

// one is the only file of a reply.
func one(rep reply, err error) (*os.File, error) {
	if err == nil && len(rep.files) != 1 {
		err = malformed("descriptors")
	}
	if err != nil {
		closeFiles(rep.files)
		return nil, err
	}
	return rep.files[0], nil
}

// Fetch returns duplicates of what is kept under a name; they are the caller's.
func (c *Conn) Fetch(ctx context.Context, name string) ([]*os.File, error) {
	rep, err := c.call(ctx, request{typ: msgFetch, fill: func(e *encoder) { e.string("name", name, maxTag) }})
	return rep.files, c.wrap(fmt.Sprintf("fetch %q", name), err)
}

// Accept accepts a connection from the listening socket kept as listener. The
// monitor keeps it, and then the files, under name; what is returned is a
// duplicate of it. unix.EAGAIN: nobody waits to be accepted.
// errdefs.ErrNotImplemented: the monitor is of an earlier version.
func (c *Conn) Accept(ctx context.Context, listener, name string, files ...*os.File) (*os.File, error) {
	rep, err := c.call(ctx, request{typ: msgAccept, files: files, fill: func(e *encoder) {
		e.string("listener", listener, maxTag)
		e.string("name", name, maxTag)
	}})
	return one(rep, c.wrap(fmt.Sprintf("accept from %q", listener), err))
}

// Greet lets the monitor accept connections from the socket kept as listener while
// this Conn is gone, and until another one calls Greet: it sends them a greeting of
// at most 64 bytes and keeps them under the prefix and a number, at most limit.
// errdefs.ErrNotImplemented: the monitor is of an earlier version.
func (c *Conn) Greet(ctx context.Context, listener, prefix string, limit uint16, greeting []byte) error {
	return c.do(ctx, "greet", request{typ: msgGreet, fill: func(e *encoder) {
		e.string("listener", listener, maxTag)
		e.string("prefix", prefix, maxTag)
		e.u16(limit)
		e.u16(uint16(len(greeting)))
		e.buf = append(e.buf, greeting...)
	}})
}

// Move gives a monitor that waits its directory and its name, before anything else uses
// the Conn. The old directory is left, empty. After an error it is in one of the two.
func (c *Conn) Move(ctx context.Context, dir, name string) error {
	name = name[:min(len(name), maxTag)] // it is only shown
	err := c.do(ctx, "title", request{typ: msgTitle, fill: func(e *encoder) { e.string("name", name, maxTag) }})
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := unix.Rename(filepath.Join(c.dir, socketName), filepath.Join(dir, socketName)); err != nil {
		return fmt.Errorf("monitor %s: move to %s: %w", c.dir, dir, err)
	}
	c.dir = dir
	return nil
}

// Drop closes what is kept under a name, if anything is.
func (c *Conn) Drop(ctx context.Context, name string) error {
	return c.do(ctx, fmt.Sprintf("drop %q", name), request{typ: msgDrop, fill: func(e *encoder) { e.string("name", name, maxTag) }})
}

// DropPrefix closes all that is kept under names with the prefix.
func (c *Conn) DropPrefix(ctx context.Context, prefix string) error {
	return c.do(ctx, fmt.Sprintf("drop prefix %q", prefix),
		request{typ: msgDrop, flags: flagDropPrefix, fill: func(e *encoder) { e.string("name", prefix, maxTag) }})
}

// Kept returns the names of what is kept, in the order of Keep.
func (c *Conn) Kept(ctx context.Context) ([]string, error) {
	var names []string
	for after, more := uint64(0), true; more; {
		rep, err := c.call(ctx, request{typ: msgKept, fill: func(e *encoder) { e.u64(after) }})
		closeFiles(rep.files)
		if err != nil {
			return nil, c.wrap("list kept files", err)
		}
		last := rep.body.u64()
		n := int(rep.body.u16())
		for range n {
			names = append(names, rep.body.string())
		}
		more = rep.flags&flagMore != 0 && n > 0
		if rep.body.bad || more && last <= after { // else it might never end
			return nil, c.wrap("list kept files", malformed("names"))
		}
		after = last
	}
	return names, nil
}

// End ends the monitor: it kills the holder, then itself, and the socket is
// removed. While other processes are left, in the sandbox or orphaned, it
// fails with errdefs.ErrFailedPrecondition, unless force is set, which kills
// them. It returns when the monitor is gone; the Conn still has to be closed.
func (c *Conn) End(ctx context.Context, force bool) error {
	r := request{typ: msgEnd}
	if force {
		r.flags = flagEndForce
	}
	pidfd, err := reap.Open(c.pid)
	// Linux 6.1, for one, says EINVAL of a process that is just being reaped.
	if err != nil && !errors.Is(err, unix.ESRCH) && !errors.Is(err, unix.EINVAL) {
		return c.wrap("end", err)
	}
	if err == nil {
		defer closeFDs([]int{pidfd})
	}
	if err := c.do(ctx, "end", r); err != nil {
		return err
	}
	select {
	case <-c.done:
	case <-ctx.Done():
		return c.wrap("end", ctx.Err())
	}
	if pidfd >= 0 {
		// It closed its socket in exiting, so this takes no time.
		if _, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, 5000); err != nil && !errors.Is(err, unix.EINTR) {
			return c.wrap("end", err)
		}
	}
	if c.finished != nil {
		<-c.finished
	}
	fault.Point("monitor:gone")
	if err := os.Remove(filepath.Join(c.dir, socketName)); err != nil && !os.IsNotExist(err) {
		return c.wrap("end", err)
	}
	return nil
}
