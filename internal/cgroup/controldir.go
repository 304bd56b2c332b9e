package cgroup

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"
)

// controlDir reads a group's files in one hierarchy after another. Within one, the first
// failure is kept, and everything is empty from then on.
type controlDir struct {
	fd   int    // a directory
	path string // leads from there to the group; ends with a slash, or is empty
	buf  []byte
	err  error
}

var controlDirs = sync.Pool{New: func() any { return &controlDir{buf: make([]byte, 8<<10)} }}

// readGroup calls read with d at a group, of which path is the path below root, and
// returns the first failure. If it reads many files the group's directory is opened.
func (d *controlDir) readGroup(root int, path string, many bool, read func()) error {
	d.fd, d.err = root, nil
	d.path = "." + path + "/"
	if many {
		fd, err := d.open("", unix.O_PATH|unix.O_DIRECTORY)
		if err != nil {
			return &fs.PathError{Op: "open", Path: path, Err: err}
		}
		defer unix.Close(fd)
		d.fd, d.path = fd, ""
	}
	read()
	if d.err != nil {
		return fmt.Errorf("%s: %w", path, d.err)
	}
	return nil
}

func (d *controlDir) open(name string, flags int) (int, error) {
	return unix.Openat(d.fd, d.path+name, flags|unix.O_CLOEXEC, 0)
}

// file is the content of a file until the next one is read.
func (d *controlDir) file(name string) []byte {
	if d.err != nil {
		return nil
	}
	fd, err := d.open(name, unix.O_RDONLY)
	if err != nil {
		d.err = &fs.PathError{Op: "open", Path: name, Err: err}
		return nil
	}
	defer unix.Close(fd)
	for used := 0; ; {
		n, err := unix.Read(fd, d.buf[used:])
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			d.err = &fs.PathError{Op: "read", Path: name, Err: err}
			return nil
		}
		if used += n; n == 0 || used < len(d.buf) { // what the kernel had fits
			return d.buf[:used]
		}
		d.buf = append(d.buf, make([]byte, len(d.buf))...)
	}
}

func (d *controlDir) number(name string) uint64 {
	text := bytes.TrimSpace(d.file(name))
	if d.err != nil || len(text) == 0 || string(text) == "max" { // 0, as the library has it
		return 0
	}
	return d.parse(text)
}

// optional reads the number in a file that not every kernel has, and tells whether this
// one does.
func (d *controlDir) optional(name string, to *uint64) bool {
	if d.err != nil {
		return false
	}
	*to = d.number(name)
	if errors.Is(d.err, fs.ErrNotExist) {
		d.err = nil
		return false
	}
	return d.err == nil
}

// pairs reads lines of a key and a value into the fields that are known.
func (d *controlDir) pairs(name string, field func(key []byte) *uint64) {
	for text := d.file(name); len(text) > 0; {
		var line []byte
		line, text, _ = bytes.Cut(text, []byte("\n"))
		if key, value, ok := bytes.Cut(line, []byte(" ")); ok {
			if to := field(key); to != nil {
				*to = d.parse(value)
			}
		}
	}
}

func (d *controlDir) parse(text []byte) uint64 {
	n, err := strconv.ParseUint(string(text), 10, 64)
	if err != nil && d.err == nil {
		d.err = fmt.Errorf("number %q: %w", text, err)
	}
	return n
}
