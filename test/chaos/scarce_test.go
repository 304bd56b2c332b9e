package chaos

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// fillDisk leaves no space on the file system of the daemon's root or state.
func (c *chaos) fillDisk(r *rand.Rand) (err error) {
	dir := []string{c.h.Root, c.h.State}[r.IntN(2)]
	defer c.book.begin("disk full", false)()
	path := filepath.Join(dir, "filler")
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close(), os.Remove(path)) }()
	if err := fill(f); err != nil {
		return fmt.Errorf("fill %s: %w", dir, err)
	}
	time.Sleep(lasting(r)) // nothing is waited for: this is how long it is full
	return nil
}

// fill makes a file as large as it can become.
func fill(f *os.File) error {
	at := int64(0)
	for size := int64(space); size >= int64(os.Getpagesize()); {
		switch err := unix.Fallocate(int(f.Fd()), 0, at, size); err {
		case nil:
			at += size
		case unix.ENOSPC:
			size /= 2
		case unix.EINTR:
		default:
			return err
		}
	}
	return nil
}

func lasting(r *rand.Rand) time.Duration { return time.Duration(50+r.IntN(1500)) * time.Millisecond }

// useUpPids leaves next to no process IDs for the pods of this daemon.
func (c *chaos) useUpPids(r *rand.Rand) (err error) {
	var dirs []string
	for _, pattern := range []string{"/sys/fs/cgroup/", "/sys/fs/cgroup/*/"} {
		found, gerr := filepath.Glob(pattern + c.h.Token + "/pids.max")
		dirs, err = append(dirs, found...), errors.Join(err, gerr)
	}
	if err != nil || len(dirs) != 1 {
		return fmt.Errorf("limits %q: %w", dirs, errors.Join(err, unix.ENOENT))
	}
	text, err := os.ReadFile(filepath.Join(filepath.Dir(dirs[0]), "pids.current"))
	if err != nil {
		return err
	}
	used, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return err
	}
	defer c.book.begin("pids", false)()
	defer func() { err = errors.Join(err, os.WriteFile(dirs[0], []byte("max"), 0)) }()
	if err := os.WriteFile(dirs[0], []byte(strconv.Itoa(used+r.IntN(3))), 0); err != nil {
		return err
	}
	time.Sleep(lasting(r)) // as above
	return nil
}
