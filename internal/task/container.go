package task

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/containerd/containerd/api/events"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"caisson/internal/cgroup"
	"caisson/internal/fault"
	"caisson/internal/oci"
	"caisson/internal/statefile"
	"caisson/internal/stow"
)

// containerRecord is what the run-time directory says of a container; it does
// not change after Create.
type containerRecord struct {
	ID      string
	Bundle  string
	Runtime oci.Runtime
	Rootfs  []mount.Mount
	// Restore is where to restore from instead of starting afresh.
	Restore *oci.Restore
	// CheckpointPath and CriuWorkPath are the defaults of Checkpoint.
	CheckpointPath, CriuWorkPath string
	// CreatedAt tells it from others that have the same ID at other times.
	CreatedAt time.Time
	// IoUID and IoGID own the pipes of the container's processes.
	IoUID, IoGID uint32
	// KillAll is set when the container's processes do not end with its init,
	// because they share a PID namespace with others.
	KillAll bool
	// NoStartHooks is set when nothing has to be done at its start but to let its
	// process go on.
	NoStartHooks bool `json:",omitempty"`
	// LeavesLittle is set when all that its OCI runtime would remove after its end is
	// Cgroup and the runtime's own notes.
	LeavesLittle bool `json:",omitempty"`
	// Stows is set when nobody looks for the root filesystem on the host while the
	// container runs.
	Stows bool `json:",omitempty"`
	// Cgroup is what the OCI runtime makes for the container; empty if it was there
	// before, or has no name yet.
	Cgroup string `json:",omitempty"`
	// Request that creates it; empty if that cannot come again.
	Request string `json:",omitempty"`
}

// container is one task: an init process and the execs beside it.
type container struct {
	containerRecord
	set  *Set
	init *process
	gone chan struct{} // closed when the set has it no more

	mu       sync.Mutex // guards the fields below
	execs    map[string]*process
	ending   bool // init has ended: no exec can start any more
	paused   bool
	released bool // nothing runs in the background any more
	group    *cgroup.Group
	unwatch  func() // ends the watch for out-of-memory kills; nil without one
}

func newContainer(s *Set, rec containerRecord) *container {
	return &container{containerRecord: rec, set: s, gone: make(chan struct{}), execs: map[string]*process{}}
}

func (c *container) dir() string { return c.set.dir(c.ID) }

func (c *container) file(name string) string { return filepath.Join(c.dir(), name) }

func (c *container) rootfs() string { return filepath.Join(c.Bundle, "rootfs") }

// log is where the OCI runtime logs for a process; one file each, so that the
// last error belongs to the call that failed.
func (c *container) log(execID string) string {
	if execID == "" {
		return c.file("init.log")
	}
	return c.file("exec-" + execID + ".log")
}

func (c *container) process(execID string) (*process, error) {
	if execID == "" {
		return c.init, nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	p, ok := c.execs[execID]
	if !ok {
		return nil, fmt.Errorf("exec %q in task %q: %w", execID, c.ID, errdefs.ErrNotFound)
	}
	return p, nil
}

func (c *container) allExecs() []*process {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := make([]*process, 0, len(c.execs))
	for _, p := range c.execs {
		all = append(all, p)
	}
	return all
}

// cgroup of the container's processes. NotFound before there are any.
func (c *container) cgroup() (*cgroup.Group, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.group == nil {
		return nil, fmt.Errorf("task %q: cgroup: %w", c.ID, errdefs.ErrNotFound)
	}
	return c.group, nil
}

// watch opens the container's cgroup and starts to report out-of-memory kills.
// Failing that, the container runs all the same, unobserved, and the log says so.
func (c *container) watch(group *cgroup.Group) {
	wctx, cancel := context.WithCancel(context.Background())
	done, err := group.WatchOOM(wctx, func() { c.tellOOM(group) })
	c.mu.Lock()
	defer c.mu.Unlock()
	c.group = group
	if err != nil {
		cancel()
		log.G(c.context()).WithError(err).Warn("out-of-memory kills of this container will only be reported when it ends")
		return
	}
	c.unwatch = func() {
		cancel()
		<-done
	}
	if c.released {
		cancel()
	}
}

// tellOOM publishes out-of-memory kills that were not published yet.
func (c *container) tellOOM(group *cgroup.Group) {
	rec := c.init.snapshot()
	n, err := group.OOMKills()
	if err != nil || n <= rec.OOMKills {
		return // The group is gone, or the kills were not this container's.
	}
	key := fmt.Sprintf("%s/%d", c.init.key("oom", rec.Serial), n)
	if err := c.set.tell(c.context(), key, &events.TaskOOM{ContainerID: c.ID}); err != nil {
		log.G(c.context()).WithError(err).Error("publish out-of-memory kill")
	}
}

// release ends what the daemon runs for the container, and leaves the container be.
func (c *container) release() {
	c.mu.Lock()
	c.released = true
	unwatch := c.unwatch
	c.mu.Unlock()
	if unwatch != nil {
		unwatch()
	}
	for _, p := range append(c.allExecs(), c.init) {
		p.unwatchStdin()
		p.giveUpIO()
		if t := p.terminal(); t != nil {
			t.Close()
		}
	}
}

// initEnded is called when the init process has ended, before that is told to
// anybody: the exits of the container's other processes come first.
func (c *container) initEnded(ctx context.Context) {
	c.mu.Lock()
	c.ending = true
	group, unwatch := c.group, c.unwatch
	c.mu.Unlock()
	if c.KillAll {
		c.killGroup(ctx)
	}
	limit := time.NewTimer(killTimeout)
	defer limit.Stop()
	for _, p := range c.allExecs() {
		if !p.waitEnded(limit.C) {
			log.G(p.context()).Error("outlived its container's init; its exit will be told late")
			break
		}
	}
	if unwatch != nil {
		unwatch()
	}
	if group != nil {
		c.tellOOM(group) // who learns of the exit wants to know its reason
	}
}

// killTimeout bounds how long killed processes may take to go; those in
// uninterruptible sleep can take any time.
const killTimeout = 10 * time.Second

// waitEnded returns when an exec that was started has ended and that has been
// published, or when it turns out not to have been started; false if that takes
// too long.
func (p *process) waitEnded(limit <-chan time.Time) bool {
	select {
	case p.op <- struct{}{}: // a start under way fails or succeeds first
	case <-limit:
		return false
	}
	state := p.snapshot().State
	p.unlock()
	if state != Running {
		return true
	}
	select {
	case <-p.done:
		return true
	case <-limit:
		return false
	}
}

// mountRootfs mounts the root filesystem in the bundle.
func (c *container) mountRootfs(ctx context.Context) error {
	if len(c.Rootfs) == 0 {
		return nil
	}
	if err := os.Mkdir(c.rootfs(), 0o711); err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("task %q: %w", c.ID, err)
	}
	if info, err := os.Lstat(c.rootfs()); err != nil || !info.IsDir() {
		return errors.Join(fmt.Errorf("task %q: %s is no directory to mount on: %w", c.ID, c.rootfs(), errdefs.ErrInvalidArgument), err)
	}
	err := fault.Fail("task:mount", unix.ENOMEM, unix.ENOSPC)
	if err == nil {
		err = mount.All(c.Rootfs, c.rootfs())
	}
	if err != nil {
		return errors.Join(fmt.Errorf("task %q: mount root filesystem: %w", c.ID, err), c.unmountRootfs(ctx))
	}
	return nil
}

