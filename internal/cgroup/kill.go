package cgroup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"caisson/internal/fault"
	"caisson/internal/reap"
)

// Kill kills everything in the group and its descendants, and returns when
// nothing of it runs any more (its parents may still have to reap it). Frozen
// groups die without running on. It is bounded by ctx, and by a limit of its
// own if ctx has none; a group that is gone has nothing to kill.
func (g *Group) Kill(ctx context.Context) error {
	if err := g.mayChange("kill"); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, killTimeout)
	defer cancel()
	if err := fault.Fail("cgroup:kill", unix.EMFILE, unix.ENOMEM); err != nil {
		return g.killFailed(err)
	}
	if dir := g.host.unifiedDir(g.path); dir != "" {
		// At once and without a race, for what the v2 hierarchy has there.
		// The file is missing before Linux 5.14, refused in threaded groups.
		err := writeFile(filepath.Join(dir, "cgroup.kill"), "1")
		if err == nil && g.host.mode == Unified {
			if err := awaitEvents(ctx, dir, "populated", 0); err != nil {
				return g.killFailed(err)
			}
			return nil
		}
	}
	if err := g.killEach(ctx); err != nil {
		return g.killFailed(err)
	}
	return nil
}

func (g *Group) killFailed(err error) error {
	if errors.Is(err, context.DeadlineExceeded) {
		pids, _ := g.Pids() // only to say more in the error that is returned
		return fmt.Errorf("cgroup %q: kill: processes %v do not end: %w", g.path, pids, err)
	}
	return fmt.Errorf("cgroup %q: kill: %w", g.path, classify(err))
}

// killEach kills one process after the other until none is left. A tree that
// forks faster than it is killed is cut off from forking first.
func (g *Group) killEach(ctx context.Context) error {
	const patience = 3 // rounds before forks are forbidden
	reopen := func() {}
	defer func() { reopen() }()
	var b backoff
	for round := 0; ; round++ {
		pids, err := g.Pids()
		if err != nil {
			return err
		}
		if len(pids) == 0 {
			return nil
		}
		if round == patience {
			reopen = g.forbidForks()
		}
		var victims []int
		for _, pid := range pids {
			if fd, ok := g.killOne(pid); ok {
				victims = append(victims, fd)
			}
		}
		// A SIGKILL reaches what the v1 freezer holds only when it is thawed.
		err = g.thawAllV1()
		if waitErr := awaitExits(ctx, victims); err == nil {
			err = waitErr
		}
		if err == nil {
			err = b.wait(ctx)
		}
		if err != nil {
			return err
		}
	}
}

// killOne kills a process if it is still the member of the group that was
// listed, and returns its pidfd. The pidfd is taken first: if the pid was
// given to another process in between, either that one is seen not to be a
// member, or the pidfd is that of the dead one.
func (g *Group) killOne(pid int) (fd int, ok bool) {
	fd, err := reap.Open(pid)
	if err != nil {
		return -1, false
	}
	if g.contains(pid) && unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0) == nil {
		return fd, true
	}
	unix.Close(fd)
	return -1, false
}

// contains reports whether some hierarchy has the process in the group or
// below it.
func (g *Group) contains(pid int) bool {
	paths, err := g.host.pathsOf(pid)
	if err != nil {
		return false
	}
	for _, p := range paths {
		if p == g.path || strings.HasPrefix(p, g.path+"/") {
			return true
		}
	}
	return false
}

// awaitExits waits until the processes ended, and closes their pidfds.
func awaitExits(ctx context.Context, fds []int) error {
	var err error
	for _, fd := range fds {
		for err == nil {
			p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
			if n, _ := unix.Poll(p, 0); n == 1 {
				break
			}
			err = poll(ctx, fd, unix.POLLIN)
		}
		unix.Close(fd)
	}
	return err
}

// forbidForks sets the limit of processes to zero, so that each fork in the
// group fails, and returns what puts the old limit back. Without a pids
// controller it does nothing.
func (g *Group) forbidForks() (reopen func()) {
	dir := g.host.dirOf("pids", g.path)
	if g.host.mode == Unified {
		dir = g.host.unifiedDir(g.path)
	}
	file := filepath.Join(dir, "pids.max")
	old, err := os.ReadFile(file)
	if dir == "" || err != nil || writeFile(file, "0") != nil {
		return func() {}
	}
	return func() {
		// The group may be gone by now; then there is nothing to put back.
		_ = writeFile(file, strings.TrimSpace(string(old)))
	}
}

// Delete removes the group and its descendants from all hierarchies. Groups
// that processes are just leaving are waited for, for a bounded time; one that
// is used for longer is FailedPrecondition. A group that is gone is success.
func (g *Group) Delete(ctx context.Context) error {
	if err := g.mayChange("delete"); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, deleteTimeout)
	defer cancel()
	var b backoff
	for {
		err := g.removeDirs()
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.ENOTEMPTY) {
			return fmt.Errorf("cgroup %q: delete: %w", g.path, classify(err))
		}
		if b.wait(ctx) == nil {
			continue
		}
		pids, _ := g.Pids() // only to say more in the error that is returned
		return fmt.Errorf("cgroup %q: delete: still used by processes %v: %w: %w", g.path, pids, err, errdefs.ErrFailedPrecondition)
	}
}

// Remove kills what is in the group of that path and below, and removes it. A group
// that is gone is success.
func Remove(ctx context.Context, path string) error {
	g, err := Load(path)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := g.mayChange("remove"); err != nil {
		return err
	}
	if g.removeDirs() == nil { // what can be removed has nothing in it to kill
		return nil
	}
	if err := g.Kill(ctx); err != nil {
		return err
	}
	return g.Delete(ctx)
}

// removeDirs tries each directory once and returns the last failure.
func (g *Group) removeDirs() error {
	failed := fault.Fail("cgroup:delete", unix.EBUSY)
	if failed != nil {
		return failed
	}
	for _, dir := range g.groupDirs() {
		err := unix.Rmdir(dir)
		if err == nil || gone(err) {
			continue
		}
		err = walk(dir, func(dir string) error {
			if err := unix.Rmdir(dir); err != nil && !gone(err) {
				failed = fmt.Errorf("remove %s: %w", dir, err)
			}
			return nil
		})
		if err != nil {
			failed = err
		}
	}
	return failed
}

// Prune removes a group that has neither processes nor groups below it, from the
// hierarchies in which it is so. Anything else is left alone, and no error.
func Prune(path string) error {
	h, err := currentHost()
	if err != nil {
		return err
	}
	if path, err = Resolve(path); err != nil {
		return err
	}
	for _, dir := range h.dirs(path) {
		if err := unix.Rmdir(dir); err != nil && !gone(err) && !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.ENOTEMPTY) {
			return fmt.Errorf("cgroup %q: prune: remove %s: %w", path, dir, classify(err))
		}
	}
	return nil
}
