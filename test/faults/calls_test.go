package faults

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/anypb"

	options "caisson/api/caisson/sandbox/v1"
	"caisson/test/daemon"
)

// call is one call of a life, with what it is for: it returns when its effects
// can be seen.
type call struct {
	name string
	do   func(*run, context.Context) error
	// again repeats it after a fault, when it was done, undone, or neither; do does
	// if it is nil.
	again func(*run, context.Context) error
	// kept says that the call goes through a connection that outlives the daemon: its
	// client may go on waiting, and is answered by the next one.
	kept bool
	// restart says that the call is the start of a daemon, after the last was killed.
	restart bool
	// unasked says that the daemon acts on its own, and the call only waits for it.
	unasked bool
}

var (
	callSandboxCreate   = call{name: "sandbox create", do: (*run).sandboxCreate, again: (*run).sandboxCreateAgain}
	callSandboxStart    = call{name: "sandbox start", do: (*run).sandboxStart, again: (*run).sandboxStartAgain}
	callSandboxUpdate   = call{name: "sandbox update", do: (*run).sandboxUpdate, again: (*run).sandboxUpdateAgain}
	callSandboxStop     = call{name: "sandbox stop", do: (*run).sandboxStop}
	callSandboxShutdown = call{name: "sandbox shutdown", do: (*run).sandboxShutdown, again: (*run).sandboxShutdownAgain}
	callTaskCreate      = call{name: "task create", do: (*run).taskCreate, again: (*run).taskCreateAgain, kept: true}
	callTaskStart       = call{name: "task start", do: (*run).taskStart, again: (*run).taskStartAgain, kept: true}
	callTellAll         = call{name: "task signal, all", do: (*run).tellAll, kept: true}
	callTaskPause       = call{name: "task pause", do: (*run).taskPause, kept: true}
	callTaskResume      = call{name: "task resume", do: (*run).taskResume, again: (*run).taskResumeAgain, kept: true}
	callTaskUpdate      = call{name: "task update", do: (*run).taskUpdate, kept: true}
	callCheckpoint      = call{name: "task checkpoint", do: (*run).checkpoint, again: (*run).checkpointAgain, kept: true}
	callCheckpointFails = call{name: "task checkpoint, in vain", do: (*run).checkpointInVain, kept: true}
	callTaskDelete      = call{name: "task delete", do: (*run).taskDelete, again: (*run).taskDeleteAgain, kept: true}
	callExecAdd         = call{name: "exec", do: (*run).execAdd, again: (*run).execAddAgain, kept: true}
	callExecRun         = call{name: "exec start", do: (*run).execRun, again: (*run).execRunAgain, kept: true}
	callEndpoint        = call{name: "shim start", do: (*run).endpoint}
	callCreateAlone     = call{name: "task create", do: (*run).taskCreate, again: (*run).createAloneAgain}
	callRelease         = call{name: "task shutdown", do: (*run).release, again: (*run).releaseAgain}
	callShimDelete      = call{name: "shim delete", do: (*run).shimDelete}
	callCreateInVain    = call{name: "task create, in vain", do: (*run).createInVain, again: (*run).createInVainAgain}
	callHolderDies      = call{name: "holder's death", do: (*run).holderDies, unasked: true}
	callRestart         = call{name: "daemon start", do: (*run).restart, restart: true}
	callSandboxGone     = call{name: "sandbox gone", do: (*run).sandboxGone}
	callTaskGone        = call{name: "task gone", do: (*run).taskGone}
	callEnded           = call{name: "task wait", do: (*run).await}
)

func (r *run) sandboxCreate(ctx context.Context) error {
	return r.controller().Create(r.in(ctx), r.record(), sandbox.WithOptions(r.opts), sandbox.WithRootFS(mount.FromProto(r.mounts())))
}

func (r *run) sandboxCreateAgain(ctx context.Context) error {
	err := r.sandboxCreate(ctx)
	if errdefs.IsAlreadyExists(err) && r.kills > 0 {
		_, err = r.controller().Status(r.in(ctx), r.id, false)
	}
	return err
}

func (r *run) sandboxStart(ctx context.Context) error {
	inst, err := r.controller().Start(r.in(ctx), r.id)
	r.address = inst.Address
	return err
}

// A start that fails leaves nothing, since clients give up on the sandbox.
func (r *run) sandboxStartAgain(ctx context.Context) error {
	err := r.sandboxStart(ctx)
	if errdefs.IsNotFound(err) {
		if err = r.sandboxCreate(ctx); err == nil {
			err = r.sandboxStart(ctx)
		}
	}
	if !errdefs.IsFailedPrecondition(err) {
		return err
	}
	st, serr := r.controller().Status(r.in(ctx), r.id, false)
	if r.address = st.Address; serr != nil || st.State != "SANDBOX_READY" {
		return fmt.Errorf("%w; it is %q (%w)", err, st.State, serr)
	}
	return nil
}

