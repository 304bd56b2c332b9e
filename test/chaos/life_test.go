package chaos

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"google.golang.org/grpc"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"caisson/test/daemon"
	"caisson/test/harness"
)

// whenReady is for calls that wait while nobody listens, and do not fail at once.
var whenReady = grpc.WaitForReady(true)

// label names the worker's pod in CRI.
const label = "chaos"

// life is one pod of a worker.
type life struct {
	plan
	c    *chaos
	cfg  *runtime.PodSandboxConfig
	pod  string // its ID
	dir  string // of the volumes
	logs string
}

// live takes a pod from nothing to nothing. What fails because of a disturbance is
// done again, as a kubelet does, or ends the pod early; that it can be removed is
// certain.
func (c *chaos) live(p plan) {
	l := &life{plan: p, c: c, dir: filepath.Join(c.h.Dir, "volumes", p.name), logs: filepath.Join(c.h.Dir, "logs", p.name)}
	l.cfg = &runtime.PodSandboxConfig{
		Metadata:     &runtime.PodSandboxMetadata{Name: p.name, Uid: p.name, Namespace: "chaos"},
		LogDirectory: l.logs,
		Labels:       map[string]string{label: p.name},
		Linux: &runtime.LinuxPodSandboxConfig{
			CgroupParent: c.cgroup(p.worker),
			SecurityContext: &runtime.LinuxSandboxSecurityContext{
				NamespaceOptions: &runtime.NamespaceOption{Network: p.network, Pid: runtime.NamespaceMode_CONTAINER},
			},
		},
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
	defer cancel()
	err := l.through(ctx)
	c.book.trace.Printf("%s (%s): %v", p.name, l.pod, err)
	switch {
	case err == nil:
		c.undisturbed.Add(1)
	case !excused(err):
		c.t.Errorf("pod %s (%s): %v", p.name, l.pod, err)
	}
	last, cancelLast := context.WithTimeout(context.Background(), patience)
	defer cancelLast()
	if rerr := l.repeat(last, "remove", func(ctx context.Context) error { return l.removePods(ctx) }); rerr != nil {
		c.t.Errorf("pod %s (%s) cannot be removed after %v: %v", p.name, l.pod, err, rerr)
		return
	}
	c.pods.Add(1)
	if err := errors.Join(os.RemoveAll(l.dir), os.RemoveAll(l.logs)); err != nil {
		c.t.Error(err)
	}
}

func (l *life) through(ctx context.Context) error {
	if err := l.runPod(ctx); err != nil {
		return err
	}
	var stays *container
	for _, p := range l.containers {
		k, err := l.runContainer(ctx, p)
		if err != nil {
			return err
		}
		if p.end == byPod {
			stays = k
		}
	}
	if stays == nil {
		return nil
	}
	defer stays.close()
	err := l.repeat(ctx, "StopPodSandbox", func(ctx context.Context) error {
		_, err := l.c.cri.StopPodSandbox(ctx, &runtime.StopPodSandboxRequest{PodSandboxId: l.pod}, whenReady)
		return err
	})
	if err != nil {
		return err
	}
	return stays.finish(ctx)
}

// call makes one call. Its error is an excusedError if something in the book is the
// reason.
func (l *life) call(ctx context.Context, what, containerID string, f func(context.Context) error) error {
	from := time.Now()
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	err := f(ctx)
	if err == nil && what != "ContainerStatus" { // that is asked all the time
		l.c.answers.Add(1)
	}
	if err == nil || excused(err) {
		return err
	}
	err = fmt.Errorf("%s after %s: %w", what, time.Since(from).Round(time.Millisecond), err)
	l.c.book.trace.Printf("%s: %v", l.name, err)
	if why := l.c.book.excuse(from, l.pod, containerID); why != "" {
		return &excusedError{why: why, err: err}
	}
	return err
}

// repeat makes a call until it is answered, or fails without an excuse.
func (l *life) repeat(ctx context.Context, what string, f func(context.Context) error) error {
	var fatal error
	err := daemon.Poll(ctx, patience, func() error {
		err := l.call(ctx, what, "", f)
		if err != nil && !excused(err) {
			fatal = err
			return nil
		}
		if err != nil {
			l.c.repeated.Add(1)
		}
		return err
	})
	if err != nil { // for as long as that, there is no excuse
		return fmt.Errorf("does not succeed: %s", err)
	}
	return fatal
}

// runPod runs the sandbox. One whose start was not answered may be there all the
// same: it is removed, and the next has another number.
func (l *life) runPod(ctx context.Context) error {
	return l.repeat(ctx, "run", func(ctx context.Context) error {
		if l.cfg.Metadata.Attempt > 0 {
			if err := l.removePods(ctx); err != nil {
				return err
			}
		}
		resp, err := l.c.cri.RunPodSandbox(ctx, &runtime.RunPodSandboxRequest{Config: l.cfg, RuntimeHandler: harness.Handler}, whenReady)
		l.cfg.Metadata.Attempt++
		if err != nil {
			return fmt.Errorf("RunPodSandbox: %w", err)
		}
		l.pod = resp.PodSandboxId
		l.c.book.note(l.pod)
		return nil
	})
}

// removePods removes all that CRI has under the plan's name.
func (l *life) removePods(ctx context.Context) error {
	cri := l.c.cri
	resp, err := cri.ListPodSandbox(ctx, &runtime.ListPodSandboxRequest{
		Filter: &runtime.PodSandboxFilter{LabelSelector: map[string]string{label: l.name}},
	}, whenReady)
	if err != nil {
		return fmt.Errorf("ListPodSandbox: %w", err)
	}
	for _, pod := range resp.Items {
		if _, err := cri.StopPodSandbox(ctx, &runtime.StopPodSandboxRequest{PodSandboxId: pod.Id}, whenReady); err != nil {
			return fmt.Errorf("StopPodSandbox %s: %w", pod.Id, err)
		}
		if _, err := cri.RemovePodSandbox(ctx, &runtime.RemovePodSandboxRequest{PodSandboxId: pod.Id}, whenReady); err != nil {
			return fmt.Errorf("RemovePodSandbox %s: %w", pod.Id, err)
		}
	}
	return nil
}

// fallen is an excusedError if the pod was ended on purpose, and another error if it
// has ended all the same.
func (l *life) fallen(ctx context.Context) error {
	var state runtime.PodSandboxState
	err := l.repeat(ctx, "PodSandboxStatus", func(ctx context.Context) error {
		resp, err := l.c.cri.PodSandboxStatus(ctx, &runtime.PodSandboxStatusRequest{PodSandboxId: l.pod}, whenReady)
		state = resp.GetStatus().GetState()
		return err
	})
	if err != nil || state == runtime.PodSandboxState_SANDBOX_READY {
		return err
	}
	err = fmt.Errorf("the pod is %v", state)
	if why := l.c.book.killer(l.pod, ""); why != "" {
		return &excusedError{why: why, err: err}
	}
	return err
}
