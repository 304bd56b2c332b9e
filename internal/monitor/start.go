package monitor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"caisson/internal/fault"
	"caisson/internal/reap"
)

// backlog is how many connections wait for the monitor to accept them.
const backlog = 16

// Config says which monitor to start. Binary, Dir and Name are required.
type Config struct {
	Binary string // from Install
	Dir    string // the sandbox's directory; root's, mode 0700
	Name   string // what ps shows: the sandbox's id
	// Waits is set for one that is to get another directory and name, by Move.
	Waits bool
	// First may be what is asked of the monitor first, whose answer then tells that it
	// runs; without it, it is asked for just that. Its error is Start's.
	First func(context.Context, *Conn) error

	env []string // for tests
}

// Start starts a monitor and connects to it. The monitor is the caller's
// child and is waited for, but lives on if the caller ends. A socket that a
// dead monitor left behind is replaced; a living monitor is
// errdefs.ErrAlreadyExists. If Start fails nothing is left.
func Start(ctx context.Context, cfg Config) (*Conn, error) {
	c, err := start(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("monitor %q: start: %w", cfg.Name, err)
	}
	return c, nil
}

func start(ctx context.Context, cfg Config) (_ *Conn, err error) {
	if cfg.Name == "" || strings.IndexByte(cfg.Name, 0) >= 0 {
		return nil, fmt.Errorf("name %q: %w", cfg.Name, errdefs.ErrInvalidArgument)
	}
	dir, err := openDir(cfg.Dir)
	if err != nil {
		return nil, err
	}
	defer dir.Close() // only read: nothing can be lost
	var st unix.Stat_t
	if err := unix.Fstat(int(dir.Fd()), &st); err != nil {
		return nil, fmt.Errorf("directory %s: %w", cfg.Dir, err)
	}
	if st.Uid != 0 || st.Mode&0o077 != 0 {
		return nil, fmt.Errorf("directory %s: must belong to root and have mode 0700, not %04o: %w",
			cfg.Dir, st.Mode&0o7777, errdefs.ErrFailedPrecondition)
	}
	listener, err := listen(ctx, dir)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(filepath.Join(cfg.Dir, socketName)))
		}
	}()
	// No CommandContext: it outlives ctx.
	cmd := exec.Command(cfg.Binary)
	cmd.Args = []string{"caisson-monitor", cfg.Name}
	if cfg.Waits {
		cmd.Args = append(cmd.Args, make([]string, maxTag)...) // room for a longer name
	}
	cmd.Env = append([]string{}, cfg.env...)
	cmd.Dir = "/"
	cmd.ExtraFiles = []*os.File{listener}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err = fault.Fail("monitor:run", unix.EAGAIN, unix.ENOMEM, unix.EMFILE); err == nil {
		err = runSilently(cmd)
	}
	listener.Close() // from now on only the monitor listens; a connect fails if it died
	if err != nil {
		return nil, fmt.Errorf("run %s: %w", cfg.Binary, err)
	}
	// This goroutine ends with the monitor, or with the daemon that it outlives.
	finished, connected := make(chan struct{}), make(chan *Conn, 1)
	var waitErr error
	go func() {
		awaitEnd(cmd.Process.Pid)
		waitErr = cmd.Wait()
		close(finished)
		if c := <-connected; c != nil {
			_ = c.hangUp() // it is closed already, mostly
		}
	}()
	fault.Point("monitor:runs")
	greet := cfg.First
	if greet == nil {
		greet = sayHello
	}
	c, err := connect(ctx, cfg.Dir, dir, started{cmd.Process.Pid, finished}, greet)
	connected <- c
	if err != nil {
		// It was just started, so it has nothing to lose.
		err = errors.Join(err, ignoreDone(cmd.Process.Kill()))
		<-finished
		var exit *exec.ExitError
		if errors.As(waitErr, &exit) && exit.Exited() {
			err = fmt.Errorf("%s ended with %w: %w", cfg.Binary, waitErr, err)
		}
		return nil, err
	}
	return c, nil
}

// runSilently starts a program without standard streams. Left to itself, os/exec opens the
// null device for each of them.
func runSilently(cmd *exec.Cmd) error {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close() // nothing was written
	cmd.Stdin, cmd.Stdout, cmd.Stderr = null, null, null
	return cmd.Start()
}

// awaitEnd returns when the process, which is not reaped yet, has ended: only then to call
// Wait saves the thread that would wait all that time. It may return before.
func awaitEnd(pid int) {
	fd, err := reap.Open(pid)
	if err != nil {
		return
	}
	pidfd := os.NewFile(uintptr(fd), "pidfd")
	defer pidfd.Close()      // only looked at
	_ = reap.AwaitEnd(pidfd) // else Wait waits
}

