package cli

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/remotes/docker/config"
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

// client is one for a registry itself, at host, which checks its certificate as the daemon
// does: as hosts.toml says, and without one not at all on loopback.
func (f *registryFlags) client(ctx context.Context, name, host string) (*http.Client, error) {
	opts := config.HostOptions{DefaultScheme: "https", HostDir: func(string) (string, error) { return "", errdefs.ErrNotFound }}
	if f.hostsDir != "" {
		opts.HostDir = config.HostDirFromRoot(f.hostsDir)
	}
	if _, err := opts.HostDir(name); errdefs.IsNotFound(err) && docker.IsLocalhost(name) {
		opts.DefaultTLS = &tls.Config{InsecureSkipVerify: true}
	}
	hosts, err := config.ConfigureHosts(ctx, opts)(name)
	if err != nil {
		return nil, fmt.Errorf("registry %s: hosts.toml in %s: %w", name, f.hostsDir, err)
	}
	for _, h := range hosts {
		if h.Host == host {
			return h.Client, nil
		}
	}
	return http.DefaultClient, nil
}

// trust is what to do about a certificate that nobody vouches for.
func (f *registryFlags) trust(host string) string {
	return fmt.Sprintf("if it is the right one, name it as ca, or write skip_verify = true, in %s", filepath.Join(f.hostsDir, host, "hosts.toml"))
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

// explain says why an image could not be pulled or pushed, and what may help.
func (f *registryFlags) explain(ctx context.Context, err error, name, done string) error {
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
	if strings.Contains(err.Error(), "x509: ") { // of the daemon's errors, only the text is here
		return advise(err, "image %q cannot be %s: %s; %s", name, done, clean(err.Error()), f.trust(host))
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
