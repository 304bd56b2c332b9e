package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"syscall"

	"github.com/containerd/errdefs"
	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
)

func (a *app) portForwardCommand() *cobra.Command {
	var addresses []string
	cmd := &cobra.Command{
		Use:   "port-forward SANDBOX [LOCAL:]REMOTE...",
		Short: "Reach TCP ports of a sandbox from this host",
		Long: "Listen on ports of this host, and pass each connection on to a port at the loopback address of the\n" +
			"sandbox, until it is interrupted or the sandbox stops. Without LOCAL both ports have the same number;\n" +
			"with an empty one the kernel chooses it. It works on the host of the daemon only, as root.",
		Example: "  caisson port-forward pod1 8080:80 5432\n  caisson port-forward --bind 127.0.0.1,192.0.2.1 pod1 :80",
		Args:    atLeast(2, "a sandbox and a port"),
		RunE: func(cmd *cobra.Command, args []string) error {
			forwards, err := parseForwards(addresses, args[1:])
			if err != nil {
				return err
			}
			return a.withClient(cmd.Context(), func(ctx context.Context, c *client) error {
				return c.portForward(ctx, args[0], forwards)
			})
		},
	}
	// kubectl's --address is caisson's own for all commands.
	cmd.Flags().StringSliceVar(&addresses, "bind", []string{"127.0.0.1"}, "IP addresses of this host to listen at, or localhost")
	return cmd
}

// forward is one port to listen on. Port 0 of the host is any.
type forward struct {
	local  netip.AddrPort
	remote uint16
}

func parseForwards(addresses, ports []string) ([]forward, error) {
	var forwards []forward
	for _, address := range addresses {
		if address == "localhost" {
			address = "127.0.0.1"
		}
		ip, err := netip.ParseAddr(address)
		if err != nil {
			return nil, advise(errdefs.ErrInvalidArgument, "%q is no IP address to listen at: use one of this host, such as 127.0.0.1, ::1 or 0.0.0.0", address)
		}
		for _, text := range ports {
			here, there, both := strings.Cut(text, ":")
			if !both {
				there = here
			}
			local, err := strconv.ParseUint(cmp.Or(here, "0"), 10, 16)
			remote, rerr := strconv.ParseUint(there, 10, 16)
			if err != nil || rerr != nil || remote == 0 {
				return nil, advise(errdefs.ErrInvalidArgument, "%q names no ports: write [LOCAL:]REMOTE, such as 8080:80, with numbers up to 65535", text)
			}
			forwards = append(forwards, forward{netip.AddrPortFrom(ip, uint16(local)), uint16(remote)})
		}
	}
	return forwards, nil
}

// portForward enters the sandbox's network itself, by the name that the daemon tells. The
// daemon could connect instead, but then containerd's API would need a stream that it does
// not have; and who may use that API is root on this host anyway.
func (c *client) portForward(ctx context.Context, id string, forwards []forward) error {
	netNS, err := c.netNSOf(ctx, id)
	if err != nil {
		return err
	}
	listeners, err := listenAll(ctx, forwards)
	if err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return c.awaitStop(ctx, id) })
	for i, l := range listeners {
		f := &forwarder{app: c.app, netNS: netNS, sandboxID: id, port: forwards[i].remote}
		group.Go(func() error { return f.serve(ctx, l) })
	}
	// All of them listen by now.
	for i, l := range listeners {
		if _, err := fmt.Fprintf(c.app.sys.Stdout, "Forwarding from %s -> %d\n", l.Addr(), forwards[i].remote); err != nil {
			group.Go(func() error { return err })
			break
		}
	}
	if err := group.Wait(); err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	return nil // how one ends it
}

// netNSOf is the path of a sandbox's network namespace, "" for the host's. It is opened
// for each connection: an open file would keep the network of a sandbox that has stopped.
func (c *client) netNSOf(ctx context.Context, id string) (string, error) {
	if _, err := c.sandboxRecord(ctx, id); err != nil {
		return "", err
	}
	st, err := c.readyStatus(ctx, id)
	if err != nil {
		return "", err
	}
	info, err := infoOf(st)
	if err != nil {
		return "", fmt.Errorf("sandbox %q: the daemon does not tell its network: %w: %w", id, err, errdefs.ErrUnavailable)
	}
	if info.NetNSPath == "" {
		return "", nil
	}
	if err := ns.IsNSorErr(info.NetNSPath); err != nil {
		return "", advise(errdefs.ErrFailedPrecondition, "sandbox %q: its network is not on this host (%v): run caisson where caissond runs, as root", id, err)
	}
	return info.NetNSPath, nil
}

// listenAll opens all ports, or none. They are closed when ctx ends.
func listenAll(ctx context.Context, forwards []forward) (_ []net.Listener, err error) {
	var listeners []net.Listener
	defer func() {
		if err != nil {
			for _, l := range listeners {
				l.Close()
			}
		}
	}()
	for _, f := range forwards {
		l, err := new(net.ListenConfig).Listen(ctx, "tcp", f.local.String())
		switch {
		case errors.Is(err, syscall.EADDRINUSE):
			return nil, advise(errdefs.ErrAlreadyExists, "port %d of %s is in use: choose another, such as :%d for any", f.local.Port(), f.local.Addr(), f.remote)
		case errors.Is(err, syscall.EADDRNOTAVAIL):
			return nil, advise(errdefs.ErrInvalidArgument, "%s is no address of this host: `ip addr` shows those there are", f.local.Addr())
		case err != nil:
			return nil, err
		}
		listeners = append(listeners, l)
	}
	return listeners, nil
}

// awaitStop returns an error when the sandbox has stopped. A daemon that goes away may
// come back, and the connections do not need it meanwhile.
func (c *client) awaitStop(ctx context.Context, id string) error {
	for {
		_, err := c.controller().Wait(ctx, id)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err == nil, errdefs.IsNotFound(err):
			return advise(errdefs.ErrUnavailable, "sandbox %q has stopped, and nothing is forwarded any more", id)
		case !errdefs.IsUnavailable(err):
			return fmt.Errorf("sandbox %q: wait: %w", id, err)
		}
		if err := sleep(ctx, retryPause); err != nil { // back-off between tries
			return err
		}
	}
}
