// Package statefile keeps small JSON records in the run-time directory.
//
// The directory is on tmpfs and does not outlive a reboot, so a record is
// replaced by a rename, which a killed daemon cannot tear, and never synced. It also
// locks what only one daemon may use.
package statefile

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"caisson/internal/fault"
)

// maxSize bounds what Read takes in, and so what Write does: above it nothing may
// be written that a new daemon would not take over.
const maxSize = 16 << 20

// TempSuffix ends the name of a record that is being written; one that a killed
// daemon left is overwritten by the next Write.
const TempSuffix = ".new"

// Write replaces the record at path. InvalidArgument: it is too large.
func Write(path string, value any) error {
	data, err := json.Marshal(value)
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if len(data) > maxSize {
		return fmt.Errorf("write %s: %d bytes, more than %d: %w", path, len(data), maxSize, errdefs.ErrInvalidArgument)
	}
	temp := path + TempSuffix
	err = fault.Fail("statefile:write", unix.ENOSPC, unix.EMFILE)
	if err == nil {
		err = writeFile(temp, data)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("write %s: %w", path, err), remove(temp))
	}
	err = fault.Fail("statefile:rename", unix.ENOSPC)
	if err == nil {
		err = unix.Rename(temp, path) // os.Rename looks at path first
	}
	if err != nil {
		return errors.Join(fmt.Errorf("write %s: %w", path, err), remove(temp))
	}
	return nil
}

// writeFile is os.WriteFile in a third of its system calls: the poller is not told of
// the file. Each verb writes a record or two.
func writeFile(path string, data []byte) error {
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CREAT|unix.O_TRUNC|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return &os.PathError{Op: "open", Path: path, Err: err}
	}
	for len(data) > 0 && err == nil {
		var n int
		if n, err = unix.Write(fd, data); err == unix.EINTR {
			err = nil
			continue
		}
		data = data[max(n, 0):]
	}
	if err = errors.Join(err, unix.Close(fd)); err != nil {
		return &os.PathError{Op: "write", Path: path, Err: err}
	}
	return nil
}

func remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// Read fills value from the record at path. NotFound: there is none. DataLoss:
// there is one that cannot be understood.
func Read(path string, value any) error {
	if err := fault.Fail("statefile:read", unix.EMFILE); err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("read %s: %w", path, errdefs.ErrNotFound)
	}
	if err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxSize+1))
	if err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	if len(data) > maxSize {
		return fmt.Errorf("read %s: larger than %d bytes: %w", path, maxSize, errdefs.ErrDataLoss)
	}
	if err := json.Unmarshal(data, value); err != nil {
		return fmt.Errorf("read %s: %w: %w", path, err, errdefs.ErrDataLoss)
	}
	return nil
}
