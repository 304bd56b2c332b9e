package stdio

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"sync"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"caisson/internal/fault"
)

// Set holds the open streams of one process until the caller has handed them on. All its
// files stay the Set's own: callers pass descriptors over a socket and then Close it.
type Set struct {
	child   [3]*os.File
	keepers map[string]*os.File
	logger  *Logger
	files   []*os.File // all of the above and more
	keep    Keep
	close   func() error
}

// Keep opens the FIFO of a stream, which is given to it opened with O_PATH, for
// reading and writing, in such a way that it stays open when this process ends.
type Keep func(stream string, fifo *os.File) (*os.File, error)

// OpenHere is the Keep of those who keep what Keepers returns afterwards.
func OpenHere(_ string, fifo *os.File) (*os.File, error) { return reopen(fifo, unix.O_RDWR) }

// Open opens the streams that cfg names. It never waits for a client: a FIFO that nobody
// reads or writes yet opens all the same.
func Open(ctx context.Context, cfg Config, owner Owner, identity Identity, keep Keep) (*Set, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("open stdio: %w", err)
	}
	ts, err := cfg.targets()
	if err == nil {
		err = fault.Fail("stdio:open", unix.EMFILE, unix.ENOSPC)
	}
	if err != nil {
		return nil, fmt.Errorf("open stdio: %w", err)
	}
	s := &Set{keepers: make(map[string]*os.File), keep: keep}
	s.close = sync.OnceValue(s.closeFiles)
	if cfg.Terminal {
		err = s.openTerminal(ts, owner, identity)
	} else {
		err = s.openDirect(ts, owner, identity)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open stdio: %w", err), s.Close())
	}
	return s, nil
}

// Child returns what the process gets as descriptors 0, 1 and 2. With a terminal they are
// nil: the OCI runtime makes the pty, and what Keepers holds is for NewTerminal.
func (s *Set) Child() [3]*os.File { return s.child }

// Keepers returns the descriptors to be kept open, by stream, until the process has ended
// and, with a terminal, its output is drained: read-write ones of FIFOs, and with a
// terminal the pipe to the logger.
func (s *Set) Keepers() map[string]*os.File { return maps.Clone(s.keepers) }

// Logger returns the logger process to be started before the process, or nil.
func (s *Set) Logger() *Logger { return s.logger }

// Close closes all descriptors of the Set, the logger's too. It may be repeated.
func (s *Set) Close() error { return s.close() }

func (s *Set) closeFiles() error {
	var errs []error
	for _, f := range s.files {
		if err := f.Close(); err != nil && !errors.Is(err, os.ErrClosed) { // Logger.WaitReady closes some
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func (s *Set) add(f *os.File, err error) (*os.File, error) {
	if f != nil {
		s.files = append(s.files, f)
	}
	return f, err
}

func (s *Set) openDirect(ts targets, owner Owner, identity Identity) error {
	var pipes [2]*os.File // to the logger
	if ts.stdout.isBinary() {
		var err error
		if pipes, err = s.openLogger(identity, ts.stdout); err != nil {
			return ts.stdout.errorf(err)
		}
	}
	for i, t := range []target{ts.stdin, ts.stdout, ts.stderr} {
		var err error
		if t.isBinary() {
			s.child[i] = pipes[i-1]
			err = chown(pipes[i-1], owner)
		} else {
			s.child[i], err = s.openStream(t, owner)
		}
		if err != nil {
			return t.errorf(err)
		}
	}
	return nil
}

// openStream opens one stream that is no logger, and its keeper if it is a FIFO.
func (s *Set) openStream(t target, owner Owner) (*os.File, error) {
	flags := unix.O_WRONLY | unix.O_APPEND
	if t.stream == Stdin {
		flags = unix.O_RDONLY
	}
	switch t.scheme {
	case schemeNull:
		return s.add(os.OpenFile(os.DevNull, flags, 0))
	case schemeFile:
		return s.add(openLog(t.path))
	}
	f, kind, err := lookup(t.path)
	if err != nil {
		return nil, err
	}
	defer f.Close() // O_PATH
	if kind == unix.S_IFREG {
		if t.scheme == schemeFIFO {
			return nil, fmt.Errorf("not a FIFO: %w", errdefs.ErrInvalidArgument)
		}
		return s.add(reopen(f, flags))
	}
	// The keeper first: with it the other end never waits for its peer.
	keeper, err := s.openKeeper(t.stream, f, owner)
	if err != nil {
		return nil, err
	}
	return s.add(reopen(keeper, flags&^unix.O_APPEND))
}

func (s *Set) openKeeper(stream string, fifo *os.File, owner Owner) (*os.File, error) {
	keeper, err := s.add(s.keep(stream, fifo))
	if err != nil {
		return nil, err
	}
	s.keepers[stream] = keeper
	return keeper, chown(keeper, owner)
}

func (s *Set) openTerminal(ts targets, owner Owner, identity Identity) error {
	if ts.stdout.isBinary() {
		pipes, err := s.openLogger(identity, ts.stdout)
		if err != nil {
			return ts.stdout.errorf(err)
		}
		s.keepers[Stdout] = pipes[0]
		if err := pipes[1].Close(); err != nil { // no stderr: its reader sees the end at once
			return ts.stdout.errorf(err)
		}
	}
	for _, t := range []target{ts.stdin, ts.stdout} {
		if t.scheme == schemeNull || t.isBinary() {
			continue
		}
		if err := s.openTerminalStream(t, owner); err != nil {
			return t.errorf(err)
		}
	}
	return nil
}

// openTerminalStream keeps a FIFO; a log file it only tries, so that the client hears of a
// wrong path before there is a process.
func (s *Set) openTerminalStream(t target, owner Owner) error {
	if t.scheme == schemeFile {
		_, err := s.add(openLog(t.path))
		return err
	}
	f, kind, err := lookup(t.path)
	if err != nil {
		return err
	}
	defer f.Close() // O_PATH
	if kind == unix.S_IFREG {
		if t.scheme == schemeFIFO || t.stream == Stdin {
			return fmt.Errorf("not a FIFO: %w", errdefs.ErrInvalidArgument)
		}
		return nil
	}
	_, err = s.openKeeper(t.stream, f, owner)
	return err
}

func chown(f *os.File, owner Owner) error {
	if owner == (Owner{}) {
		return nil
	}
	err := withFD(f, func(fd int) error { return unix.Fchown(fd, int(owner.UID), int(owner.GID)) })
	if err != nil {
		return fmt.Errorf("give to user %d, group %d: %w", owner.UID, owner.GID, classify(err))
	}
	return nil
}
