package chaos

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"caisson/test/daemon"
)

// container is one that was started.
type container struct {
	containerPlan
	life    *life
	id      string
	since   time.Time
	volume  string
	logName string
	in      *os.File // what it reads
	stop    chan struct{}
	fed     chan struct{} // closed when all lines are given
	feeding sync.WaitGroup
}

// runContainer runs a container to its end, or leaves one running that ends with
// the pod; then the caller closes it. If it cannot be started, another is, as a
// kubelet does.
func (l *life) runContainer(ctx context.Context, p containerPlan) (*container, error) {
	for attempt := uint32(0); ; attempt++ {
		k := &container{containerPlan: p, life: l, stop: make(chan struct{}), fed: make(chan struct{})}
		err := k.start(ctx, attempt)
		if err == nil {
			if err = k.through(ctx); err == nil && p.end == byPod {
				return k, nil
			}
			k.close()
			return k, err
		}
		k.close()
		if !excused(err) || ctx.Err() != nil {
			return nil, fmt.Errorf("container %s (%s): %w", p.name, k.id, err)
		}
		if err := l.fallen(ctx); err != nil {
			return nil, err
		}
		l.c.repeated.Add(1)
	}
}

// start makes the volume, the container and its process.
func (k *container) start(ctx context.Context, attempt uint32) error {
	l := k.life
	k.since = time.Now()
	k.volume = filepath.Join(l.dir, fmt.Sprintf("%s-%d", k.name, attempt))
	k.logName = fmt.Sprintf("%s-%d.log", k.name, attempt)
	if err := k.makeVolume(); err != nil {
		return err
	}
	cfg := l.c.cri.ContainerConfig(k.name, fmt.Sprintf(script, k.code))
	cfg.Metadata.Attempt, cfg.LogPath = attempt, k.logName
	cfg.Mounts = []*runtime.Mount{{HostPath: k.volume, ContainerPath: "/vol"}}
	err := l.call(ctx, "CreateContainer", "", func(ctx context.Context) error {
		resp, err := l.c.cri.CreateContainer(ctx, &runtime.CreateContainerRequest{PodSandboxId: l.pod, Config: cfg, SandboxConfig: l.cfg}, whenReady)
		k.id = resp.GetContainerId()
		return err
	})
	if err != nil {
		return err
	}
	l.c.book.note(k.id)
	err = l.call(ctx, "StartContainer", k.id, func(ctx context.Context) error {
		_, err := l.c.cri.StartContainer(ctx, &runtime.StartContainerRequest{ContainerId: k.id}, whenReady)
		return err
	})
	if excused(err) {
		// Only the answer may be lost.
		if st, serr := k.status(ctx); serr != nil {
			return serr
		} else if st.State == runtime.ContainerState_CONTAINER_RUNNING {
			return nil
		}
	}
	return err
}

func (k *container) makeVolume() error {
	in := filepath.Join(k.volume, "in")
	if err := errors.Join(os.MkdirAll(k.volume, 0o755), unix.Mkfifo(in, 0o600)); err != nil {
		return err
	}
	for i, x := range k.execs {
		if err := os.WriteFile(fmt.Sprintf("%s/exec%d", k.volume, i), []byte(x.text), 0o600); err != nil {
			return err
		}
	}
	var err error
	// Both ways: whoever should read may be gone, and never sees its end.
	k.in, err = os.OpenFile(in, os.O_RDWR|unix.O_NONBLOCK, 0)
	return err
}

// close ends the feeding.
func (k *container) close() {
	close(k.stop)
	if k.in == nil {
		return
	}
	_ = k.in.SetWriteDeadline(time.Now()) // wakes up who writes; a FIFO has deadlines
	k.feeding.Wait()
	_ = k.in.Close() // nothing is buffered
}

// feed gives the container its lines, and then others to keep it busy.
func (k *container) feed() {
	for n := 0; ; n++ {
		line, pause := fmt.Sprintf("%d more\n", n), 50*time.Millisecond
		if n == len(k.lines) {
			close(k.fed)
		}
		if n < len(k.lines) {
			line, pause = k.lines[n], k.pause
		}
		if _, err := k.in.WriteString(line); err != nil {
			return // closed, or the container has not read for as long as that
		}
		select {
		case <-k.stop:
			return
		case <-time.After(pause):
		}
	}
}