// rootfsKept is what the monitor keeps the root filesystem as. No process's stream has
// such a name.
func (c *container) rootfsKept() string { return c.ID + "/rootfs" }

// stowRootfs puts the root filesystem away: a container that was made has a mount of its
// own. One that cannot be stays where it is.
func (c *container) stowRootfs(ctx context.Context) {
	host, err := c.set.attached()
	if err != nil || !c.Stows {
		return
	}
	if err := stow.Away(ctx, host, c.rootfsKept(), c.rootfs()); err != nil {
		log.G(ctx).WithError(err).Warn("the root filesystem of a container stays mounted")
	}
}

// unmountRootfs ends the root filesystem, wherever it is. It may be repeated.
func (c *container) unmountRootfs(ctx context.Context) error {
	if len(c.Rootfs) == 0 {
		return nil
	}
	if host, err := c.set.attached(); err == nil && c.Stows {
		if err := stow.Forget(ctx, host, c.rootfsKept()); err != nil && !errdefs.IsUnavailable(err) { // it goes with the monitor
			return fmt.Errorf("task %q: root filesystem: %w", c.ID, err)
		}
	}
	err := fault.Fail("task:unmount", unix.EBUSY)
	if err == nil {
		err = mount.UnmountMounts(c.Rootfs, c.rootfs(), unix.UMOUNT_NOFOLLOW)
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("task %q: unmount root filesystem: %w", c.ID, err)
	}
	return nil
}

func (c *container) save() error {
	err := fault.Fail("task:dir", unix.ENOSPC)
	if err == nil {
		err = os.MkdirAll(c.dir(), 0o700)
	}
	if err != nil {
		return fmt.Errorf("task %q: %w", c.ID, err)
	}
	if err := statefile.Write(c.file("container.json"), c.containerRecord); err != nil {
		return fmt.Errorf("task %q: %w", c.ID, err)
	}
	return nil
}

// gravePrefix begins the name of the directory of a container that was deleted;
// no ID begins so.
const gravePrefix = "."

func (c *container) grave() string { return c.set.dir(gravePrefix + c.ID) }

// bury takes the container's records away in one step, so that a daemon that
// dies meanwhile leaves all of them or none. Remove follows.
func (c *container) bury() error {
	err := os.RemoveAll(c.grave())
	if err == nil {
		fault.Point("task:bury")
		err = os.Rename(c.dir(), c.grave())
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("task %q: %w", c.ID, err)
	}
	return nil
}

func (c *container) removeGrave() error {
	fault.Point("task:forget")
	if err := os.RemoveAll(c.grave()); err != nil {
		return fmt.Errorf("task %q: %w", c.ID, err)
	}
	return nil
}

// sharesPID tells whether a container's processes survive its init.
func sharesPID(spec *specs.Spec) bool {
	if spec.Linux == nil {
		return true
	}
	for _, ns := range spec.Linux.Namespaces {
		if ns.Type == specs.PIDNamespace {
			return ns.Path != ""
		}
	}
	return true
}
