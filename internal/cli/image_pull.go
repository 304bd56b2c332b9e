package cli

import (
	"context"
	"fmt"
	"net"
	"net/netip"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/spf13/cobra"
)

func (a *app) imagePullCommand() *cobra.Command {
	var plainHTTP bool
	cmd := &cobra.Command{
		Use:     "pull IMAGE",
		Short:   "Pull an image from its registry",
		Example: "  caisson image pull docker.io/library/busybox:latest\n  caisson image pull --plain-http 127.0.0.1:5000/demo:latest",
		Args:    exactly(1, "the name of one image"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if _, err := imageName(args[0]); err != nil {
				return err
			}
			ctx, sig := catchSignals(cmd.Context())
			defer sig.close()
			ctx, c, err := a.connect(ctx)
			if err != nil {
				return err
			}
			defer c.Close()
			image, err := c.pull(ctx, args[0], plainHTTP)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(a.sys.Stdout, image.Name())
			return err
		},
	}
	cmd.Flags().BoolVar(&plainHTTP, "plain-http", false, "without TLS, from a registry on loopback")
	return cmd
}

// pull fetches an image and unpacks it.
func (c *client) pull(ctx context.Context, ref string, plainHTTP bool) (containerd.Image, error) {
	name, err := imageName(ref)
	if err != nil {
		return nil, err
	}
	if err := checkPlainHTTP(name, plainHTTP); err != nil {
		return nil, err
	}
	resolver := docker.NewResolver(docker.ResolverOptions{
		Hosts: docker.ConfigureDefaultRegistries(
			docker.WithPlainHTTP(func(string) (bool, error) { return plainHTTP, nil }),
			docker.WithAuthorizer(docker.NewDockerAuthorizer()),
		),
	})
	image, err := c.Pull(ctx, name, containerd.WithResolver(resolver), containerd.WithPullUnpack)
	switch {
	case err == nil:
		return image, nil
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case errdefs.IsNotFound(err):
		return nil, advise(err, "image %q is not in its registry, or there only for other platforms: %s; check the name, or import an archive with `caisson image import`", name, clean(err.Error()))
	}
	hint := ""
	if named, perr := reference.ParseNormalizedNamed(name); perr == nil && !plainHTTP && isLoopback(reference.Domain(named)) {
		hint = "add --plain-http if the registry has no TLS, "
	}
	return nil, advise(err, "image %q cannot be pulled: %s; %scheck the name and the network, or import an archive with `caisson image import`", name, clean(err.Error()), hint)
}

// checkPlainHTTP keeps what nobody signed on this machine.
func checkPlainHTTP(name string, plainHTTP bool) error {
	if !plainHTTP {
		return nil
	}
	named, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return err
	}
	if domain := reference.Domain(named); !isLoopback(domain) {
		return advise(errdefs.ErrInvalidArgument, "--plain-http is for registries on loopback, and %q is none: leave it out", domain)
	}
	return nil
}

func isLoopback(domain string) bool {
	host := domain
	if h, _, err := net.SplitHostPort(domain); err == nil {
		host = h
	}
	if host == "localhost" {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.IsLoopback()
}