func (r *run) sandboxUpdate(ctx context.Context) error {
	rec := r.record()
	rec.Labels = map[string]string{"changed": "yes"}
	if err := rec.AddExtension("caisson.sandbox.v1.Options", &options.Options{Resources: &options.Resources{PidsLimit: 77}}); err != nil {
		return err
	}
	return r.controller().Update(r.in(ctx), r.id, rec, "labels", "extensions")
}

func (r *run) sandboxUpdateAgain(ctx context.Context) error {
	if err := r.sandboxUpdate(ctx); err != nil {
		return err
	}
	rec, err := r.store().Get(r.in(ctx), r.id)
	if err == nil && rec.Labels["changed"] != "yes" {
		err = fmt.Errorf("labels %q after the update", rec.Labels)
	}
	return errors.Join(err, r.limitIs("pids.max", "77"))
}

func (r *run) sandboxStop(ctx context.Context) error {
	if err := r.controller().Stop(r.in(ctx), r.id, sandbox.WithTimeout(5*time.Second)); err != nil {
		return err
	}
	if exit, err := r.controller().Wait(r.in(ctx), r.id); err != nil || exit.ExitStatus != 0 {
		return fmt.Errorf("wait: status %d: %w", exit.ExitStatus, err)
	}
	return nil
}

func (r *run) sandboxShutdown(ctx context.Context) error {
	return r.controller().Shutdown(r.in(ctx), r.id)
}

func (r *run) sandboxShutdownAgain(ctx context.Context) error {
	if err := r.controller().Shutdown(r.in(ctx), r.id); !errdefs.IsNotFound(err) {
		return err
	}
	return nil
}

func (r *run) taskCreate(ctx context.Context) error {
	if err := r.prepare(ctx); err != nil {
		return err
	}
	err := r.task(func(c taskapi.TTRPCTaskService, id, _ string) error {
		_, err := c.Create(r.in(ctx), &taskapi.CreateTaskRequest{
			ID: id, Bundle: r.path("bundle"), Rootfs: r.mounts(), Stdout: r.stdout(), Terminal: r.tty, Options: r.runtime,
		})
		return err
	})
	if err != nil {
		return err
	}
	return r.events.await(ctx, r.id, "create")
}

func (r *run) taskCreateAgain(ctx context.Context) error {
	err := r.taskCreate(ctx)
	if !errdefs.IsAlreadyExists(err) {
		return err
	}
	if r.kills == 0 && r.is(ctx, err, tasktypes.Status_STOPPED) == nil { // It could not be taken back.
		return errors.Join(r.forget(ctx), r.taskCreate(ctx))
	}
	// The daemon may be about to do what the last one was asked for, and to take it back
	// then: who asked is gone.
	return poll(ctx, func() error {
		err := r.is(ctx, err, tasktypes.Status_CREATED)
		if errdefs.IsNotFound(err) {
			return r.taskCreate(ctx)
		}
		if err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		return r.events.await(ctx, r.id, "create")
	})
}

// startOnly starts a container or exec and waits for nothing.
func (r *run) startOnly(ctx context.Context) error {
	return r.task(func(c taskapi.TTRPCTaskService, id, execID string) error {
		_, err := c.Start(r.in(ctx), &taskapi.StartRequest{ID: id, ExecID: execID})
		return err
	})
}

func (r *run) taskStart(ctx context.Context) error {
	if err := r.startOnly(ctx); err != nil {
		return err
	}
	return r.awaitOutput(ctx, r.begun(), false)
}

func (r *run) taskStartAgain(ctx context.Context) error {
	err := r.taskStart(ctx)
	if errdefs.IsFailedPrecondition(err) {
		err = errors.Join(r.is(ctx, err, tasktypes.Status_RUNNING), r.awaitOutput(ctx, r.begun(), false))
	}
	return err
}

// kill sends a signal and waits for the end that it means.
func kill(name string, signal unix.Signal, all bool) call {
	do := func(r *run, ctx context.Context) error {
		err := r.task(func(c taskapi.TTRPCTaskService, id, execID string) error {
			_, err := c.Kill(r.in(ctx), &taskapi.KillRequest{ID: id, ExecID: execID, Signal: uint32(signal), All: all})
			return err
		})
		if err != nil {
			return err
		}
		return r.await(ctx)
	}
	return call{name: name, do: do, kept: true, again: func(r *run, ctx context.Context) error {
		err := do(r, ctx)
		if errdefs.IsNotFound(err) {
			err = r.await(ctx) // it has ended, and how must be known
		}
		return err
	}}
}

