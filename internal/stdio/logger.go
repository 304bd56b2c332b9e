package stdio

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/containerd/errdefs"
)

// Logger describes a logger process for the outputs of one process, after containerd's
// convention: it reads them from descriptors 3 and 4 and says through descriptor 5 that it
// is ready. The caller starts it where it outlives the daemon, then calls WaitReady, and only
// then starts the process. The logger ends by itself, when nobody can write any more.
type Logger struct {
	Path string
	Args []string // Args[0] is Path
	Env  []string // all of the environment
	// Files are the descriptors of the logger: Files[n] becomes n.
	Files []*os.File
	// Ready is where WaitReady reads the logger's word.
	Ready *os.File

	mustSay bool // binary-v2: an end without a byte is no word
}

// openLogger describes the logger and returns the pipes' ends for stdout and stderr.
func (s *Set) openLogger(identity Identity, t target) (writers [2]*os.File, err error) {
	args, err := loggerArgs(t.query)
	if err != nil {
		return writers, err
	}
	l := &Logger{
		Path:    t.path,
		Args:    append([]string{t.path}, args...),
		Env:     []string{"CONTAINER_ID=" + identity.ContainerID, "CONTAINER_NAMESPACE=" + identity.Namespace},
		mustSay: t.scheme == schemeBinaryV2,
	}
	null, err := s.add(os.OpenFile(os.DevNull, os.O_RDWR, 0))
	if err != nil {
		return writers, err
	}
	l.Files = []*os.File{null, null, null}
	for i := range writers {
		var reader *os.File
		if reader, writers[i], err = s.pipe(); err != nil {
			return writers, err
		}
		l.Files = append(l.Files, reader)
	}
	var ready *os.File
	if l.Ready, ready, err = s.pipe(); err != nil {
		return writers, err
	}
	l.Files = append(l.Files, ready)
	s.logger = l
	return writers, nil
}

func (s *Set) pipe() (r, w *os.File, err error) {
	if r, w, err = os.Pipe(); err != nil {
		return nil, nil, classify(err)
	}
	s.files = append(s.files, r, w)
	return r, w, nil
}

// loggerArgs makes arguments of a query, in its order: each key once, followed by its first
// value.
func loggerArgs(query string) ([]string, error) {
	var args []string
	seen := make(map[string]bool)
	for part := range strings.SplitSeq(query, "&") {
		if part == "" {
			continue
		}
		rawKey, rawValue, _ := strings.Cut(part, "=")
		key, err := url.QueryUnescape(rawKey)
		value, err2 := url.QueryUnescape(rawValue)
		if err := errors.Join(err, err2); err != nil {
			return nil, fmt.Errorf("query %q: %w: %w", query, err, errdefs.ErrInvalidArgument)
		}
		if strings.ContainsRune(key+value, 0) {
			return nil, fmt.Errorf("query %q: zero byte: %w", query, errdefs.ErrInvalidArgument)
		}
		if !seen[key] {
			seen[key] = true
			args = append(args, key, value)
		}
	}
	return args, nil
}

// WaitReady is called when the logger has been started with Files. It closes our copies of them,
// so that the end of the logger shows, and waits until the logger is ready. A logger named
// by binary:// may say so by just closing its descriptor, as containerd has it; one named
// by binary-v2:// must write a byte.
func (l *Logger) WaitReady(ctx context.Context) error {
	var errs []error
	for i, f := range l.Files {
		if i > 0 && f == l.Files[i-1] {
			continue
		}
		if err := f.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
			errs = append(errs, err)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("logger %q: close: %w", l.Path, err)
	}
	stop := context.AfterFunc(ctx, func() { l.Ready.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	n, err := l.Ready.Read(make([]byte, 1))
	switch {
	case ctx.Err() != nil && n == 0 && err != io.EOF:
		return fmt.Errorf("logger %q: not ready: %w", l.Path, ctx.Err())
	case n == 1, err == io.EOF && !l.mustSay:
		return nil
	case err == io.EOF:
		return fmt.Errorf("logger %q: ended, or closed descriptor 5, before it was ready: %w", l.Path, errdefs.ErrFailedPrecondition)
	}
	return fmt.Errorf("logger %q: read that it is ready: %w", l.Path, err)
}
