package sandbox

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"golang.org/x/sys/unix"
)

// bundles tells when a bundle is removed. containerd removes that of a task when it
// was deleted or given up, however that went: there is nobody any more who could ask
// for the end of what an endpoint was made for.
type bundles struct {
	watch *os.File // inotify; a watch goes with what it watches

	mu   sync.Mutex // guards keys
	keys map[int]key
}

func openBundles() (*bundles, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("watch bundles: %w", err)
	}
	return &bundles{watch: os.NewFile(uintptr(fd), "inotify of bundles"), keys: map[int]key{}}, nil
}

// add begins to watch a bundle. NotFound: it is gone already.
func (w *bundles) add(path string, k key) error {
	conn, err := w.watch.SyscallConn()
	if err != nil {
		return fmt.Errorf("watch bundle %s: %w", path, err)
	}
	w.mu.Lock() // before its event is looked for
	defer w.mu.Unlock()
	var wd int
	var inner error
	err = conn.Control(func(fd uintptr) {
		wd, inner = unix.InotifyAddWatch(int(fd), path, unix.IN_DELETE_SELF|unix.IN_MOVE_SELF|unix.IN_ONLYDIR|unix.IN_ONESHOT)
	})
	if err = errors.Join(err, inner); errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("bundle %s: %w", path, errdefs.ErrNotFound)
	}
	if err != nil {
		return fmt.Errorf("watch bundle %s: %w", path, err)
	}
	w.keys[wd] = k
	return nil
}

// run calls gone for what may have lost its bundle, until the watch is closed.
func (w *bundles) run(gone func(key)) {
	buf := make([]byte, 64*(unix.SizeofInotifyEvent+unix.NAME_MAX+1))
	for {
		n, err := w.watch.Read(buf)
		if err != nil {
			return
		}
		for events := buf[:n]; len(events) >= unix.SizeofInotifyEvent; {
			wd, name := int(int32(binary.NativeEndian.Uint32(events))), binary.NativeEndian.Uint32(events[12:])
			events = events[unix.SizeofInotifyEvent+int(name):]
			for _, k := range w.take(wd) {
				gone(k)
			}
		}
	}
}

// watches says whether the key has a bundle that is there.
func (w *bundles) watches(k key) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, other := range w.keys {
		if other == k {
			return true
		}
	}
	return false
}

// take returns whose watch has fired; all of them if events were lost.
func (w *bundles) take(wd int) []key {
	w.mu.Lock()
	defer w.mu.Unlock()
	var keys []key
	if wd < 0 {
		for _, k := range w.keys {
			keys = append(keys, k)
		}
	} else if k, ok := w.keys[wd]; ok {
		keys = append(keys, k)
		delete(w.keys, wd)
	}
	return keys
}

// watchBundle sees to it that what was made for a bundle goes with it. NotFound: it
// is gone already.
func (c *Controller) watchBundle(path string, k key) error {
	if c.bundles == nil {
		return nil
	}
	err := c.bundles.add(path, k)
	if err == nil || errdefs.IsNotFound(err) {
		return err
	}
	// It serves its client all the same.
	log.G(k.context()).WithError(err).Warn("a container without a sandbox is not watched")
	return nil
}

// loadBundles watches over what earlier daemons made for bundles.
func (c *Controller) loadBundles(ctx context.Context) {
	var err error
	if c.bundles, err = openBundles(); err != nil {
		log.G(ctx).WithError(err).Error("containers without a sandbox are not watched")
		return
	}
	c.background(func() { c.bundles.run(c.bundleGone) })
	c.mu.Lock()
	boxes := slices.Collect(maps.Values(c.boxes))
	c.mu.Unlock()
	for _, b := range boxes {
		c.loadBundle(b)
	}
}

func (c *Controller) loadBundle(b *box) {
	if path := b.snapshot().Bundle; path != "" && c.watchBundle(path, b.k) != nil {
		c.bundleGone(b.k)
	}
}

func (c *Controller) bundleGone(k key) {
	c.mu.Lock()
	b := c.boxes[k]
	c.mu.Unlock()
	if b != nil {
		c.background(func() { b.insist("remove what containerd has given up", b.removeForsaken) })
	}
}

// insist tries something that nobody asked for until it is done. attempt is called
// with op held.
func (b *box) insist(what string, attempt func(context.Context) error) {
	for pause := 50 * time.Millisecond; ; pause = min(2*pause, insistPause) {
		select {
		case b.op <- struct{}{}:
		case <-b.c.closed:
			return
		}
		ctx, cancel := context.WithTimeout(b.context(), cleanupTimeout)
		err := attempt(ctx)
		cancel()
		b.unlock()
		if err == nil {
			return
		}
		log.G(b.context()).WithError(err).Error(what)
		select {
		case <-time.After(pause):
		case <-b.c.closed:
			return
		}
	}
}

// removeForsaken removes a box whose bundle is gone. The caller holds op.
func (b *box) removeForsaken(ctx context.Context) error {
	if !b.c.current(b) {
		return nil
	}
	// A new one of the name alone says nothing: it may be of a container of the ID
	// that is in a sandbox.
	_, err := os.Lstat(b.snapshot().Bundle)
	if b.c.bundles.watches(b.k) && !errors.Is(err, os.ErrNotExist) {
		return nil // Its client is back, with a new one.
	}
	if err := b.remove(ctx); err != nil {
		return err
	}
	log.G(ctx).Warn("removed with its bundle: containerd gave up on it")
	return nil
}