func ignoreDone(err error) error {
	if errors.Is(err, os.ErrProcessDone) {
		return nil
	}
	return err
}

// Dial connects to the monitor that runs in dir. errdefs.ErrNotFound: there
// is no socket; errdefs.ErrUnavailable: nobody listens on it; errdefs.ErrResourceExhausted:
// the monitor is too slow.
func Dial(ctx context.Context, dir string) (*Conn, error) {
	c, err := dial(ctx, dir)
	if err != nil {
		return nil, fmt.Errorf("monitor %s: connect: %w", dir, err)
	}
	return c, nil
}

func dial(ctx context.Context, path string) (*Conn, error) {
	dir, err := openDir(path)
	if err != nil {
		return nil, err
	}
	defer dir.Close() // only read: nothing can be lost
	return connect(ctx, path, dir, started{}, sayHello)
}

func openDir(path string) (*os.File, error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		err = &os.PathError{Op: "open", Path: path, Err: err}
		if os.IsNotExist(err) {
			err = fmt.Errorf("%w: %w", errdefs.ErrNotFound, err)
		}
		return nil, err
	}
	return os.NewFile(uintptr(fd), path), nil
}

// socketPath is short however long dir's own path is: a socket's may have 107 bytes.
func socketPath(dir *os.File) string {
	return "/proc/self/fd/" + strconv.Itoa(int(dir.Fd())) + "/" + socketName
}

// started is a monitor that is this process's child: its pid, and what is closed when it
// was waited for. It is empty for one that is not.
type started struct {
	pid      int
	finished <-chan struct{}
}

func sayHello(ctx context.Context, c *Conn) error { return c.hello(ctx) }

// connect dials and greets the monitor.
func connect(ctx context.Context, path string, dir *os.File, child started, greet func(context.Context, *Conn) error) (*Conn, error) {
	sock, err := dialSocket(ctx, dir)
	if err != nil {
		return nil, err
	}
	c := newConn(path, sock, child)
	if err := greet(ctx, c); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

func dialSocket(ctx context.Context, dir *os.File) (*net.UnixConn, error) {
	if err := fault.Fail("monitor:dial", unix.EMFILE); err != nil {
		return nil, err
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unixpacket", socketPath(dir))
	switch {
	case err == nil:
	case errors.Is(err, unix.ENOENT):
		return nil, fmt.Errorf("%w: %w", errdefs.ErrNotFound, err)
	case errors.Is(err, unix.ECONNREFUSED):
		return nil, fmt.Errorf("%w: %w", errdefs.ErrUnavailable, err)
	case errors.Is(err, unix.EAGAIN): // it is there, and does not accept
		return nil, fmt.Errorf("%w: %w", errdefs.ErrResourceExhausted, err)
	default:
		return nil, err
	}
	sock := conn.(*net.UnixConn)
	if err := sock.SetWriteBuffer(4 * maxMessage); err != nil {
		return nil, errors.Join(fmt.Errorf("set buffer size: %w", err), sock.Close())
	}
	return sock, nil
}

// listen makes the monitor's socket in dir.
func listen(ctx context.Context, dir *os.File) (*os.File, error) {
	if err := fault.Fail("monitor:listen", unix.EMFILE); err != nil {
		return nil, fmt.Errorf("socket: %w", err)
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("socket: %w", err)
	}
	sock := os.NewFile(uintptr(fd), socketName)
	if err := unix.Fchmod(fd, 0o600); err != nil { // the mode that bind gives the file
		return nil, errors.Join(fmt.Errorf("mode of %s: %w", socketName, err), sock.Close())
	}
	err = unix.Bind(fd, &unix.SockaddrUnix{Name: socketPath(dir)})
	if errors.Is(err, unix.EADDRINUSE) {
		if err = removeStale(ctx, dir); err == nil {
			err = unix.Bind(fd, &unix.SockaddrUnix{Name: socketPath(dir)})
		}
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("bind %s: %w", socketName, err), sock.Close())
	}
	if err := unix.Listen(fd, backlog); err != nil {
		return nil, errors.Join(fmt.Errorf("listen: %w", err), unix.Unlinkat(int(dir.Fd()), socketName, 0), sock.Close())
	}
	return sock, nil
}

// removeStale removes a socket that nobody listens on.
func removeStale(ctx context.Context, dir *os.File) error {
	sock, err := dialSocket(ctx, dir)
	switch {
	case err == nil:
		return errors.Join(fmt.Errorf("a monitor runs: %w", errdefs.ErrAlreadyExists), sock.Close())
	case errors.Is(err, unix.ECONNREFUSED):
		return unix.Unlinkat(int(dir.Fd()), socketName, 0)
	default:
		return err
	}
}
