// Package stdio opens the standard streams of one process, a container's init or an exec,
// the way containerd's clients name them.
//
// Without a terminal nothing is copied: the process gets the client's FIFOs themselves, a
// log file, or pipes to a logger process, and no goroutine of ours takes part. Set.Child
// are the process's descriptors. Set.Keepers are descriptors that the caller hands to the
// sandbox's monitor for as long as the process lives: a FIFO with a read-write descriptor
// open breaks for nobody, whether its reader leaves (EPIPE) or its writer does (EOF).
// Closing the stdin keeper is what CloseIO means; closing the others after the process's
// end is what ends the client's reading.
//
// With a terminal the OCI runtime sends the pty's master to a ConsoleSocket, and a Terminal
// moves bytes between it and the client's FIFOs. Bytes go by splice(2) from the pty to the
// pipe and are never in our memory, so that a daemon killed at any moment loses none: a
// new one calls NewTerminal with the master and the keepers from the monitor and goes on.
// Where a byte has to pass through memory (a log file as the terminal's output, or one of the
// kernels 5.10 whose ttys have no splice) it does so between two adjacent system calls.
//
// Paths come from clients of a daemon that is root. They must be absolute, their last
// element is never followed if it is a symlink, and a file is looked at before it is opened
// for more than that: nothing but a FIFO or a regular file is ever opened, and a FIFO is
// never made here.
package stdio

import (
	"fmt"
	"net/url"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
)

// The names of the streams, in errors and as keys of Set.Keepers.
const (
	Stdin  = "stdin"
	Stdout = "stdout"
	Stderr = "stderr"
)

// Config is what a client asks for. A stream is empty (nothing: /dev/null), an absolute
// path or fifo:// URI of a FIFO that exists (a path may also be that of a regular file),
// or, for outputs:
//
//	file:///path             a file to append to, made with its directories if missing
//	binary:///path?key=val   a logger process, started with the arguments key and val;
//	                         binary-v2:// must say that it is ready
//
// As in containerd's shim, a logger or log file for stdout takes stderr too if stderr is
// empty or the same. With Terminal there is no stderr.
type Config struct {
	Stdin    string
	Stdout   string
	Stderr   string
	Terminal bool
}

// Identity is what a logger is told about the process.
type Identity struct {
	Namespace string
	// ContainerID is the container's ID, or the exec's for an exec.
	ContainerID string
}

// Owner is the user that the process's FIFOs and pipes are given to, so that it can reopen
// them through /dev/stdout; the zero value leaves them as they are.
type Owner struct {
	UID uint32
	GID uint32
}

type scheme string

const (
	schemeNull     scheme = "" // nothing asked for
	schemePath     scheme = "path"
	schemeFIFO     scheme = "fifo"
	schemeFile     scheme = "file"
	schemeBinary   scheme = "binary"
	schemeBinaryV2 scheme = "binary-v2"
)

// target is one stream of a Config, parsed.
type target struct {
	stream string
	scheme scheme
	path   string
	query  string // raw; of a binary only
}

func (t target) isBinary() bool { return t.scheme == schemeBinary || t.scheme == schemeBinaryV2 }

// errorf wraps an error about the target; the class is the caller's.
func (t target) errorf(err error) error { return fmt.Errorf("%s %q: %w", t.stream, t.path, err) }

type targets struct {
	stdin, stdout, stderr target
}

func (c Config) targets() (ts targets, err error) {
	if ts.stdin, err = parseTarget(Stdin, c.Stdin); err != nil {
		return ts, err
	}
	if ts.stdout, err = parseTarget(Stdout, c.Stdout); err != nil {
		return ts, err
	}
	if c.Terminal {
		ts.stderr = target{stream: Stderr}
	} else if ts.stderr, err = parseTarget(Stderr, c.Stderr); err != nil {
		return ts, err
	}
	if ts.stdin.isBinary() || ts.stdin.scheme == schemeFile {
		return ts, ts.stdin.errorf(fmt.Errorf("%s:// is for outputs: %w", ts.stdin.scheme, errdefs.ErrInvalidArgument))
	}
	shares := ts.stdout.isBinary() || ts.stdout.scheme == schemeFile
	if shares && ts.stderr.scheme == schemeNull && !c.Terminal {
		ts.stderr = ts.stdout
		ts.stderr.stream = Stderr
	}
	if ts.stderr.isBinary() && c.Stderr != "" && c.Stderr != c.Stdout {
		return ts, ts.stderr.errorf(fmt.Errorf("a logger takes both outputs, so stdout must name the same: %w", errdefs.ErrInvalidArgument))
	}
	return ts, nil
}

func parseTarget(stream, s string) (target, error) {
	t := target{stream: stream, path: s}
	switch {
	case s == "":
		return t, nil
	case strings.ContainsRune(s, 0):
		return t, t.errorf(fmt.Errorf("zero byte: %w", errdefs.ErrInvalidArgument))
	case s[0] == '/':
		// Not parsed as a URI: a path may contain any of its special characters.
		t.scheme = schemePath
		return t, nil
	}
	u, err := url.Parse(s)
	if err != nil {
		return t, t.errorf(fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument))
	}
	switch scheme(u.Scheme) {
	case schemeFIFO, schemeFile, schemeBinary, schemeBinaryV2:
	default:
		return t, t.errorf(fmt.Errorf("neither an absolute path nor a fifo, file or binary URI: %w", errdefs.ErrInvalidArgument))
	}
	if u.Host != "" || !filepath.IsAbs(u.Path) || strings.ContainsRune(u.Path, 0) {
		return t, t.errorf(fmt.Errorf("path of the URI is not absolute (scheme:///path): %w", errdefs.ErrInvalidArgument))
	}
	t.scheme, t.path, t.query = scheme(u.Scheme), u.Path, u.RawQuery
	return t, nil
}
