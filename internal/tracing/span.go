// Package tracing makes the spans of OpenTelemetry traces below the calls of clients.
//
// A trace begins with a call: the servers of internal/service take it over from the
// client, so that a kubelet's or CRI's goes on here, and internal/otlp exports it.
// What happens below a call has spans as parts of it only; while nobody traces, each
// costs a look into the context.
package tracing

import (
	"context"

	"github.com/containerd/errdefs"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"
)

const scope = "caisson"

// Child begins a span below the one of the context, if that is recorded. The
// returned function ends it, with what came out of the work.
func Child(ctx context.Context, name string) (context.Context, func(error)) {
	parent := trace.SpanFromContext(ctx)
	if !parent.IsRecording() {
		return ctx, func(error) {}
	}
	ctx, span := parent.TracerProvider().Tracer(scope).Start(ctx, name)
	return ctx, func(err error) {
		if err != nil {
			span.SetStatus(codes.Error, err.Error())
			span.SetAttributes(attribute.String("error.type", errdefs.Resolve(err).Error()))
		}
		span.End()
	}
}

// Describe adds attributes to the span of the context, if that is recorded.
func Describe(ctx context.Context, attributes func() []attribute.KeyValue) {
	if span := trace.SpanFromContext(ctx); span.IsRecording() {
		span.SetAttributes(attributes()...)
	}
}
