package libcontainerd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/errdefs"
)

// stdio is what connects the engine to a process.
type stdio struct {
	dir string // of the FIFOs; empty if another program made them elsewhere
	io  cio.IO // nil if this program is not connected
	in  *stdin
}

// stdio makes the FIFOs of a process, in a directory of their own, and lets the
// engine connect to them.
func (l *ledger) stdio(processID string, withStdin, terminal bool, attach StdioCallback) (std stdio, err error) {
	if err := os.MkdirAll(l.stdioDir(), 0o700); err != nil {
		return stdio{}, local(err, "stdio of %q", processID)
	}
	if std.dir, err = os.MkdirTemp(l.stdioDir(), processID+"@"); err != nil {
		return stdio{}, local(err, "stdio of %q", processID)
	}
	cfg := cio.Config{Terminal: terminal, Stdout: filepath.Join(std.dir, "stdout")}
	if withStdin {
		cfg.Stdin = filepath.Join(std.dir, "stdin")
	}
	if !terminal {
		cfg.Stderr = filepath.Join(std.dir, "stderr")
	}
	if err := std.connect(cfg, attach, nil); err != nil {
		return stdio{}, errors.Join(fmt.Errorf("stdio of %q: %w", processID, err), os.RemoveAll(std.dir))
	}
	return std, nil
}

func (l *ledger) stdioDir() string { return filepath.Join(l.dir, "io") }

// oldIO is the stdio of a task that an earlier handle was connected to.
func (l *ledger) oldIO(state *tasktypes.Process) (std stdio) {
	if dir := filepath.Dir(state.Stdout); filepath.Dir(dir) == l.stdioDir() {
		std.dir = dir
	}
	return std
}

// discard ends the connection and removes the FIFOs.
func (std stdio) discard() (err error) {
	if std.io != nil {
		std.io.Cancel()
		err = std.io.Close()
	}
	if std.dir != "" {
		err = errors.Join(err, local(os.RemoveAll(std.dir), "stdio"))
	}
	return err
}

// takeStdio returns what is left of the stdio of the execs of a run that is over, and
// of an earlier program's, whose processes are gone with the task as well.
func (l *ledger) takeStdio(r *run) []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	dirs := append(r.stdio, l.oldStdio...)
	r.stdio, l.oldStdio = nil, nil
	return dirs
}

// keepStdio has the run's deletion remove what the exec's leaves; dropStdio takes that
// back.
func (l *ledger) keepStdio(r *run, std stdio) {
	l.mu.Lock()
	defer l.mu.Unlock()
	r.stdio = append(r.stdio, std.dir)
}

func (l *ledger) dropStdio(r *run, std stdio) {
	l.mu.Lock()
	defer l.mu.Unlock()
	r.stdio = slices.DeleteFunc(r.stdio, func(dir string) bool { return dir == std.dir })
}

// connect opens the FIFOs, which are made where they are not, and passes them to
// the engine. They are left when their reader closes them: the process goes on
// with them until it is deleted. opened, if not nil, waits before.
func (std *stdio) connect(cfg cio.Config, attach StdioCallback, opened func(*cio.DirectIO)) error {
	dio, err := cio.NewDirectIO(context.Background(), cio.NewFIFOSet(cfg, nil))
	if err != nil {
		dio.Cancel()
		return local(err, "FIFOs")
	}
	if dio.Stdin != nil {
		std.in = newStdin(dio.Stdin)
		dio.Stdin = std.in
	}
	std.io = dio
	if opened != nil {
		opened(dio)
	}
	if attach == nil {
		return nil
	}
	rio, err := attach(dio)
	if err == nil && rio == nil {
		err = fmt.Errorf("the stdio callback returned nothing: %w", errdefs.ErrInvalidArgument)
	}
	if err != nil {
		dio.Cancel()
		return errors.Join(err, dio.Close())
	}
	std.io = rio
	return nil
}

// awaitOutput returns when the FIFOs of the output are open for reading, which they
// are soon if the server still has them for writing: a process that ends before
// would take its output with it.
func awaitOutput(ctx context.Context, dio *cio.DirectIO) {
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	for _, output := range []io.ReadCloser{dio.Stdout, dio.Stderr} {
		if output == nil {
			continue
		}
		opened := make(chan struct{})
		go func() { // until it is closed, at the latest
			defer close(opened)
			_, _ = output.Read(nil) // returns when it is open
		}()
		select {
		case <-opened:
		case <-ctx.Done():
		}
	}
}

// openTimeout is how long a server may take to open its end of a FIFO.
const openTimeout = 2 * time.Second

// stdin is the engine's end of a process's stdin. Closing it lets the process see
// the end of its input, which the server must help with: it holds the FIFO open,
// too. The process may not be there yet when stdin is closed; whichever comes
// second asks the server. A close that fails may be repeated.
type stdin struct {
	io.WriteCloser

	mu      sync.Mutex
	closed  bool         // the engine has closed it
	closing bool         // someone is at it, or the server has done its part
	end     func() error // asks the server; nil until there is a process

	fifo func() error // closes the FIFO, once
}

func newStdin(fifo io.WriteCloser) *stdin {
	s := &stdin{WriteCloser: fifo}
	s.fifo = sync.OnceValue(s.closeFIFO)
	return s
}

func (s *stdin) Close() error {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	return s.close()
}

// ready says that the process is there. A nil stdin has nothing to close.
func (s *stdin) ready(end func() error) error {
	if s == nil {
		return nil
	}
	s.mu.Lock()
	s.end = end
	closed := s.closed
	s.mu.Unlock()
	if closed {
		return s.close()
	}
	return nil
}

func (s *stdin) close() error {
	s.mu.Lock()
	end := s.end
	if end == nil || s.closing {
		s.mu.Unlock()
		return nil // ready does it, or it is being done
	}
	s.closing = true
	s.mu.Unlock()
	err := s.fifo()
	if eerr := end(); eerr != nil {
		err = errors.Join(err, eerr)
		s.mu.Lock()
		s.closing = false
		s.mu.Unlock()
	}
	return err
}

// closeFIFO keeps the FIFO open until the server has opened it for reading, as well:
// runc's shim would never see its end, if it came to open it when all have closed it.
func (s *stdin) closeFIFO() error {
	opened := make(chan struct{})
	go func() { // until it is closed, at the latest
		defer close(opened)
		_, _ = s.Write(nil) // returns when the other side is there
	}()
	select {
	case <-opened:
	case <-time.After(openTimeout):
	}
	return s.WriteCloser.Close()
}
