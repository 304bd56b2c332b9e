package faults

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// output is a FIFO with a client that reads it, again and again: whoever writes
// to it may come, go and come again.
type output struct {
	path  string
	ended chan struct{}

	mu     sync.Mutex // guards all below
	closed bool
	open   bool // somebody can write
	text   []byte
	change chan struct{} // closed and replaced when one of these changes
}

func newOutput(path string) (*output, error) {
	if err := unix.Mkfifo(path, 0o600); err != nil {
		return nil, fmt.Errorf("fifo %s: %w", path, err)
	}
	o := &output{path: path, ended: make(chan struct{}), change: make(chan struct{})}
	go o.read()
	return o, nil
}

func (o *output) read() {
	defer close(o.ended)
	for {
		f, err := os.Open(o.path) // returns when somebody writes
		if err != nil {
			return
		}
		o.set(func() { o.open = true })
		buf := make([]byte, 4096)
		for err == nil {
			var n int
			n, err = f.Read(buf)
			o.set(func() { o.text = append(o.text, buf[:n]...) })
		}
		f.Close() // only read from
		closed := false
		o.set(func() { o.open, closed = false, o.closed })
		if closed || !errors.Is(err, io.EOF) {
			return
		}
	}
}

func (o *output) set(f func()) {
	o.mu.Lock()
	defer o.mu.Unlock()
	f()
	close(o.change)
	o.change = make(chan struct{})
}

// close ends the reader and removes the FIFO.
func (o *output) close() error {
	o.set(func() { o.closed = true })
	for {
		f, err := os.OpenFile(o.path, os.O_RDWR, 0) // wakes the reader
		if err == nil {
			err = f.Close()
		}
		if err != nil {
			return err
		}
		select {
		case <-o.ended:
			return os.Remove(o.path)
		case <-time.After(10 * time.Millisecond): // it was just about to wait
		}
	}
}

// await waits until the output is text and, if it is to be the end, until nobody
// can write to it any more.
func (o *output) await(ctx context.Context, text string, end bool) error {
	for {
		o.mu.Lock()
		got, open, change := string(o.text), o.open, o.change
		o.mu.Unlock()
		if got == text && (!end || !open) {
			return nil
		}
		select {
		case <-change:
		case <-ctx.Done():
			return fmt.Errorf("output %q (open: %t), want %q (end: %t)", got, open, text, end)
		}
	}
}
