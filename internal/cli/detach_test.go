package cli

import (
	"bytes"
	"io"
	"strings"
	"testing"
	"testing/iotest"
)

func TestParseDetachKeys(t *testing.T) {
	for s, want := range map[string]string{
		"": "", "ctrl-p,ctrl-q": "\x10\x11", "ctrl-@": "\x00", "CTRL-a,x": "\x01x", "ctrl-],ctrl-_,ctrl-[": "\x1d\x1f\x1b", "a,b": "ab",
	} {
		if got, err := parseDetachKeys(s); err != nil || string(got) != want {
			t.Errorf("%q: %q, %v", s, got, err)
		}
	}
	for _, s := range []string{",", "ctrl-", "ctrl-1", "ab", "a,", " ", "é", "ctrl-pp"} {
		if keys, err := parseDetachKeys(s); err == nil {
			t.Errorf("%q: %q", s, keys)
		}
	}
	for _, command := range []string{"attach --detach-keys xy web", "run --detach-keys xy demo"} {
		if code, _, stderr := runCLI(t, strings.Fields(command)...); code == 0 || !strings.Contains(stderr, "is no key") {
			t.Errorf("%s: code %d, %q", command, code, stderr)
		}
	}
}

func TestDetachReader(t *testing.T) {
	for _, c := range []struct {
		keys, typed, want string
		left              bool
	}{
		{"pq", "hello", "hello", false},
		{"pq", "hellopqx", "hello", true},
		{"pq", "pxpq", "px", true},
		{"pq", "ppq", "p", true},
		{"pq", "appp", "appp", false},
		{"p", "ap", "a", true},
		{"", "apq", "apq", false},
	} {
		for name, wrap := range map[string]func(io.Reader) io.Reader{"at once": func(r io.Reader) io.Reader { return r }, "one by one": iotest.OneByteReader, "with the end": iotest.DataErrReader} {
			r := newDetachReader(wrap(strings.NewReader(c.typed)), []byte(c.keys))
			got, err := io.ReadAll(r)
			left := false
			select {
			case <-r.pressed:
				left = true
			default:
			}
			if err != nil || string(got) != c.want || left != c.left {
				t.Errorf("%q of %q %s: %q, %v, %v", c.keys, c.typed, name, got, left, err)
			}
		}
	}
	// Room for less than there is.
	r := newDetachReader(strings.NewReader("ppppx"), []byte("pppq"))
	var got bytes.Buffer
	if _, err := io.CopyBuffer(struct{ io.Writer }{&got}, r, make([]byte, 2)); err != nil || got.String() != "ppppx" {
		t.Errorf("%q, %v", got.String(), err)
	}
}
