package cli

import (
	"context"
	"errors"
	"fmt"
	"io"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/errdefs"
	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"

	"caisson/internal/manifest"
	"caisson/internal/undo"
	"caisson/internal/volumes"
)

// applyFlags are those of `sandbox apply`.
type applyFlags struct {
	file, network string
	replace       bool
	registry      registryFlags // to pull missing images from
}

func (a *app) sandboxApplyCommand() *cobra.Command {
	var f applyFlags
	cmd := &cobra.Command{
		Use:   "apply -f FILE",
		Short: "Run the Pods of a Kubernetes manifest as sandboxes",
		Long: "Run each Pod of a Kubernetes manifest as a sandbox, with its init containers, containers and volumes.\n" +
			"ConfigMaps and Secrets are taken from the same file. What is left to Kubernetes is told as a warning.\n" +
			"If anything fails, all that was made is removed again. What runs unchanged is left alone.",
		Example: "  caisson sandbox apply -f pod.yaml\n  caisson sandbox apply --replace -f - <pod.yaml\n  caisson sandbox rm -f web",
		Args:    atMost(0, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			set, err := a.readManifest(cmd.Context(), f)
			if err != nil {
				return err
			}
			for _, w := range set.Warnings {
				a.warn(errors.New(w))
			}
			return a.withClient(cmd.Context(), func(ctx context.Context, c *client) error {
				return c.apply(ctx, set.Pods, f)
			})
		},
	}
	flags := cmd.Flags()
	flags.StringVarP(&f.file, "filename", "f", "", "the manifest, in YAML or JSON; - is standard input")
	flags.BoolVar(&f.replace, "replace", false, "remove the sandboxes of these names first, with their containers and volumes, if they are not as the manifest has them")
	flags.StringVar(&f.network, "net", "cni", "network of Pods without hostNetwork: none (loopback only), host, or cni (as the daemon configures it)")
	f.registry.add(a, cmd)
	_ = cmd.MarkFlagFilename("filename", "yaml", "yml", "json") // cannot fail: the flag is there
	return cmd
}

func (a *app) readManifest(ctx context.Context, f applyFlags) (*manifest.Set, error) {
	if f.file == "" {
		return nil, advise(errdefs.ErrInvalidArgument, "the manifest is missing: name it with -f, as in `caisson sandbox apply -f pod.yaml`; - is standard input")
	}
	network, err := parseNetwork(f.network)
	if err != nil {
		return nil, err
	}
	in, name := a.sys.Stdin, "standard input"
	if f.file != "-" {
		file, err := openWaiting(f.file)
		if err != nil {
			return nil, err
		}
		defer file.Close() //nolint:errcheck // only read from
		in, name = file, f.file
	}
	data, err := io.ReadAll(io.LimitReader(inStream{ctx, in}, manifest.MaxSize+1))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	set, err := manifest.Read(name, data, manifest.Options{Network: network})
	var many manifest.Errors
	if errors.As(err, &many) {
		return nil, failures(many)
	}
	return set, err
}

// apply makes what is not there. Everything is looked at, and all images are fetched,
// before anything is removed or made.
func (c *client) apply(ctx context.Context, pods []manifest.Pod, f applyFlags) (err error) {
	found := make([]applied, len(pods))
	images := map[string]containerd.Image{}
	for i, pod := range pods {
		if found[i], err = c.lookUp(ctx, pod, f.replace); err != nil {
			return err
		}
		if found[i] == unchanged {
			continue
		}
		if err := c.prepare(ctx, pod, images, f.registry); err != nil {
			return fmt.Errorf("sandbox %q: %w", pod.Name, err)
		}
	}
	var steps undo.Stack
	defer func() {
		if err != nil {
			err = joinUndo(err, steps.Run(ctx))
		}
	}()
	for i, pod := range pods {
		switch found[i] {
		case different:
			if err := c.removeSandboxAndContainers(ctx, pod.Name, true); err != nil {
				return err
			}
			fallthrough
		case absent:
			if err := c.makePod(ctx, pod, images, &steps); err != nil {
				return err
			}
		}
	}
	steps = undo.Stack{} // they run: they stay
	for i, pod := range pods {
		if _, err := fmt.Fprintln(c.app.sys.Stdout, pod.Name, found[i]); err != nil {
			return err
		}
	}
	return nil
}

