package cli

import (
	"context"
	"errors"
	"path/filepath"
	"slices"

	"github.com/containerd/containerd/v2/core/transfer/registry"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/cobra"
)

// defaultHostsDir is where containerd's users have their mirrors.
const defaultHostsDir = "/etc/containerd/certs.d"

// registryFlags say how a registry is reached.
type registryFlags struct {
	plainHTTP bool
	hostsDir  string
}

func (f *registryFlags) add(a *app, cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.BoolVar(&f.plainHTTP, "plain-http", false, "without TLS; a registry on loopback needs no flag for that")
	flags.StringVar(&f.hostsDir, "hosts-dir", a.envOr("CAISSON_HOSTS_DIR", defaultHostsDir), "directory of the daemon's machine with the hosts.toml of mirrors and their certificates ($CAISSON_HOSTS_DIR)")
}

// open is the registry of an image, as the daemon is to see it.
func (f *registryFlags) open(ctx context.Context, name string, creds registry.CredentialHelper) (*registry.OCIRegistry, error) {
	opts := []registry.Opt{registry.WithCredentials(creds)}
	if f.hostsDir != "" {
		dir, err := filepath.Abs(f.hostsDir)
		if err != nil {
			return nil, err
		}
		opts = append(opts, registry.WithHostDir(dir))
	}
	if f.plainHTTP {
		opts = append(opts, registry.WithDefaultScheme("http"))
	}
	return registry.NewOCIRegistry(ctx, name, opts...)
}

// transferFlags say what of an image is pulled or pushed, and how.
type transferFlags struct {
	registry registryFlags
	platform platformFlags
	quiet    bool
}

// add adds the flags, whose help tells the platforms without any and what quiet leaves.
func (f *transferFlags) add(a *app, cmd *cobra.Command, otherwise, quiet string) {
	f.registry.add(a, cmd)
	f.platform.add(cmd, otherwise)
	cmd.Flags().BoolVarP(&f.quiet, "quiet", "q", false, "show only "+quiet)
}

// registryError is why an image could not be pulled or pushed, and what may help.
func registryError(ctx context.Context, err error, name, done string) error {
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.As(err, new(*advice)):
		return err
	}
	host := "HOST"
	if named, err := reference.ParseNormalizedNamed(name); err == nil {
		host = reference.Domain(named)
	}
	return advise(err, "image %q cannot be %s: %s; check the name, the network and the credentials (`caisson login %s`), add --plain-http if the registry has no TLS", name, done, clean(err.Error()), host)
}

// platformFlags choose what of an image is meant.
type platformFlags struct {
	names []string
	all   bool

	want []ocispec.Platform // set by check
}

func (f *platformFlags) add(cmd *cobra.Command, otherwise string) {
	cmd.Flags().StringSliceVar(&f.names, "platform", nil, "platforms, such as linux/arm64 (default: "+otherwise+")")
	cmd.Flags().BoolVar(&f.all, "all-platforms", false, "all platforms that the image has")
}

func (f *platformFlags) check() error {
	if f.all && len(f.names) > 0 {
		return advise(errdefs.ErrInvalidArgument, "--platform and --all-platforms exclude each other: leave one of them out")
	}
	want, err := platforms.ParseAll(f.names)
	if err != nil {
		return advise(errdefs.ErrInvalidArgument, "%v: write platforms like linux/amd64 or linux/arm/v7", err)
	}
	f.want = want
	return nil
}

// host tells whether this machine's platform is among those that are wanted.
func (f *platformFlags) host() bool {
	return len(f.want) == 0 || slices.ContainsFunc(f.want, platforms.Default().Match)
}
