package sandbox

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/containerd/log"

	"caisson/internal/fault"
	"caisson/internal/stow"
)

// filesLinger is for how long the sandbox's files stay mounted on the host after somebody
// needed them there: a pod's first containers follow its start at once.
const filesLinger = time.Second

const (
	// stowTimeout bounds putting them away, for which nobody waits.
	stowTimeout = 10 * time.Second
	// stowPause is the longest between two attempts.
	stowPause = time.Minute
)

// filesInUse counts those who need a sandbox's files in the host's mount table, which are
// the OCI runtimes that make its containers. When there has been nobody for a while, the
// files are put away.
type filesInUse struct {
	mu    sync.Mutex // held while they are mounted, put away or unmounted
	users int
	idle  *time.Timer // until they are put away; nil while there are users
}

// stowed are the sandbox's mounts that are put away, by the name of their directory.
func (b *box) stowed() []string {
	if b.snapshot().Settings.HostIPC {
		return []string{"etc"}
	}
	return []string{"etc", "shm"}
}

// useFiles has the sandbox's files mounted on the host until done is called.
func (b *box) useFiles(ctx context.Context) (done func(), err error) {
	inst := b.instance()
	if b.snapshot().Kind != kindSandbox || inst == nil {
		return func() {}, nil // There are none, or it is too late for a container.
	}
	b.files.mu.Lock()
	defer b.files.mu.Unlock()
	for _, name := range b.stowed() {
		if err := stow.Back(ctx, inst.Host(), "/"+name, b.path(name)); err != nil {
			b.filesIdle()
			return nil, fmt.Errorf("sandbox %q: %w", b.k.id, err)
		}
	}
	b.files.users++
	b.filesIdle()
	return func() {
		b.files.mu.Lock()
		defer b.files.mu.Unlock()
		b.files.users--
		b.filesIdle()
	}, nil
}

// filesIdle puts the files away some time from now, if nobody needs them then. The
// caller holds files.mu.
func (b *box) filesIdle() {
	b.files.stay()
	switch {
	case b.files.users > 0 || b.snapshot().Kind != kindSandbox:
	case fault.On:
		b.stowFiles(filesLinger)
	default:
		b.stowFilesIn(filesLinger)
	}
}

// stowFilesIn puts the files away after a pause. The caller holds files.mu.
func (b *box) stowFilesIn(pause time.Duration) {
	b.files.idle = time.AfterFunc(pause, func() {
		b.c.background(func() {
			b.files.mu.Lock()
			defer b.files.mu.Unlock()
			b.stowFiles(min(2*pause, stowPause))
		})
	})
}

// stay ends the wait. The caller holds mu.
func (f *filesInUse) stay() {
	if f.idle != nil {
		f.idle.Stop()
		f.idle = nil
	}
}

// stowFiles puts the files away if nobody needs them. What cannot be put away stays until
// the next attempt, after a pause. The caller holds files.mu.
func (b *box) stowFiles(pause time.Duration) {
	inst := b.instance()
	if b.files.users > 0 || inst == nil {
		return
	}
	ctx, cancel := context.WithTimeout(b.context(), stowTimeout)
	defer cancel()
	for _, name := range b.stowed() {
		if err := stow.Away(ctx, inst.Host(), "/"+name, b.path(name)); err != nil {
			log.G(ctx).WithError(err).Warn("a sandbox's files stay mounted for now")
			b.stowFilesIn(pause)
			return
		}
	}
}