// applied is what there is of a Pod, in the words for what becomes of it.
type applied string

const (
	absent    applied = "created"
	unchanged applied = "unchanged"
	different applied = "replaced"
)

// lookUp finds a Pod's sandbox; one that is not as the manifest has it may only be
// replaced.
func (c *client) lookUp(ctx context.Context, pod manifest.Pod, replace bool) (applied, error) {
	record, err := c.sandboxRecord(ctx, pod.Name)
	if errdefs.IsNotFound(err) {
		return absent, c.checkFree(ctx, pod)
	}
	if err != nil {
		return "", err
	}
	why := ""
	switch record.Labels[labelManifest] {
	case "":
		why = "was not made from a manifest"
	case pod.Digest:
		if why, err = c.incomplete(ctx, pod); err != nil {
			return "", err
		}
		if why == "" {
			return unchanged, nil
		}
	default:
		why = "was made from another version of the manifest"
	}
	if !replace {
		return "", advise(errdefs.ErrAlreadyExists, "sandbox %q exists and %s: add --replace to remove it first with its containers and volumes, or remove it yourself: caisson sandbox rm -f %s", pod.Name, why, pod.Name)
	}
	return different, c.checkFree(ctx, pod)
}

// incomplete says what a sandbox lacks of its Pod; containers that have ended are there.
func (c *client) incomplete(ctx context.Context, pod manifest.Pod) (string, error) {
	st, err := c.controller().Status(ctx, pod.Name, false)
	if ignoreNotFound(err) != nil {
		return "", fmt.Errorf("sandbox %q: status: %w", pod.Name, err)
	}
	if err != nil || sandboxState(st.State) != stateReady {
		return "does not run", nil
	}
	for _, ctr := range pod.Containers {
		record, err := c.ContainerService().Get(ctx, ctr.ID)
		if ignoreNotFound(err) != nil {
			return "", fmt.Errorf("container %q: %w", ctr.ID, err)
		}
		if err != nil || record.Labels[labelSandbox] != pod.Name {
			return fmt.Sprintf("has no container %q", ctr.ID), nil
		}
	}
	return "", nil
}

// checkFree makes sure that nobody else's containers have the names of a Pod's.
func (c *client) checkFree(ctx context.Context, pod manifest.Pod) error {
	for _, ctr := range append(pod.Init, pod.Containers...) {
		record, err := c.ContainerService().Get(ctx, ctr.ID)
		if errdefs.IsNotFound(err) {
			continue
		}
		if err != nil {
			return fmt.Errorf("container %q: %w", ctr.ID, err)
		}
		if record.Labels[labelSandbox] != pod.Name {
			return advise(errdefs.ErrAlreadyExists, "container %q exists already and is not in sandbox %q: remove it first with `caisson rm %s`", ctr.ID, pod.Name, ctr.ID)
		}
	}
	return nil
}

// prepare checks what a Pod needs of the host, and fetches its images.
func (c *client) prepare(ctx context.Context, pod manifest.Pod, images map[string]containerd.Image, reg registryFlags) error {
	for _, v := range pod.Volumes {
		if err := volumes.Check(v); err != nil {
			return err
		}
	}
	for _, ctr := range append(pod.Init, pod.Containers...) {
		key := ctr.Image
		if ctr.Pull != corev1.PullAlways && images[key] != nil {
			continue
		}
		image, err := c.imageFor(ctx, ctr, reg)
		if err != nil {
			return fmt.Errorf("container %q: %w", ctr.Name, err)
		}
		images[key] = image
	}
	return nil
}

func (c *client) imageFor(ctx context.Context, ctr manifest.Container, reg registryFlags) (containerd.Image, error) {
	switch ctr.Pull {
	case corev1.PullAlways:
		if _, err := c.pull(ctx, ctr.Image, transferFlags{registry: reg}); err != nil {
			return nil, err
		}
	case corev1.PullNever:
		if _, err := c.findImage(ctx, ctr.Image); errdefs.IsNotFound(err) {
			return nil, advise(err, "image %q is not here, and imagePullPolicy is Never: import it with `caisson image import`", ctr.Image)
		} else if err != nil {
			return nil, fmt.Errorf("image %q: %w", ctr.Image, err)
		}
	}
	return c.image(ctx, ctr.Image, reg)
}