// tellAll sends a signal of which none of the container's processes ends.
func (r *run) tellAll(ctx context.Context) error {
	return r.task(func(c taskapi.TTRPCTaskService, id, _ string) error {
		_, err := c.Kill(r.in(ctx), &taskapi.KillRequest{ID: id, Signal: uint32(unix.SIGUSR1), All: true})
		return err
	})
}

func (r *run) taskPause(ctx context.Context) error {
	err := r.task(func(c taskapi.TTRPCTaskService, id, _ string) error {
		_, err := c.Pause(r.in(ctx), &taskapi.PauseRequest{ID: id})
		return err
	})
	if err != nil {
		return err
	}
	return errors.Join(r.is(ctx, errors.New("it was paused"), tasktypes.Status_PAUSED), r.events.await(ctx, r.id, "paused"))
}

func (r *run) taskResume(ctx context.Context) error {
	err := r.task(func(c taskapi.TTRPCTaskService, id, _ string) error {
		_, err := c.Resume(r.in(ctx), &taskapi.ResumeRequest{ID: id})
		return err
	})
	if err != nil {
		return err
	}
	return r.resumed(ctx, errors.New("it was resumed"))
}

func (r *run) resumed(ctx context.Context, told error) error {
	return errors.Join(r.is(ctx, told, tasktypes.Status_RUNNING), r.events.await(ctx, r.id, "resumed"))
}

func (r *run) taskResumeAgain(ctx context.Context) error {
	err := r.taskResume(ctx)
	if errdefs.IsFailedPrecondition(err) {
		err = r.resumed(ctx, err)
	}
	return err
}

// taskUpdate limits the container's processes, and looks at its cgroup.
func (r *run) taskUpdate(ctx context.Context) error {
	limit := int64(66)
	data, err := json.Marshal(specs.LinuxResources{Pids: &specs.LinuxPids{Limit: &limit}})
	if err != nil {
		return err
	}
	err = r.task(func(c taskapi.TTRPCTaskService, id, _ string) error {
		_, err := c.Update(r.in(ctx), &taskapi.UpdateTaskRequest{ID: id, Resources: &anypb.Any{Value: data}})
		return err
	})
	if err != nil {
		return err
	}
	return r.containerLimitIs("pids.max", "66")
}

func (r *run) checkpointOnly(ctx context.Context) error {
	return r.task(func(c taskapi.TTRPCTaskService, id, _ string) error {
		_, err := c.Checkpoint(r.in(ctx), &taskapi.CheckpointTaskRequest{ID: id, Path: r.path("image")})
		return err
	})
}

// checkpoint asks for an image in a directory that is not there.
func (r *run) checkpoint(ctx context.Context) error {
	if err := r.checkpointOnly(ctx); err != nil {
		return err
	}
	if whole, err := r.image(); !whole || err != nil {
		return errors.Join(errors.New("there is no image"), err)
	}
	return r.events.await(ctx, r.id, "checkpointed")
}

// checkpointAgain is content with an image that is there, and with nothing less.
func (r *run) checkpointAgain(ctx context.Context) error {
	whole, err := r.image()
	if err != nil {
		return err
	}
	if whole {
		return r.events.await(ctx, r.id, "checkpointed")
	}
	return r.checkpoint(ctx)
}

// image tells whether there is one; half of one is an error.
func (r *run) image() (whole bool, err error) {
	files, err := os.ReadDir(r.path("image"))
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err == nil && len(files) != imageFiles {
		err = fmt.Errorf("half an image: %q", files)
	}
	return true, err
}

// checkpointInVain asks for an image, which cannot be made, in a directory that is there.
func (r *run) checkpointInVain(ctx context.Context) error {
	if err := os.MkdirAll(r.path("image"), 0o700); err != nil {
		return err
	}
	if err := r.checkpointOnly(ctx); err == nil || !strings.Contains(err.Error(), noImage) {
		return fmt.Errorf("a checkpoint that cannot be made: %w", err)
	}
	files, err := os.ReadDir(r.path("image"))
	if err == nil && len(files) > 0 {
		err = fmt.Errorf("left of a checkpoint: %q", files)
	}
	return err
}

