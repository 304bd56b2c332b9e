package service

import (
	"context"
	"path"
	"time"

	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/otelttrpc"
	"github.com/containerd/ttrpc"
	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	"google.golang.org/grpc"
	"google.golang.org/grpc/stats"

	"caisson/internal/subject"
	"caisson/internal/tracing"
)

// Observe is who is told of the calls. The zero value tells nobody.
type Observe struct {
	// Calls gets each call when it was answered, but those that wait for an end.
	Calls Calls
	// Traces takes traces over from clients. Spans go to the process's exporter.
	Traces bool
}

// Calls is told of calls: the method's full name, how long it took and what came
// of it. It must not block.
type Calls interface {
	Called(fullMethod string, took time.Duration, err error)
}

// call is a call, from its namespace to the wire's error. next tells about what it
// learns of its request.
func (o Observe) call(ctx context.Context, fullMethod string, next func(ctx context.Context, learn func(req any)) (any, error)) (any, error) {
	begin := time.Now()
	_, err := namespaceOf(ctx)
	var resp any
	if err == nil {
		resp, err = next(about(ctx))
	}
	o.answered(fullMethod, begin, err)
	if err != nil {
		return nil, wireError(err)
	}
	return resp, nil
}

// answered tells of a call that is over.
func (o Observe) answered(fullMethod string, begin time.Time, err error) {
	if o.Calls != nil && !waits[path.Base(fullMethod)] {
		o.Calls.Called(fullMethod, time.Since(begin), err)
	}
}

// grpcCall is where an error becomes the wire's, and where a call gets its namespace.
func (o Observe) grpcCall(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	return o.call(ctx, info.FullMethod, func(ctx context.Context, learn func(any)) (any, error) {
		learn(req)
		return next(ctx, req)
	})
}

// ttrpcCall is the same for ttrpc.
func (o Observe) ttrpcCall(ctx context.Context, decode ttrpc.Unmarshaler, info *ttrpc.UnaryServerInfo, next ttrpc.Method) (any, error) {
	return o.call(ctx, info.FullMethod, func(ctx context.Context, learn func(any)) (any, error) {
		return next(ctx, func(req any) error {
			err := decode(req)
			learn(req)
			return err
		})
	})
}

// local makes a call of this process: no encoding, no socket, but metrics, traces, log
// and the need of a namespace as for any client. An error has no parts, as if it had
// come through a socket.
func (o Observe) local(ctx context.Context, fullMethod string, req any, next func(ctx context.Context) error) error {
	begin := time.Now()
	_, err := namespaceOf(ctx)
	if err == nil {
		ctx, end := tracing.Child(ctx, fullMethod[1:])
		ctx, learn := about(ctx)
		learn(req)
		err = next(ctx)
		end(err)
	}
	o.answered(fullMethod, begin, err)
	if err != nil {
		return flat{err}
	}
	return nil
}

// waits are the methods that last until something ends. No stop of the daemon waits
// for them, and how long they take says nothing.
var waits = map[string]bool{"Wait": true, "WaitSandbox": true}

// grpcOptions are those of a server whose calls are observed.
func (o Observe) grpcOptions() []grpc.ServerOption {
	if !o.Traces {
		return nil
	}
	return []grpc.ServerOption{grpc.StatsHandler(otelgrpc.NewServerHandler(
		otelgrpc.WithFilter(func(info *stats.RPCTagInfo) bool { return !waits[path.Base(info.FullMethodName)] }),
	))}
}

// traced puts a call of ttrpc into its client's trace.
func (o Observe) traced(call ttrpc.UnaryServerInterceptor) ttrpc.UnaryServerInterceptor {
	if !o.Traces {
		return call
	}
	take := otelttrpc.UnaryServerInterceptor()
	return func(ctx context.Context, decode ttrpc.Unmarshaler, info *ttrpc.UnaryServerInfo, next ttrpc.Method) (any, error) {
		if waits[path.Base(info.FullMethod)] {
			return call(ctx, decode, info, next)
		}
		return take(ctx, decode, info, func(ctx context.Context, decode func(any) error) (any, error) {
			return call(ctx, decode, info, next)
		})
	}
}

// about begins to note what a call is about, for the log and the trace: whose socket
// it came through, and what its request says. ttrpc decodes that late, in the method;
// the returned function is called with it before anything is done.
func about(ctx context.Context) (context.Context, func(req any)) {
	namespace, _ := namespaces.Namespace(ctx)
	s := &subject.Subject{Namespace: namespace}
	if of, ok := ctx.Value(sandboxKey{}).(sandboxName); ok {
		s.SandboxID = of.id
	}
	ctx = subject.Of(ctx, s)
	return ctx, func(req any) {
		if r, ok := req.(interface{ GetSandboxID() string }); ok && r.GetSandboxID() != "" {
			s.SandboxID = r.GetSandboxID()
		}
		if r, ok := req.(interface{ GetID() string }); ok { // of the Task API, whose tasks are containers
			s.ContainerID = r.GetID()
		}
		if r, ok := req.(interface{ GetExecID() string }); ok {
			s.ExecID = r.GetExecID()
		}
		tracing.Describe(ctx, s.Attributes)
	}
}
