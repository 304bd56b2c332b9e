package cli

import (
	"errors"
	"io"
	"strings"
	"sync"

	"github.com/containerd/errdefs"
)

// defaultDetachKeys are those of Docker.
const defaultDetachKeys = "ctrl-p,ctrl-q"

const detachKeysHelp = "keys that leave a terminal's process running, such as ctrl-p,ctrl-q or ctrl-@ or a,b; none if empty"

// errDetached is the end of a foreground process that goes on without us.
var errDetached = errors.New("detached")

// parseDetachKeys reads keys with commas between them, each a character or ctrl- and
// one of a-z @ [ \ ] ^ _.
func parseDetachKeys(s string) ([]byte, error) {
	if s == "" {
		return nil, nil
	}
	var keys []byte
	for word := range strings.SplitSeq(s, ",") {
		key, ok := parseKey(word)
		if !ok {
			return nil, advise(errdefs.ErrInvalidArgument, "--detach-keys %q: %q is no key: write it like ctrl-p,ctrl-q or a,b", s, word)
		}
		keys = append(keys, key)
	}
	return keys, nil
}

func parseKey(word string) (byte, bool) {
	if rest, ok := strings.CutPrefix(strings.ToLower(word), "ctrl-"); ok && len(rest) == 1 {
		switch c := rest[0]; {
		case c >= 'a' && c <= 'z':
			return c - 'a' + 1, true
		case c == '@':
			return 0, true
		case c >= '[' && c <= '_':
			return c - '@', true
		}
		return 0, false
	}
	if len(word) == 1 && word[0] > ' ' && word[0] < 0x7f {
		return word[0], true
	}
	return 0, false
}

// detachReader passes on what is typed until the detach keys are, one after another.
// Then it ends, which the process does not see: its input is kept open by the daemon.
type detachReader struct {
	io.Reader
	keys []byte

	once    sync.Once
	pressed chan struct{} // closed when the keys were typed

	typed   int    // how many of the keys: held back until the next tells
	pending []byte // to be passed on
	err     error  // after pending
}

func newDetachReader(r io.Reader, keys []byte) *detachReader {
	return &detachReader{Reader: r, keys: keys, pressed: make(chan struct{})}
}

func (r *detachReader) Read(p []byte) (int, error) {
	if len(r.keys) == 0 {
		return r.Reader.Read(p)
	}
	for len(r.pending) == 0 && r.err == nil {
		n, err := r.Reader.Read(p)
		r.scan(p[:n])
		if err != nil && r.err == nil {
			r.pending = append(r.pending, r.keys[:r.typed]...)
			r.typed, r.err = 0, err
		}
	}
	if len(r.pending) == 0 {
		return 0, r.err
	}
	n := copy(p, r.pending)
	r.pending = r.pending[n:]
	return n, nil
}

func (r *detachReader) scan(typed []byte) {
	for _, b := range typed {
		if b != r.keys[r.typed] {
			r.pending = append(r.pending, r.keys[:r.typed]...)
			r.typed = 0
		}
		if b != r.keys[r.typed] {
			r.pending = append(r.pending, b)
			continue
		}
		if r.typed++; r.typed == len(r.keys) {
			r.err = io.EOF
			r.once.Do(func() { close(r.pressed) })
			return
		}
	}
}