func (r *run) taskDelete(ctx context.Context) error {
	err := r.task(func(c taskapi.TTRPCTaskService, id, execID string) error {
		resp, err := c.Delete(r.in(ctx), &taskapi.DeleteRequest{ID: id, ExecID: execID})
		if err == nil && resp.ExitStatus != r.status {
			err = fmt.Errorf("deleted with exit status %d, want %d", resp.ExitStatus, r.status)
		}
		return err
	})
	if err != nil || r.within != "" {
		return err
	}
	return r.events.await(ctx, r.id, fmt.Sprintf("delete %d", r.status))
}

func (r *run) taskDeleteAgain(ctx context.Context) error {
	err := r.taskDelete(ctx)
	if errdefs.IsNotFound(err) {
		err = nil
	}
	return err
}

func (r *run) execAdd(ctx context.Context) (err error) {
	if r.fifos && r.out == nil {
		if r.out, err = newOutput(r.path("out")); err != nil {
			return err
		}
	}
	spec, err := marshalProcess(r.script, r.tty)
	if err != nil {
		return err
	}
	return r.task(func(c taskapi.TTRPCTaskService, id, execID string) error {
		_, err := c.Exec(r.in(ctx), &taskapi.ExecProcessRequest{ID: id, ExecID: execID, Spec: spec, Stdout: r.stdout(), Terminal: r.tty})
		return err
	})
}

func (r *run) execAddAgain(ctx context.Context) error {
	err := r.execAdd(ctx)
	if errdefs.IsAlreadyExists(err) {
		err = r.is(ctx, err, tasktypes.Status_CREATED)
	}
	return err
}

// execRun starts an exec that ends by itself.
func (r *run) execRun(ctx context.Context) error {
	if err := r.startOnly(ctx); err != nil {
		return err
	}
	return r.await(ctx)
}

func (r *run) execRunAgain(ctx context.Context) error {
	err := r.execRun(ctx)
	if !errdefs.IsFailedPrecondition(err) {
		return err
	}
	// It runs, it has ended, or an error has ended it, as the end of its client can be
	// when the next daemon makes the call again: then there can be another one.
	st, serr := r.state(ctx)
	if serr != nil {
		return serr
	}
	if st.Status != tasktypes.Status_STOPPED || st.Pid != 0 {
		return r.await(ctx)
	}
	derr := r.forget(ctx)
	if derr == nil {
		derr = r.execAdd(ctx)
	}
	if derr != nil {
		return derr
	}
	return r.execRun(ctx)
}

// monitorPid is the sandbox's monitor.
func (r *run) monitorPid(ctx context.Context) (pid uint32, err error) {
	err = r.task(func(c taskapi.TTRPCTaskService, id, _ string) error {
		resp, err := c.Connect(r.in(ctx), &taskapi.ConnectRequest{ID: id})
		pid = resp.GetShimPid()
		return err
	})
	return pid, err
}

// endpoint is what containerd asks for before it creates a container without a
// sandbox.
func (r *run) endpoint(ctx context.Context) error {
	if err := r.prepare(ctx); err != nil {
		return err
	}
	out, err := r.shim(ctx, r.id, r.path("bundle"), "start")
	if err != nil {
		return err
	}
	var reply struct{ Address string }
	if err := json.Unmarshal([]byte(out), &reply); err != nil {
		return fmt.Errorf("%q: %w", out, err)
	}
	r.address = reply.Address
	return nil
}

// createAlone is taskCreate at an endpoint, which an unfinished creation takes
// away with it.
func (r *run) createAloneAgain(ctx context.Context) error {
	err := r.taskCreateAgain(ctx)
	if op := (*net.OpError)(nil); errors.As(err, &op) {
		if err = r.endpoint(ctx); err == nil {
			err = r.taskCreate(ctx)
		}
	}
	return err
}

// release is how containerd lets a shim go, and shimDelete what it asks for after
// that.
func (r *run) release(ctx context.Context) error {
	return r.task(func(c taskapi.TTRPCTaskService, id, _ string) error {
		_, err := c.Shutdown(r.in(ctx), &taskapi.ShutdownRequest{ID: id})
		if err != nil && strings.Contains(err.Error(), "closed") {
			err = nil // with the endpoint
		}
		return err
	})
}

func (r *run) releaseAgain(ctx context.Context) error {
	err := r.release(ctx)
	if op := (*net.OpError)(nil); errors.As(err, &op) {
		err = nil
	}
	return err
}

func (r *run) shimDelete(ctx context.Context) error {
	_, err := r.shim(ctx, r.id, r.path("bundle"), "delete")
	return err
}

// giveUp is a call after which the client goes away if it failed.
func giveUp(c call) call {
	return call{name: c.name, do: c.do, again: func(*run, context.Context) error { return nil }}
}

