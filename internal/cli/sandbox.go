package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	sandboxsapi "github.com/containerd/containerd/api/services/sandbox/v1"
	"github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/containerd/v2/plugins"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/spf13/cobra"

	sandboxapi "caisson/api/caisson/sandbox/v1"
	"caisson/internal/undo"
)

func (a *app) sandboxCommand() *cobra.Command {
	return group("sandbox", "Make, run and inspect sandboxes",
		"  caisson sandbox create pod1\n  caisson sandbox start pod1\n  caisson sandbox ls",
		a.sandboxApplyCommand(), a.sandboxCreateCommand(), a.sandboxStartCommand(), a.sandboxStopCommand(), a.sandboxRemoveCommand(),
		a.sandboxListCommand(), a.sandboxInspectCommand(), a.sandboxWaitCommand(),
		a.sandboxMetricsCommand(), a.sandboxUpdateCommand())
}

// States of a sandbox as the controller reports them.
const (
	stateReady    = "ready"
	stateNotReady = "notready"
	stateUnknown  = "unknown"
)

// sandboxState shortens a controller's state: SANDBOX_READY is "ready".
func sandboxState(s string) string {
	s = strings.ToLower(strings.TrimPrefix(s, "SANDBOX_"))
	if s == "" {
		return stateUnknown
	}
	return s
}

func (c *client) controller() sandbox.Controller { return c.SandboxController(sandboxer) }

// newSandbox is what a sandbox is made from.
type newSandbox struct {
	id          string
	runtime     string
	labels      map[string]string
	annotations map[string]string
	options     *sandboxapi.Options
}

// createSandbox writes the record and creates the sandbox; if the controller
// refuses, the record is taken back.
func (c *client) createSandbox(ctx context.Context, n newSandbox) (err error) {
	var steps undo.Stack
	defer func() {
		if err != nil {
			err = joinUndo(err, steps.Run(ctx))
		}
	}()
	now := time.Now().UTC()
	record := sandbox.Sandbox{
		ID:        n.id,
		Labels:    n.labels,
		Sandboxer: sandboxer,
		CreatedAt: now,
		UpdatedAt: now,
		Runtime:   sandbox.RuntimeOpts{Name: n.runtime},
	}
	record, err = c.SandboxStore().Create(ctx, record)
	if errdefs.IsAlreadyExists(err) {
		return advise(err, "sandbox %q exists already: remove it first with `caisson sandbox rm %s`, or choose another name", n.id, n.id)
	}
	if err != nil {
		return fmt.Errorf("sandbox %q: write record: %w", n.id, err)
	}
	steps.Add("record of sandbox", func(ctx context.Context) error { return ignoreNotFound(c.SandboxStore().Delete(ctx, n.id)) })

	// A controller undoes its own failed Create, but a call that was cut off on
	// the way back may have succeeded: Shutdown makes sure.
	steps.Add("sandbox", func(ctx context.Context) error { return ignoreNotFound(c.controller().Shutdown(ctx, n.id)) })
	err = c.controller().Create(ctx, record, sandbox.WithOptions(n.options), sandbox.WithAnnotations(n.annotations))
	if errdefs.IsAlreadyExists(err) {
		// Somebody else's sandbox without a record: not ours to shut down.
		steps = undo.Stack{}
		steps.Add("record of sandbox", func(ctx context.Context) error { return ignoreNotFound(c.SandboxStore().Delete(ctx, n.id)) })
	}
	if errdefs.IsNotFound(err) && !c.hasSandboxer(ctx) {
		return advise(err, "the daemon at %s has no sandboxer %q: start `caissond`, or add [proxy_plugins.%s] to containerd's configuration", c.app.address, sandboxer, sandboxer)
	}
	if err != nil {
		return fmt.Errorf("sandbox %q: create: %w", n.id, err)
	}
	return nil
}

// hasSandboxer tells a daemon without the sandboxer from one whose sandboxer did
// not find something; when in doubt it has one.
func (c *client) hasSandboxer(ctx context.Context) bool {
	found, err := c.IntrospectionService().Plugins(ctx, "type=="+plugins.SandboxControllerPlugin.String()+",id=="+sandboxer)
	return err != nil || len(found.GetPlugins()) > 0
}

// startSandbox starts a sandbox. The controller's failed Start may have undone
// its Create, so the caller removes what it made.
func (c *client) startSandbox(ctx context.Context, id string) error {
	if _, err := c.controller().Start(ctx, id); err != nil {
		return fmt.Errorf("sandbox %q: start: %w", id, err)
	}
	return nil
}

