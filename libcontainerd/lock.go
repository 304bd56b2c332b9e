package libcontainerd

import (
	"context"
	"fmt"
	"os"
	"sync"
	"syscall"

	"github.com/containerd/errdefs"
)

// locks has a lock for each key that is locked or waited for.
type locks struct {
	mu  sync.Mutex
	all map[key]*keyLock
}

type keyLock struct {
	held  chan struct{} // has room while nobody holds the lock
	users int           // who hold it or wait for it
}

// lock waits for the key's lock as long as ctx lasts.
func (ls *locks) lock(ctx context.Context, k key) (unlock func(), err error) {
	ls.mu.Lock()
	l := ls.all[k]
	if l == nil {
		if ls.all == nil {
			ls.all = map[key]*keyLock{}
		}
		l = &keyLock{held: make(chan struct{}, 1)}
		ls.all[k] = l
	}
	l.users++
	ls.mu.Unlock()
	leave := func() {
		ls.mu.Lock()
		defer ls.mu.Unlock()
		if l.users--; l.users == 0 {
			delete(ls.all, k)
		}
	}
	select {
	case l.held <- struct{}{}:
		return func() { <-l.held; leave() }, nil
	case <-ctx.Done():
		leave()
		return nil, fmt.Errorf("%q is being made, found or removed: %w", k.id, context.Cause(ctx))
	}
}

// lockDir keeps other clients from the directory until the file is given to
// unlockDir, or this program ends.
func lockDir(path string) (*os.File, error) {
	dir, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(dir.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		dir.Close()
		if err == syscall.EWOULDBLOCK {
			return nil, fmt.Errorf("StateDir %q is another client's: %w", path, errdefs.ErrFailedPrecondition)
		}
		return nil, fmt.Errorf("StateDir %q: lock: %w", path, err)
	}
	return dir, nil
}

// unlockDir does not rely on the file's closing: a process that is just being
// started may have it, too.
func unlockDir(dir *os.File) error {
	err := syscall.Flock(int(dir.Fd()), syscall.LOCK_UN)
	if cerr := dir.Close(); err == nil {
		err = cerr
	}
	return err
}
