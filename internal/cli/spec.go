package cli

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"slices"
	"strconv"

	"github.com/containerd/cgroups/v3"
	"github.com/containerd/containerd/v2/contrib/seccomp"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/spf13/cobra"
)

// processFlags are what `run` and `exec` have in common.
type processFlags struct {
	interactive, tty, detach bool

	env           []string
	workdir, user string

	detachKeys string // as they are written; only of those that can be attached to again
	leave      []byte
}

func (f *processFlags) add(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.SetInterspersed(false) // what follows the first argument is the command's
	flags.BoolVarP(&f.interactive, "interactive", "i", false, "pass standard input on")
	flags.BoolVarP(&f.tty, "tty", "t", false, "give the process a terminal")
	flags.BoolVarP(&f.detach, "detach", "d", false, "do not wait for the process")
	flags.StringArrayVarP(&f.env, "env", "e", nil, "environment variable, NAME=value, or NAME to pass it on")
	flags.StringVarP(&f.workdir, "workdir", "w", "", "working directory")
	flags.StringVarP(&f.user, "user", "u", "", "user[:group], by name or number")
}

func (f *processFlags) check(a *app) error {
	if f.detach && f.interactive {
		return advise(errdefs.ErrInvalidArgument, "--detach and --interactive exclude each other: nobody would read what you type; leave one out")
	}
	if f.workdir != "" && f.workdir[0] != '/' {
		return advise(errdefs.ErrInvalidArgument, "working directory %q is not absolute: begin it with /", f.workdir)
	}
	env, err := parseEnv(f.env, a.sys.Env)
	if err != nil {
		return err
	}
	f.env = env
	if f.leave, err = parseDetachKeys(f.detachKeys); err != nil {
		return err
	}
	if f.tty && f.interactive && !isTerminal(a.sys.Stdin) {
		return advise(errdefs.ErrInvalidArgument, "--tty --interactive needs a terminal, and standard input is none: leave --tty out")
	}
	return nil
}

// volume is a bind mount, still in the words it was given in.
type volume struct {
	text  string
	mount specs.Mount
}

func parseVolumes(list []string, getwd func() (string, error)) ([]volume, error) {
	if len(list) == 0 {
		return nil, nil
	}
	cwd, err := getwd()
	if err != nil {
		return nil, err
	}
	var volumes []volume
	for _, text := range list {
		m, err := parseVolume(text, cwd)
		if err != nil {
			return nil, err
		}
		if _, err := os.Stat(m.Source); errors.Is(err, fs.ErrNotExist) {
			return nil, advise(errdefs.ErrNotFound, "volume %q: %s does not exist: create it first", text, m.Source)
		} else if err != nil {
			return nil, err
		}
		if slices.ContainsFunc(volumes, func(v volume) bool { return v.mount.Destination == m.Destination }) {
			return nil, advise(errdefs.ErrInvalidArgument, "volume %q: %s is mounted on twice: leave one out", text, m.Destination)
		}
		volumes = append(volumes, volume{text, m})
	}
	return volumes, nil
}

// specOpts build the specification: containerd's default, the image's
// configuration, and what the flags change. Network, IPC and UTS namespaces are
// left without a path: the sandboxer joins them to the sandbox's.
func (n newContainer) specOpts() []oci.SpecOpts {
	opts := []oci.SpecOpts{oci.WithDefaultUnixDevices, withCgroupView(cgroups.Mode() == cgroups.Unified)}
	if n.process.tty {
		opts = append(opts, oci.WithTTY)
	}
	opts = append(opts, oci.WithImageConfigArgs(n.image, n.command), n.withEntrypoint)
	if n.process.user != "" {
		opts = append(opts, withUser(n.process.user))
	}
	if n.process.workdir != "" {
		opts = append(opts, oci.WithProcessCwd(n.process.workdir))
	}
	if len(n.process.env) > 0 {
		opts = append(opts, oci.WithEnv(n.process.env))
	}
	for _, v := range n.volumes {
		opts = append(opts, oci.WithoutMounts(v.mount.Destination), oci.WithMounts([]specs.Mount{v.mount}))
	}
	opts = append(opts, n.limits.specOpts()...)
	opts = append(opts, n.opts...)
	if n.unconfined {
		return append(opts, oci.WithSeccompUnconfined)
	}
	// The profile depends on the capabilities, so it comes last.
	return append(opts, seccomp.WithDefaultProfile())
}

// withCgroupView shows a container its own cgroup, read-only, at the usual place,
// where language runtimes look for their limits. On v2 that takes a cgroup
// namespace; on v1 the runtime mounts nothing but the container's own.
func withCgroupView(unified bool) oci.SpecOpts {
	opts := []oci.SpecOpts{oci.WithMounts([]specs.Mount{{
		Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup",
		Options: []string{"nosuid", "noexec", "nodev", "relatime", "ro"},
	}})}
	if unified {
		opts = append(opts, oci.WithLinuxNamespace(specs.LinuxNamespace{Type: specs.CgroupNamespace}))
	}
	return oci.Compose(opts...)
}

// withEntrypoint replaces the image's entrypoint and command, and refuses a
// container with nothing to run.
func (n newContainer) withEntrypoint(_ context.Context, _ oci.Client, _ *containers.Container, s *oci.Spec) error {
	if n.entrypoint != nil {
		s.Process.Args = append([]string{}, n.command...)
		if *n.entrypoint != "" {
			s.Process.Args = append([]string{*n.entrypoint}, n.command...)
		}
	}
	if len(s.Process.Args) == 0 || s.Process.Args[0] == "" {
		return advise(errdefs.ErrInvalidArgument, "image %q names no command: give one after it, as in `caisson run %s sh`", n.image.Name(), n.image.Name())
	}
	return nil
}

// withUser sets the user and, for one that the image knows, its groups.
func withUser(user string) oci.SpecOpts {
	return func(ctx context.Context, client oci.Client, ctr *containers.Container, s *oci.Spec) error {
		if err := oci.WithUser(user)(ctx, client, ctr, s); err != nil {
			return advise(errdefs.ErrInvalidArgument, "user %q: %v: give the name of a user in the image, or numbers as uid[:gid]", user, err)
		}
		return oci.WithAdditionalGIDs(strconv.FormatUint(uint64(s.Process.User.UID), 10))(ctx, client, ctr, s)
	}
}

func (l limits) specOpts() []oci.SpecOpts {
	var opts []oci.SpecOpts
	if l.memory > 0 {
		opts = append(opts, oci.WithMemoryLimit(uint64(l.memory)))
	}
	if l.quota > 0 {
		opts = append(opts, oci.WithCPUCFS(l.quota, cpuPeriod))
	}
	if l.pids > 0 {
		opts = append(opts, oci.WithPidsLimit(l.pids))
	}
	return opts
}
