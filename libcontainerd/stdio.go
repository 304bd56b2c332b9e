package libcontainerd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"

	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/errdefs"
)

// stdio makes the FIFOs of a process, in a directory of their own, and lets the
// engine connect to them.
func (l *ledger) stdio(processID string, withStdin, terminal bool, attach StdioCallback) (_ cio.IO, _ *stdin, remove func() error, err error) {
	parent := filepath.Join(l.dir, "io")
	if err := os.MkdirAll(parent, 0o700); err != nil {
		return nil, nil, nil, fmt.Errorf("stdio of %q: %w", processID, err)
	}
	dir, err := os.MkdirTemp(parent, processID+"@")
	if err != nil {
		return nil, nil, nil, fmt.Errorf("stdio of %q: %w", processID, err)
	}
	cfg := cio.Config{Terminal: terminal, Stdout: filepath.Join(dir, "stdout")}
	if withStdin {
		cfg.Stdin = filepath.Join(dir, "stdin")
	}
	if !terminal {
		cfg.Stderr = filepath.Join(dir, "stderr")
	}
	rio, in, err := connect(cfg, attach)
	if err != nil {
		return nil, nil, nil, errors.Join(fmt.Errorf("stdio of %q: %w", processID, err), os.RemoveAll(dir))
	}
	return rio, in, func() error {
		rio.Cancel()
		return errors.Join(rio.Close(), os.RemoveAll(dir))
	}, nil
}

// removeStdio removes the FIFOs of a process, whichever program made them. An id
// has no character that means something in a pattern.
func (l *ledger) removeStdio(processID string) error {
	dirs, err := filepath.Glob(filepath.Join(l.dir, "io", processID+"@*"))
	for _, dir := range dirs {
		err = errors.Join(err, os.RemoveAll(dir))
	}
	return err
}

// connect opens the FIFOs, which are made where they are not, and passes them to
// the engine. They are left when their reader closes them: the process goes on
// with them until it is deleted.
func connect(cfg cio.Config, attach StdioCallback) (cio.IO, *stdin, error) {
	dio, err := cio.NewDirectIO(context.Background(), cio.NewFIFOSet(cfg, nil))
	if err != nil {
		return nil, nil, err
	}
	var in *stdin
	if dio.Stdin != nil {
		in = &stdin{WriteCloser: dio.Stdin}
		dio.Stdin = in
	}
	if attach == nil {
		return dio, in, nil
	}
	rio, err := attach(dio)
	if err == nil && rio == nil {
		err = fmt.Errorf("the stdio callback returned nothing: %w", errdefs.ErrInvalidArgument)
	}
	if err != nil {
		dio.Cancel()
		return nil, nil, errors.Join(err, dio.Close())
	}
	return rio, in, nil
}

// stdin is the engine's end of a process's stdin. Closing it lets the process see
// the end of its input, which the server must help with: it holds the FIFO open,
// too. The process may not be there yet when stdin is closed; whichever comes
// second asks the server.
type stdin struct {
	io.WriteCloser

	mu     sync.Mutex
	closed bool
	end    func() error // asks the server; nil until there is a process
}

func (s *stdin) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	end := s.end
	s.mu.Unlock()
	err := s.WriteCloser.Close()
	if end != nil {
		err = errors.Join(err, end())
	}
	return err
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
		return end()
	}
	return nil
}
