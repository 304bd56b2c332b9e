package faults

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/types"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/containerd/v2/pkg/oci"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/types/known/anypb"

	options "caisson/api/caisson/sandbox/v1"
)

// run is one life being lived: a sandbox, and a container or an exec.
type run struct {
	*world
	id      string // of the sandbox and of the container or exec
	opts    *options.Options
	within  string // the container of an exec
	script  string // of the container or exec
	program string // runs it; /bin/sh if empty
	printed string // by it, in the end
	status  uint32 // it ends with
	address string // of the Task API
	fifos   bool   // and not files
	tty     bool
	runtime *anypb.Any // options that name an OCI runtime; the daemon's if nil
	out     *output
	want    []string // events; the usual ones if nil
	untold  bool     // any events will do
	kills   int      // how often the daemon was killed
	told    error    // what the call with the fault returned
}

// begin is what every script prints first, from where on a signal reaches it.
const begin = "begin\n"

// begun is that, as it comes out.
func (r *run) begun() string {
	if r.tty {
		return "begin\r\n"
	}
	return begin
}

// untilTerm ends with 7 when it is told to.
const untilTerm = `trap 'echo end; exit 7' TERM; echo begin; sleep 1000 & wait $!`

func (r *run) path(name string) string { return filepath.Join(r.Dir, r.id+"."+name) }

func (r *run) record() sandbox.Sandbox {
	return sandbox.Sandbox{ID: r.id, Sandboxer: "caisson", Runtime: sandbox.RuntimeOpts{Name: "io.containerd.caisson.v2"}}
}

func (r *run) mounts() []*types.Mount {
	return []*types.Mount{{Type: "bind", Source: r.rootfs, Options: []string{"rbind", "ro"}}}
}

// prepare makes what a client makes before it asks for a container: the bundle
// and its end of the output.
func (r *run) prepare(ctx context.Context) (err error) {
	args := oci.WithProcessArgs(cmp.Or(r.program, "/bin/sh"), "-c", r.script)
	spec, err := oci.GenerateSpec(r.in(ctx), nil, &containers.Container{ID: r.id}, args, oci.WithEnv([]string{"PATH=/bin"}), tty(r.tty))
	if err != nil {
		return err
	}
	spec.Root = &specs.Root{Path: "rootfs", Readonly: true}
	data, err := json.Marshal(spec)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(r.path("bundle"), 0o711); err != nil {
		return err
	}
	if err := os.WriteFile(r.path("bundle")+"/config.json", data, 0o600); err != nil {
		return err
	}
	if r.fifos && r.out == nil {
		r.out, err = newOutput(r.path("out"))
	}
	return err
}

func tty(on bool) oci.SpecOpts {
	return func(_ context.Context, _ oci.Client, _ *containers.Container, s *oci.Spec) error {
		s.Process.Terminal = on
		return nil
	}
}

// stdout is where the output goes.
func (r *run) stdout() string {
	if r.fifos {
		return r.path("out")
	}
	return "file://" + r.path("out")
}

// awaitOutput waits for what was printed.
func (r *run) awaitOutput(ctx context.Context, want string, end bool) error {
	if r.out != nil {
		return r.out.await(ctx, want, end)
	}
	return poll(ctx, func() error {
		got, err := os.ReadFile(r.path("out"))
		if err == nil && string(got) != want {
			err = fmt.Errorf("output %q, want %q", got, want)
		}
		return err
	})
}

// clear removes what prepare made.
func (r *run) clear() error {
	var err error
	if r.out != nil {
		err = r.out.close()
	}
	return errors.Join(err, os.RemoveAll(r.path("bundle")), os.RemoveAll(r.path("image")), ignoreMissing(os.Remove(r.path("out"))))
}

func ignoreMissing(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// task calls the Task API for the container, or for the exec in it.
func (r *run) task(call func(taskapi.TTRPCTaskService, string, string) error) error {
	return tasks(r.address, func(c taskapi.TTRPCTaskService) error {
		if r.within != "" {
			return call(c, r.within, r.id)
		}
		return call(c, r.id, "")
	})
}

// state of the container or exec.
func (r *run) state(ctx context.Context) (resp *taskapi.StateResponse, err error) {
	err = r.task(func(c taskapi.TTRPCTaskService, id, execID string) (err error) {
		resp, err = c.State(r.in(ctx), &taskapi.StateRequest{ID: id, ExecID: execID})
		return err
	})
	return resp, err
}

// is fails unless the container or exec is in one of the states, and so settles
// what a repeated call was told.
func (r *run) is(ctx context.Context, told error, states ...tasktypes.Status) error {
	st, err := r.state(ctx)
	if err != nil {
		return errors.Join(told, err)
	}
	for _, s := range states {
		if st.Status == s {
			return nil
		}
	}
	return fmt.Errorf("it is %s: %w", st.Status, told)
}

// await waits for the end of the container or exec, and for what is told of it.
func (r *run) await(ctx context.Context) error {
	err := r.task(func(c taskapi.TTRPCTaskService, id, execID string) error {
		resp, err := c.Wait(r.in(ctx), &taskapi.WaitRequest{ID: id, ExecID: execID})
		if err == nil && resp.ExitStatus != r.status {
			err = fmt.Errorf("exit status %d, want %d", resp.ExitStatus, r.status)
		}
		return err
	})
	if err != nil {
		return err
	}
	if err := r.awaitOutput(ctx, r.printed, true); err != nil {
		return err
	}
	return r.events.await(ctx, r.id, fmt.Sprintf("exit %d", r.status))
}

func poll(ctx context.Context, f func() error) error {
	return pollFor(ctx, 10*time.Second, f)
}

func marshalProcess(script string, tty bool) (*anypb.Any, error) {
	data, err := json.Marshal(specs.Process{
		Args: []string{"/bin/sh", "-c", script}, Env: []string{"PATH=/bin"}, Cwd: "/", Terminal: tty,
	})
	return &anypb.Any{TypeUrl: "types.containerd.io/opencontainers/runtime-spec/1/Process", Value: data}, err
}
