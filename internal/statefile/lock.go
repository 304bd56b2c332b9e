package statefile

import (
	"errors"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// lockPatience is how long to wait for a lock: the kernel closes the descriptors of a daemon
// that was killed one after the other, and whoever sees its connections or another lock go
// starts the next one.
const lockPatience = time.Second

// Lock locks an open file or directory for this process, until it is closed. If another
// process still has it after a second, the error is unix.EWOULDBLOCK.
func Lock(f *os.File) error {
	for end := time.Now().Add(lockPatience); ; time.Sleep(10 * time.Millisecond) {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, unix.EWOULDBLOCK) || time.Now().After(end) {
			return err
		}
	}
}
