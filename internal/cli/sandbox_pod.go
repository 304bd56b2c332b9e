package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"strconv"
	"strings"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	corev1 "k8s.io/api/core/v1"

	"caisson/internal/manifest"
	"caisson/internal/undo"
	"caisson/internal/volumes"
)

// podMaker makes what one Pod asks for.
type podMaker struct {
	*client
	pod       manifest.Pod
	images    map[string]containerd.Image
	store     *volumes.Store
	volumes   map[string]manifest.Volume
	at        taskEndpoint
	addresses []string
	steps     *undo.Stack
}

// makePod makes a Pod's sandbox, its volumes and its containers; all that it has made
// is on steps, also after an error.
func (c *client) makePod(ctx context.Context, pod manifest.Pod, images map[string]containerd.Image, steps *undo.Stack) error {
	dir, err := c.app.volumesPath(pod.Name)
	if err != nil {
		return err
	}
	m := &podMaker{client: c, pod: pod, images: images, store: volumes.At(dir), volumes: map[string]manifest.Volume{}, steps: steps}
	for _, v := range pod.Volumes {
		m.volumes[v.Name] = v
	}
	labels := map[string]string{}
	maps.Copy(labels, pod.Labels)
	labels[labelManifest], labels[labelVolumes] = pod.Digest, dir
	sandbox := newSandbox{id: pod.Name, runtime: runtimeName, labels: labels, annotations: pod.Annotations, options: pod.Options}
	if err := c.createSandbox(ctx, sandbox); err != nil {
		return err
	}
	steps.Add("sandbox", func(ctx context.Context) error { return c.removeSandbox(ctx, pod.Name, stopOpts(0)...) })
	steps.Add("volumes", func(context.Context) error { return m.store.Undo() })
	if err := m.store.Make(pod.Volumes, pod.FSGroup); err != nil {
		return fmt.Errorf("sandbox %q: %w", pod.Name, err)
	}
	if err := m.start(ctx); err != nil {
		return err
	}
	for _, ctr := range pod.Init {
		if err := m.runInit(ctx, ctr); err != nil {
			return err
		}
	}
	var tasks []containerd.Task
	for _, ctr := range pod.Containers {
		task, err := m.create(ctx, ctr)
		if err != nil {
			return err
		}
		tasks = append(tasks, task)
	}
	for _, task := range tasks {
		if err := task.Start(ctx); err != nil {
			return fmt.Errorf("container %q: start: %w", task.ID(), err)
		}
	}
	return nil
}

func (m *podMaker) start(ctx context.Context) error {
	if err := m.startSandbox(ctx, m.pod.Name); err != nil {
		return err
	}
	st, err := m.controller().Status(ctx, m.pod.Name, true)
	if err != nil {
		return fmt.Errorf("sandbox %q: status: %w", m.pod.Name, err)
	}
	if m.at = endpointOf(st); m.at.address == "" {
		return fmt.Errorf("sandbox %q: the daemon named no address for tasks: %w", m.pod.Name, errdefs.ErrUnavailable)
	}
	var info statusInfo
	if json.Unmarshal([]byte(st.Info["info"]), &info) == nil {
		m.addresses = info.Network.Addresses
	}
	return nil
}

// runInit runs an init container to its end, which must be a good one. A sidecar is
// only started.
func (m *podMaker) runInit(ctx context.Context, ctr manifest.Container) error {
	task, err := m.create(ctx, ctr)
	if err != nil {
		return err
	}
	exited, err := task.Wait(ctx) // before Start, so that no exit is missed
	if err != nil {
		return fmt.Errorf("container %q: wait: %w", ctr.ID, err)
	}
	if err := task.Start(ctx); err != nil {
		return fmt.Errorf("container %q: start: %w", ctr.ID, err)
	}
	if ctr.Sidecar {
		return nil
	}
	code, err := awaitExit(ctx, task, exited)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		return fmt.Errorf("container %q: wait: %w", ctr.ID, err)
	}
	if code != 0 {
		return advise(errdefs.ErrFailedPrecondition, "init container %q ended with exit code %d, so that nothing of sandbox %q was kept; it wrote:%s", ctr.Name, code, m.pod.Name, m.lastWords(ctr))
	}
	return nil
}

// lastWords are the last lines that a container wrote, whose log is about to go.
func (m *podMaker) lastWords(ctr manifest.Container) string {
	const lines, most = 10, 4096
	path, err := m.app.logPath(ctr.ID)
	if err != nil {
		return " (" + err.Error() + ")"
	}
	f, err := os.Open(path)
	if err != nil {
		return " (" + err.Error() + ")"
	}
	defer f.Close() //nolint:errcheck // only read from
	if err := seekTail(f, lines); err != nil {
		return " (" + err.Error() + ")"
	}
	text, err := io.ReadAll(io.LimitReader(f, most))
	if err != nil {
		return " (" + err.Error() + ")"
	}
	if len(bytes.TrimSpace(text)) == 0 {
		return " nothing"
	}
	var b strings.Builder
	for line := range strings.Lines(string(text)) {
		b.WriteString("\n  " + printable(strings.TrimRight(line, "\r\n")))
	}
	return b.String()
}

// create makes a container and its task, which writes to a log.
func (m *podMaker) create(ctx context.Context, ctr manifest.Container) (containerd.Task, error) {
	n, err := m.newContainer(ctr)
	if err != nil {
		return nil, fmt.Errorf("container %q: %w", ctr.ID, err)
	}
	task, _, err := m.createTask(ctx, n, m.at, m.steps)
	// Its exit code is for commands that stand for one process.
	var start *startError
	if errors.As(err, &start) {
		err = start.err
	}
	return task, err
}

func (m *podMaker) newContainer(ctr manifest.Container) (newContainer, error) {
	process, err := ctr.Process(m.addresses)
	if err != nil {
		return newContainer{}, err
	}
	n := newContainer{
		id: ctr.ID, image: m.images[ctr.Image], runtime: runtimeName, sandbox: m.pod.Name,
		process:    processFlags{detach: true, tty: ctr.TTY, env: process.Env, workdir: ctr.Dir},
		limits:     limits{memory: ctr.Resources.Memory, quota: ctr.Resources.CPUQuota},
		command:    process.Args,
		opts:       podOpts(ctr),
		unconfined: ctr.Security.Unconfined || ctr.Security.Privileged,
	}
	if len(process.Command) > 0 {
		n.entrypoint, n.command = &process.Command[0], append(process.Command[1:], process.Args...)
	}
	if user := ctr.Security.User; user != nil {
		n.process.user = strconv.FormatInt(*user, 10)
	}
	for i, mount := range ctr.Mounts {
		v, err := m.mount(ctr, mount, process.SubPaths[i], i)
		if err != nil {
			return n, err
		}
		n.volumes = append(n.volumes, v)
	}
	return n, nil
}

func (m *podMaker) mount(ctr manifest.Container, mount manifest.Mount, subPath string, index int) (volume, error) {
	v := m.volumes[mount.Volume]
	source, err := m.store.Source(v, subPath, fmt.Sprintf("%s.%d", ctr.Name, index))
	if err != nil {
		return volume{}, err
	}
	access, propagation := "rw", "rprivate"
	if mount.ReadOnly || v.ReadOnly {
		access = "ro"
	}
	switch mount.Propagation {
	case corev1.MountPropagationHostToContainer:
		propagation = "rslave"
	case corev1.MountPropagationBidirectional:
		propagation = "rshared"
	}
	return volume{text: mount.Volume, mount: specs.Mount{
		Destination: mount.Path, Source: source, Type: "bind", Options: []string{"rbind", propagation, access},
	}}, nil
}