// sandboxGone looks for a sandbox whose client has given up. A client that was
// told of an error never asks again.
func (r *run) sandboxGone(ctx context.Context) error {
	if r.told == nil || r.kills > 0 {
		return r.sandboxShutdownAgain(ctx)
	}
	return poll(ctx, func() error {
		if _, err := r.controller().Status(r.in(ctx), r.id, false); !errdefs.IsNotFound(err) {
			return fmt.Errorf("it is still there (%w), and the client was told: %w", err, r.told)
		}
		return nil
	})
}

// taskGone is the same for a container, which can be left for Delete.
func (r *run) taskGone(ctx context.Context) error {
	if err := r.forget(ctx); !errdefs.IsNotFound(err) {
		return err
	}
	return nil
}

// createInVain asks for a container whose program does not exist.
func (r *run) createInVain(ctx context.Context) error {
	if err := r.taskCreate(ctx); !errdefs.IsNotFound(err) {
		return fmt.Errorf("created without a program: %w", err)
	}
	if err := r.forget(ctx); !errdefs.IsNotFound(err) {
		return err // It could not be taken back.
	}
	return nil
}

// createInVainAgain forgets first what could not be taken back. A new daemon may still
// be about the request that the last one left.
func (r *run) createInVainAgain(ctx context.Context) error {
	var err error
	_ = daemon.Poll(ctx, 20*time.Second, func() error { // err has it
		if err = r.createInVain(ctx); errdefs.IsAlreadyExists(err) && r.kills > 0 {
			return err
		}
		return nil
	})
	if errdefs.IsAlreadyExists(err) && r.kills == 0 && r.is(ctx, err, tasktypes.Status_STOPPED) == nil {
		err = errors.Join(r.forget(ctx), r.createInVain(ctx))
	}
	return err
}

// forget deletes a container or exec, however it ended.
func (r *run) forget(ctx context.Context) error {
	return r.task(func(c taskapi.TTRPCTaskService, id, execID string) error {
		_, err := c.Delete(r.in(ctx), &taskapi.DeleteRequest{ID: id, ExecID: execID})
		return err
	})
}

// holderDies ends a sandbox behind the daemon's back.
// holderDies may be repeated: a daemon that was killed over something else, such as the
// acknowledgement of an earlier exit, has not told of the holder yet.
func (r *run) holderDies(ctx context.Context) error {
	st, err := r.controller().Status(r.in(ctx), r.id, false)
	if err != nil {
		return err
	}
	if st.State == "SANDBOX_READY" {
		if err := unix.Kill(int(st.Pid), unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
			return err
		}
	}
	if exit, err := r.controller().Wait(r.in(ctx), r.id); err != nil || exit.ExitStatus != 137 {
		return fmt.Errorf("wait: status %d: %w", exit.ExitStatus, err)
	}
	if r.script == "" {
		return nil
	}
	return r.await(ctx)
}

func (r *run) restart(ctx context.Context) error {
	if err := r.Kill(); err != nil {
		return err
	}
	return r.start(ctx)
}

// crash makes a call in which the daemon is killed at a point, and starts no other.
func crash(c call, point string) call {
	return call{name: c.name + ", killed", do: func(r *run, ctx context.Context) error {
		if err := errors.Join(r.calm(ctx), r.order(point, 1, "kill")); err != nil {
			return err
		}
		r.kills++
		exited := r.Exited()
		cctx, cancel := context.WithCancel(ctx)
		defer cancel()
		defer cancelWhen(exited, cancel)()
		told := c.do(r, cctx)
		if !r.done() {
			return fmt.Errorf("%w: %s; the call returned: %v", errNotReached, point, told)
		}
		<-exited
		_, err := r.relieve()
		return errors.Join(err, r.Kill())
	}}
}

// unseen lets the container end while there is no daemon.
var unseen = call{name: "end of a container", do: func(r *run, ctx context.Context) error {
	st, err := r.state(ctx)
	if err != nil {
		return err
	}
	r.kills++
	if err := r.Kill(); err != nil {
		return err
	}
	if err := unix.Kill(int(st.Pid), unix.SIGTERM); err != nil {
		return err
	}
	return r.awaitOutput(ctx, r.printed, false)
}}

// upgraded takes away what a daemon installs once.
var upgraded = call{name: "upgrade", do: func(r *run, _ context.Context) error {
	r.kills++
	return errors.Join(r.Kill(), os.RemoveAll(filepath.Join(r.Root, "libexec")), os.Remove(filepath.Join(r.State, "events/journal")))
}}
