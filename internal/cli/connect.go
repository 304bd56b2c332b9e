package cli

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"path/filepath"
	"strings"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/identifiers"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"google.golang.org/grpc"
)

const (
	sandboxer   = "caisson"
	runtimeName = "io.containerd.caisson.v2"

	dialTimeout = 5 * time.Second
)

// client is a connection to the daemon, for one namespace.
type client struct {
	*containerd.Client
	app *app
}

// connect opens the daemon's socket, and starts a daemon if none runs and that is what the
// user expects. The returned context carries the namespace; the caller closes the client.
func (a *app) connect(ctx context.Context) (context.Context, *client, error) {
	return a.open(ctx, a.daemonToStart)
}

// withClient connects for as long as something is done.
func (a *app) withClient(ctx context.Context, do func(ctx context.Context, c *client) error) error {
	ctx, c, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	return do(ctx, c)
}

// connectOnly is connect without starting a daemon.
func (a *app) connectOnly(ctx context.Context) (context.Context, *client, error) {
	return a.open(ctx, func(error) string { return "" })
}

func (a *app) open(ctx context.Context, toStart func(cause error) string) (context.Context, *client, error) {
	if err := identifiers.Validate(a.namespace); err != nil {
		return nil, nil, advise(err, "namespace %q is not an identifier: use letters and digits, with . _ - between them", a.namespace)
	}
	if err := a.probe(ctx); err != nil {
		program := toStart(err)
		if program == "" {
			return nil, nil, a.noDaemon(err)
		}
		if err := a.startAndWait(ctx, program); err != nil {
			return nil, nil, err
		}
	}
	path, err := filepath.Abs(a.socketPath()) // as gRPC wants it
	if err != nil {
		return nil, nil, err
	}
	c, err := containerd.New(path, containerd.WithDefaultNamespace(a.namespace), containerd.WithTimeout(dialTimeout))
	if err != nil {
		return nil, nil, a.noDaemon(err)
	}
	return namespaces.WithNamespace(ctx, a.namespace), &client{Client: c, app: a}, nil
}

// probe connects once, so that a missing daemon is told at once and by its
// cause: gRPC connects late, and reports every reason as Unavailable.
func (a *app) probe(ctx context.Context) error {
	dialer := net.Dialer{Timeout: dialTimeout}
	conn, err := dialer.DialContext(ctx, "unix", a.socketPath())
	if err != nil {
		return err
	}
	return conn.Close()
}

func (a *app) noDaemon(err error) error {
	switch {
	case errors.Is(err, context.Canceled):
		return err
	case errors.Is(err, fs.ErrPermission):
		return advise(errdefs.ErrPermissionDenied, "no permission to use caissond's socket %s: run caisson as the user it belongs to, usually root", a.address)
	case nobodyListens(err):
		return advise(errdefs.ErrUnavailable, "no caissond at %s: start it with `caissond`, or name its socket with --address or CAISSON_ADDRESS", a.address)
	}
	return advise(errdefs.ErrUnavailable, "no caissond at %s (%v): start it with `caissond`, or name its socket with --address or CAISSON_ADDRESS", a.address, err)
}

func (a *app) socketPath() string { return strings.TrimPrefix(a.address, "unix://") }

// conn is the connection itself, for the calls that containerd's client gets wrong.
func (c *client) conn() grpc.ClientConnInterface { return c.Conn().(grpc.ClientConnInterface) }
