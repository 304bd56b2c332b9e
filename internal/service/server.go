package service

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path"
	"time"

	runtimeapi "github.com/containerd/containerd/api/runtime/sandbox/v1"
	api "github.com/containerd/containerd/api/services/sandbox/v1"
	"github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/containerd/ttrpc"
	"google.golang.org/grpc"

	"caisson/internal/keeper"
	"caisson/internal/request"
)

const (
	// maxMessage bounds a gRPC message; it is what containerd's client sends at
	// most. ttrpc has a bound of its own, 4 MiB.
	maxMessage = 16 << 20
	// stopGrace is how long calls in flight may take when a server stops. Waits
	// are always in flight, and their clients call again.
	stopGrace = 500 * time.Millisecond
)

// ServeGRPC serves Controller, Store and Sandbox on l until ctx ends, and then
// returns nil; it closes l. Calls that are cut off see a broken connection,
// never an answer, because containerd takes any answered error of Wait for the
// sandbox's end.
func ServeGRPC(ctx context.Context, l net.Listener, ctl sandbox.Controller, store sandbox.Store, observe Observe) error {
	srv := grpc.NewServer(append(observe.grpcOptions(),
		grpc.MaxRecvMsgSize(maxMessage),
		grpc.MaxSendMsgSize(maxMessage),
		grpc.UnaryInterceptor(observe.grpcCall),
	)...)
	api.RegisterControllerServer(srv, &controllerService{ctl: ctl})
	api.RegisterStoreServer(srv, &storeService{store: store})
	runtimeapi.RegisterSandboxServer(srv, &runtimeService{controller: controllerService{ctl: ctl}})

	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()
	select {
	case err := <-served:
		return fmt.Errorf("serve %s: %w", l.Addr(), err)
	case <-ctx.Done():
	}
	force := time.AfterFunc(stopGrace, srv.Stop)
	srv.GracefulStop()
	force.Stop()
	if err := <-served; err != nil && !errors.Is(err, grpc.ErrServerStopped) {
		return fmt.Errorf("serve %s: %w", l.Addr(), err)
	}
	return nil
}

// ServeTTRPC serves Sandbox on l until ctx ends, as ServeGRPC does.
func ServeTTRPC(ctx context.Context, l net.Listener, ctl sandbox.Controller, observe Observe) error {
	srv, err := newTTRPCServer(nil, observe)
	if err != nil {
		return errors.Join(err, l.Close())
	}
	runtimeapi.RegisterTTRPCSandboxService(srv, &runtimeService{controller: controllerService{ctl: ctl}})
	return RunTTRPC(ctx, srv, l)
}

// newTTRPCServer is a ttrpc server that requires a namespace with each call and
// translates errors; services are registered by the caller. A keeper, if there is
// one, may have its connections.
func newTTRPCServer(k *keeper.Keeper, observe Observe) (*ttrpc.Server, error) {
	call := observe.ttrpcCall
	if k != nil {
		call = keptCall(k, call)
	}
	srv, err := ttrpc.NewServer(ttrpc.WithUnaryServerInterceptor(observe.traced(call)))
	if err != nil {
		return nil, fmt.Errorf("ttrpc server: %w", err)
	}
	return srv, nil
}

// RunTTRPC serves srv on l until ctx ends, and then returns nil; it closes both.
func RunTTRPC(ctx context.Context, srv *ttrpc.Server, l net.Listener) error {
	conns := track(l)
	served := make(chan error, 1)
	// The server cancels its calls with its context before it closes their
	// connections; it must close them first, see ServeGRPC.
	go func() { served <- srv.Serve(context.WithoutCancel(ctx), conns) }()
	select {
	case err := <-served:
		return errors.Join(fmt.Errorf("serve %s: %w", l.Addr(), err), srv.Close())
	case <-ctx.Done():
	}
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopGrace)
	defer cancel()
	_ = srv.Shutdown(grace) // it fails when the grace is over
	// Cuts off what did not end, and what ttrpc took for idle while a call just began.
	conns.closeConns()
	if err := <-served; err != nil && !errors.Is(err, ttrpc.ErrServerClosed) && !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("serve %s: %w", l.Addr(), err)
	}
	return nil
}

// keptCall is a call for requests that may have come to an earlier daemon.
func keptCall(k *keeper.Keeper, call ttrpc.UnaryServerInterceptor) ttrpc.UnaryServerInterceptor {
	return func(ctx context.Context, decode ttrpc.Unmarshaler, info *ttrpc.UnaryServerInfo, next ttrpc.Method) (any, error) {
		req := k.Request(ctx)
		if req.Again {
			log.G(ctx).WithField("method", info.FullMethod).WithField("request", req.ID).Debug("a request that the last daemon did not answer")
		}
		if !waits[path.Base(info.FullMethod)] {
			defer k.Serving()()
		}
		return call(request.With(ctx, req), decode, info, next)
	}
}

// namespaceOf is the namespace that a call was made in. The context has it already, in
// the metadata of the call or from a caller in this process.
func namespaceOf(ctx context.Context) (string, error) {
	ns, err := namespaces.NamespaceRequired(ctx)
	if err != nil {
		return "", err
	}
	// The namespaces have sandboxes of the same ID.
	if of, ok := ctx.Value(sandboxKey{}).(sandboxName); ok && of.namespace != ns {
		return "", fmt.Errorf("namespace %q: this is the socket of a sandbox in namespace %q: %w", ns, of.namespace, errdefs.ErrInvalidArgument)
	}
	return ns, nil
}