// removeSandbox stops and shuts a sandbox down and forgets it. Every step may be
// repeated; the record goes last, so that a failure can be tried again.
func (c *client) removeSandbox(ctx context.Context, id string, opts ...sandbox.StopOpt) error {
	if err := c.controller().Stop(ctx, id, opts...); ignoreNotFound(err) != nil {
		return fmt.Errorf("sandbox %q: stop: %w", id, err)
	}
	if err := c.controller().Shutdown(ctx, id); ignoreNotFound(err) != nil {
		return fmt.Errorf("sandbox %q: shut down: %w", id, err)
	}
	if err := c.SandboxStore().Delete(ctx, id); ignoreNotFound(err) != nil {
		return fmt.Errorf("sandbox %q: delete record: %w", id, err)
	}
	return nil
}

// sandboxRecord finds a sandbox of this sandboxer.
func (c *client) sandboxRecord(ctx context.Context, id string) (sandbox.Sandbox, error) {
	if err := checkID("sandbox", id); err != nil {
		return sandbox.Sandbox{}, err
	}
	record, err := c.SandboxStore().Get(ctx, id)
	switch {
	case errdefs.IsNotFound(err):
		return sandbox.Sandbox{}, advise(err, "no sandbox %q: `caisson sandbox ls` shows those there are, `caisson sandbox create %s` makes it", id, id)
	case err != nil:
		return sandbox.Sandbox{}, fmt.Errorf("sandbox %q: %w", id, err)
	case record.Sandboxer != sandboxer:
		return sandbox.Sandbox{}, advise(errdefs.ErrFailedPrecondition, "sandbox %q belongs to the sandboxer %q, not to caisson: use the client that made it", id, record.Sandboxer)
	}
	return record, nil
}

// taskEndpoint is where a running sandbox serves its tasks.
type taskEndpoint struct {
	address string
	version uint32
}

// statusInfo is what is read of the verbose status of a sandbox.
type statusInfo struct {
	Address   string `json:"address"`
	Version   uint32 `json:"version"`
	NetNSPath string `json:"netnsPath"` // "" for the host's network
	Network   struct {
		Addresses []string // of the sandbox, without prefix lengths
	} `json:"network"`
}

func infoOf(st sandbox.ControllerStatus) (info statusInfo, err error) {
	err = json.Unmarshal([]byte(st.Info["info"]), &info)
	return info, err
}

// endpointOf finds the address of a sandbox's task service in its verbose
// status. containerd's sandbox service leaves address and version out of its
// answer and passes only the info on.
func endpointOf(st sandbox.ControllerStatus) taskEndpoint {
	e := taskEndpoint{st.Address, st.Version}
	if info, err := infoOf(st); e.address == "" && err == nil {
		e = taskEndpoint{info.Address, info.Version}
	}
	return e
}

// readySandbox checks that a container can join, and says where its task goes.
func (c *client) readySandbox(ctx context.Context, id string) (taskEndpoint, error) {
	if _, err := c.sandboxRecord(ctx, id); err != nil {
		return taskEndpoint{}, err
	}
	return c.endpoint(ctx, id)
}

// readyStatus is the verbose status of a sandbox, which must run.
func (c *client) readyStatus(ctx context.Context, id string) (sandbox.ControllerStatus, error) {
	st, err := c.controller().Status(ctx, id, true)
	if err != nil && !errdefs.IsNotFound(err) {
		return st, fmt.Errorf("sandbox %q: status: %w", id, err)
	}
	if err != nil || sandboxState(st.State) != stateReady {
		return st, advise(errdefs.ErrFailedPrecondition, "sandbox %q is not running; start it first: caisson sandbox start %s", id, id)
	}
	return st, nil
}

func (c *client) endpoint(ctx context.Context, id string) (taskEndpoint, error) {
	st, err := c.readyStatus(ctx, id)
	if err != nil {
		return taskEndpoint{}, err
	}
	e := endpointOf(st)
	if e.address == "" {
		return taskEndpoint{}, fmt.Errorf("sandbox %q: the daemon named no address for tasks: %w", id, errdefs.ErrUnavailable)
	}
	return e, nil
}

// updateSandbox passes a changed record to the controller. containerd's client
// leaves the sandboxer's name out of this one call, which its server refuses.
func (c *client) updateSandbox(ctx context.Context, record sandbox.Sandbox, fields ...string) error {
	_, err := sandboxsapi.NewControllerClient(c.conn()).Update(ctx, &sandboxsapi.ControllerUpdateRequest{
		SandboxID: record.ID,
		Sandboxer: sandboxer,
		Sandbox:   sandbox.ToProto(&record),
		Fields:    slices.Clone(fields),
	})
	return errgrpc.ToNative(err)
}

func ignoreNotFound(err error) error {
	if errdefs.IsNotFound(err) {
		return nil
	}
	return err
}

// joinUndo adds what could not be cleaned up to the error that made it necessary.
func joinUndo(err, undoErr error) error {
	if undoErr == nil {
		return err
	}
	return fmt.Errorf("%w (and %w)", err, undoErr)
}