// through goes through the plan up to the container's end, and accounts for it.
func (k *container) through(ctx context.Context) error {
	k.feeding.Go(k.feed)
	if over, err := k.awaitReady(ctx); err != nil || over {
		return errors.Join(err, k.finish(ctx))
	}
	for i, x := range k.execs {
		if over, err := k.exec(ctx, i, x); err != nil || over {
			return errors.Join(err, k.finish(ctx))
		}
	}
	if over, err := k.awaitFed(ctx); err != nil || over {
		return errors.Join(err, k.finish(ctx))
	}
	timeout := int64(30)
	switch k.end {
	case byPod:
		return nil
	case byItself:
		if _, err := k.in.WriteString("end\n"); err != nil {
			return err
		}
		return k.finish(ctx)
	case byKill:
		timeout = 0
	}
	err := k.life.repeat(ctx, "StopContainer", func(ctx context.Context) error {
		_, err := k.life.c.cri.StopContainer(ctx, &runtime.StopContainerRequest{ContainerId: k.id, Timeout: timeout}, whenReady)
		return err
	})
	if err != nil {
		return err
	}
	return k.finish(ctx)
}

// awaitReady waits until the container has written its first line: until then it may
// not have its trap yet. It is over if it has ended.
func (k *container) awaitReady(ctx context.Context) (over bool, err error) {
	err = daemon.Poll(ctx, patience, func() error {
		if info, err := os.Stat(filepath.Join(k.volume, "copy")); err == nil && info.Size() > 0 {
			return nil
		}
		st, err := k.status(ctx)
		over = st.GetState() == runtime.ContainerState_CONTAINER_EXITED
		if err == nil && !over {
			err = errors.New("the container writes nothing")
		}
		return err
	})
	return over, err
}

// awaitFed waits until the container has got all lines. It is over if it has ended.
func (k *container) awaitFed(ctx context.Context) (over bool, err error) {
	for {
		select {
		case <-k.fed:
			return false, nil
		case <-time.After(time.Second):
		}
		st, err := k.status(ctx)
		if err != nil || st.State == runtime.ContainerState_CONTAINER_EXITED {
			return true, err
		}
	}
}

// exec runs a command until it has run undisturbed. It is over if the container has
// ended.
func (k *container) exec(ctx context.Context, i int, x execPlan) (over bool, err error) {
	l := k.life
	for {
		err := l.call(ctx, "ExecSync", k.id, func(ctx context.Context) error {
			resp, err := l.c.cri.ExecSync(ctx, &runtime.ExecSyncRequest{
				ContainerId: k.id, Cmd: []string{"/bin/sh", "-c", fmt.Sprintf(execScript, i, x.code)},
			}, whenReady)
			if err == nil && (resp.ExitCode != x.code || string(resp.Stdout) != x.text || string(resp.Stderr) != "done\n") {
				err = fmt.Errorf("exit code %d, want %d; %d bytes of output, want %d; stderr %q",
					resp.ExitCode, x.code, len(resp.Stdout), len(x.text), resp.Stderr)
			}
			return err
		})
		if err == nil {
			l.c.execs.Add(1)
			return false, nil
		}
		if !excused(err) {
			return true, err
		}
		l.c.repeated.Add(1)
		st, err := k.status(ctx)
		if err != nil || st.State == runtime.ContainerState_CONTAINER_EXITED {
			return true, err
		}
	}
}

// status asks until there is an answer.
func (k *container) status(ctx context.Context) (st *runtime.ContainerStatus, err error) {
	err = k.life.repeat(ctx, "ContainerStatus", func(ctx context.Context) error {
		resp, err := k.life.c.cri.ContainerStatus(ctx, &runtime.ContainerStatusRequest{ContainerId: k.id}, whenReady)
		st = resp.GetStatus()
		return err
	})
	return st, err
}

// finish waits for the container's end and compares.
func (k *container) finish(ctx context.Context) error {
	var st *runtime.ContainerStatus
	err := daemon.Poll(ctx, patience, func() (err error) {
		if st, err = k.status(ctx); err == nil && st.State != runtime.ContainerState_CONTAINER_EXITED {
			err = fmt.Errorf("is %v", st.State)
		}
		return err
	})
	if err == nil {
		err = k.account(st)
	}
	if err != nil {
		return fmt.Errorf("container %s (%s): %s", k.name, k.id, err)
	}
	k.life.c.containers.Add(1)
	if why := k.life.c.book.killer(k.life.pod, k.id); why != "" {
		return &excusedError{why: why, err: errors.New("the container was killed")}
	}
	return nil
}
