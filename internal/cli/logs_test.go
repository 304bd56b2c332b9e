package cli

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

func TestSeekTail(t *testing.T) {
	long := strings.Repeat("x", 100_000) + "\n"
	for _, c := range []struct {
		text  string
		lines int
		want  string
	}{
		{"a\nb\nc\n", allLines, "a\nb\nc\n"},
		{"a\nb\nc\n", 0, ""},
		{"a\nb\nc\n", 1, "c\n"},
		{"a\nb\nc\n", 2, "b\nc\n"},
		{"a\nb\nc\n", 3, "a\nb\nc\n"},
		{"a\nb\nc\n", 9, "a\nb\nc\n"},
		{"a\nb\nc", 1, "c"},
		{"a\n\n\n", 2, "\n\n"},
		{"", 3, ""},
		{long + long + "end", 2, long + "end"},
	} {
		r := strings.NewReader(c.text)
		if err := seekTail(r, c.lines); err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(r)
		if err != nil || string(got) != c.want {
			t.Errorf("%d lines of %.10q...: %.20q, %v", c.lines, c.text, got, err)
		}
	}
}

// notify tells of each write.
type notify struct {
	mu   sync.Mutex
	buf  bytes.Buffer
	seen chan string
}

func (n *notify) Write(p []byte) (int, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.buf.Write(p)
	n.seen <- n.buf.String()
	return len(p), nil
}

func TestFollowFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	w, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	write := func(s string) {
		if _, err := w.WriteString(s); err != nil {
			t.Error(err)
		}
	}
	r, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	out := &notify{seen: make(chan string, 10)}
	ended, done := make(chan struct{}), make(chan error, 1)
	write("one\n")
	go func() { done <- followFile(t.Context(), out, r, ended) }()
	if got := <-out.seen; got != "one\n" {
		t.Errorf("first: %q", got)
	}
	write("two\n")
	if got := <-out.seen; got != "one\ntwo\n" {
		t.Errorf("second: %q", got)
	}
	write("last\n")
	close(ended)
	if err := <-done; err != nil {
		t.Error(err)
	}
	if out.buf.String() != "one\ntwo\nlast\n" {
		t.Errorf("all: %q", out.buf.String())
	}
}

func TestFollowFileEndsWithItsContext(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	r, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := followFile(ctx, io.Discard, r, make(chan struct{})); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}
