package otlp

import (
	"context"
	"errors"
	"net"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"go.opentelemetry.io/otel"
	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"caisson/internal/tracing"
)

func TestOpenIsAskedFor(t *testing.T) {
	const endpoint = "OTEL_EXPORTER_OTLP_ENDPOINT"
	for name, env := range map[string]map[string]string{
		"nothing":  {},
		"disabled": {endpoint: "http://127.0.0.1:1", "OTEL_SDK_DISABLED": "true"},
		"none":     {endpoint: "http://127.0.0.1:1", "OTEL_TRACES_EXPORTER": "none"},
		"unclear":  {endpoint: "http://127.0.0.1:1", "OTEL_SDK_DISABLED": "perhaps"},
		"other":    {endpoint: "http://127.0.0.1:1", "OTEL_TRACES_EXPORTER": "zipkin"},
		"protocol": {endpoint: "http://127.0.0.1:1", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"},
	} {
		t.Run(name, func(t *testing.T) {
			for key, value := range env {
				t.Setenv(key, value)
			}
			e, err := Open(context.Background(), "v1")
			refused := name == "unclear" || name == "other" || name == "protocol"
			if e != nil || refused != errdefs.IsInvalidArgument(err) || refused && !strings.Contains(err.Error(), "OTEL_") {
				t.Errorf("%v, %v", e, err)
			}
			if err := e.Close(context.Background()); err != nil { // of none
				t.Error(err)
			}
		})
	}
}

// gatherer is a collector of traces.
type gatherer struct {
	collector.UnimplementedTraceServiceServer
	got chan *collector.ExportTraceServiceRequest
}

func (g *gatherer) Export(_ context.Context, r *collector.ExportTraceServiceRequest) (*collector.ExportTraceServiceResponse, error) {
	g.got <- r
	return &collector.ExportTraceServiceResponse{}, nil
}

// TestExport: over gRPC, spans arrive at the latest when the exporter is closed.
func TestExport(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := grpc.NewServer()
	g := &gatherer{got: make(chan *collector.ExportTraceServiceRequest, 10)}
	collector.RegisterTraceServiceServer(srv, g)
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()
	defer func() {
		srv.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	}()
	t.Setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://"+l.Addr().String())
	t.Setenv("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "grpc")
	t.Setenv("OTEL_RESOURCE_ATTRIBUTES", "service.instance.id=i1")
	e, err := Open(context.Background(), "v1")
	if err != nil {
		t.Fatal(err)
	}
	if ctx, done := tracing.Child(context.Background(), "alone"); ctx != context.Background() {
		t.Error("a child without a parent")
	} else {
		done(errors.New("is no span"))
	}
	ctx, root := otel.Tracer("test").Start(context.Background(), "call")
	_, done := tracing.Child(ctx, "good")
	done(nil)
	_, done = tracing.Child(ctx, "bad")
	done(errdefs.ErrNotFound)
	root.End()
	if err := e.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
	r := (<-g.got).GetResourceSpans()[0]
	resource := r.GetResource().String()
	for _, want := range []string{"caissond", "v1", "i1", "service.instance.id"} {
		if !strings.Contains(resource, want) {
			t.Errorf("no %s in %s", want, resource)
		}
	}
	spans := map[string]string{}
	for _, scope := range r.GetScopeSpans() {
		for _, s := range scope.GetSpans() {
			spans[s.GetName()] = s.String()
		}
	}
	if len(spans) != 3 || !strings.Contains(spans["bad"], "not found") || strings.Contains(spans["good"], "error") {
		t.Errorf("%q", spans)
	}
}

// TestNobodyCollects: spans are lost, and nothing else.
func TestNobodyCollects(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := grpc.NewServer(grpc.UnknownServiceHandler(func(any, grpc.ServerStream) error { return status.Error(codes.Unimplemented, "no collector") }))
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()
	defer func() {
		srv.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	}()
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://"+l.Addr().String())
	t.Setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
	e, err := Open(context.Background(), "v1")
	if err != nil {
		t.Fatal(err)
	}
	_, span := otel.Tracer("test").Start(context.Background(), "call")
	span.End()
	if err := e.Close(context.Background()); err != nil {
		t.Error(err)
	}
}
