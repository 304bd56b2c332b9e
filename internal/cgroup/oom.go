package cgroup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// OOMKills counts the processes of the group and its descendants that the
// kernel killed for want of memory. Compared with an earlier count it tells
// whether a process that just ended did so for that reason, without waiting
// for WatchOOM to say so.
func (g *Group) OOMKills() (uint64, error) {
	if g.host.mode != Unified && !g.host.has("memory") {
		return 0, fmt.Errorf("cgroup %q: count OOM kills: the host has no memory controller: %w", g.path, errdefs.ErrFailedPrecondition)
	}
	var total uint64
	counts, _, err := g.oomCounts()
	if err != nil {
		return 0, fmt.Errorf("cgroup %q: count OOM kills: %w", g.path, classify(err))
	}
	for _, n := range counts {
		total += n
	}
	return total, nil
}

// oomCounts reads the kills for each directory that counts its own. In v1
// each group counts the processes of its own; in v2 a group's count includes
// its descendants'. stalled says that a group has run out of memory and its
// processes wait, because killing is switched off (v1 only).
func (g *Group) oomCounts() (counts map[string]uint64, stalled bool, err error) {
	counts = make(map[string]uint64)
	if g.host.mode == Unified {
		dir := g.host.unifiedDir(g.path)
		keys, err := readKeys(filepath.Join(dir, "memory.events"))
		if err == nil && keys == nil {
			err = fmt.Errorf("memory.events: %w", os.ErrNotExist)
		}
		counts[dir] = keys["oom_kill"]
		return counts, false, err
	}
	path, err := g.controllerPath("memory")
	if err != nil {
		return nil, false, err
	}
	top := g.host.dirOf("memory", path)
	if _, err := os.Lstat(top); err != nil {
		return nil, false, err
	}
	err = walk(top, func(dir string) error {
		keys, err := readKeys(filepath.Join(dir, "memory.oom_control"))
		if err != nil {
			return err
		}
		counts[dir] = keys["oom_kill"]
		stalled = stalled || (keys["under_oom"] == 1 && keys["oom_kill_disable"] == 1)
		return nil
	})
	return counts, stalled, err
}

// WatchOOM calls killed when the kernel has killed processes of the group for want of
// memory, beginning with those after the call; kills that come faster than killed
// returns are announced once. One goroutine runs until ctx or the group ends, which
// closes done.
func (g *Group) WatchOOM(ctx context.Context, killed func()) (done <-chan struct{}, err error) {
	w := &oomWatch{group: g, killed: killed}
	if g.host.mode == Unified {
		err = w.openV2()
	} else {
		err = w.openV1()
	}
	if err == nil {
		// After the registration: a kill in between is announced and counted.
		w.counts, _, err = g.oomCounts()
	}
	if err != nil {
		if w.file != nil {
			err = errors.Join(err, w.file.Close())
		}
		return nil, fmt.Errorf("cgroup %q: watch for OOM: %w", g.path, classify(err))
	}
	// Closing the file ends a read that is under way.
	stop := context.AfterFunc(ctx, func() { w.file.Close() })
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		defer w.file.Close() // again after a cancelled ctx, which does no harm
		defer stop()
		w.run(ctx)
	}()
	return ended, nil
}

// oomWatch is owned by its goroutine.
type oomWatch struct {
	group  *Group
	killed func()
	file   *os.File // eventfd on v1, inotify on v2
	counts map[string]uint64
}

// emptyPoll is how often a watch on an empty v2 group looks whether the group
// is still there, since its removal is not announced by all kernels.
const emptyPoll = time.Second

// settleTime is how long after the announcement of an OOM on v1 a kill is
// expected: the kernel announces before it chooses a victim, and an OOM of a
// group above announces itself in all groups below.
const settleTime = 2 * time.Second

func (w *oomWatch) openV1() error {
	if !w.group.host.has("memory") {
		return fmt.Errorf("the host has no memory controller: %w", errdefs.ErrFailedPrecondition)
	}
	theirs, err := w.group.libraryV1()
	if err != nil {
		return err
	}
	fd, err := theirs.OOMEventFD()
	if err != nil {
		return err
	}
	if err := unix.SetNonblock(int(fd), true); err != nil {
		unix.Close(int(fd))
		return err
	}
	w.file = os.NewFile(fd, "oom eventfd")
	return nil
}

func (w *oomWatch) openV2() error {
	dir := w.group.host.unifiedDir(w.group.path)
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return err
	}
	w.file = os.NewFile(uintptr(fd), "oom inotify")
	for _, name := range []string{"memory.events", "cgroup.events"} {
		if _, err := unix.InotifyAddWatch(fd, filepath.Join(dir, name), unix.IN_MODIFY|unix.IN_DELETE_SELF); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

// eventSize holds one announcement: a number on v1, on v2 an event of a file that is
// watched by itself, which has no name. There are as many watches as containers, and
// the buffer is on the stack of each.
const eventSize = max(8, unix.SizeofInotifyEvent)

func (w *oomWatch) run(ctx context.Context) {
	var buf [eventSize]byte
	for {
		if err := w.file.SetReadDeadline(w.nextLook()); err != nil {
			return
		}
		_, err := w.file.Read(buf[:])
		if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			return // closed, because ctx is done
		}
		announced := err == nil
		if !w.look(ctx, announced) {
			return
		}
	}
}

// nextLook is when to look at the group without being told to: never, except
// for an empty v2 group. A v1 eventfd announces the removal as well.
func (w *oomWatch) nextLook() time.Time {
	if w.group.host.mode == Unified {
		keys, err := readKeys(filepath.Join(w.group.host.unifiedDir(w.group.path), "cgroup.events"))
		if err != nil || keys["populated"] == 0 {
			return time.Now().Add(emptyPoll)
		}
	}
	return time.Time{}
}

// look compares the counts and reports growth; false means that the watch is
// over.
func (w *oomWatch) look(ctx context.Context, announced bool) bool {
	var b backoff
	until := time.Now().Add(settleTime)
	for {
		counts, stalled, err := w.group.oomCounts()
		if err != nil {
			return false
		}
		grown := stalled
		for dir, n := range counts {
			grown = grown || n > w.counts[dir]
		}
		w.counts = counts
		if grown {
			w.killed()
			return true
		}
		if w.group.host.mode == Unified || !announced || time.Now().After(until) {
			return true
		}
		if b.wait(ctx) != nil {
			return false
		}
	}
}
