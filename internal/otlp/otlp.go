// Package otlp exports the daemon's spans over OTLP, if the environment says where
// to, in the variables that OpenTelemetry has defined for that and containerd reads.
package otlp

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"golang.org/x/time/rate"
)

const (
	// flushLimit is how long the end of the daemon waits for a collector.
	flushLimit = 2 * time.Second
	// complaintInterval is how often a collector that does not answer is reported.
	complaintInterval = time.Minute
)

// Exporter sends spans to a collector. A nil one sends none.
type Exporter struct{ provider *sdk.TracerProvider }

// Open makes the exporter that the environment asks for, and makes it the process's;
// nil if it asks for none. The standard's variables are what OpenTelemetry's own
// packages read by themselves (headers, certificates, sampler, resource), so these
// are read here too. A collector that cannot be reached is no error: it may come.
func Open(ctx context.Context, version string) (*Exporter, error) {
	wanted, err := wanted()
	if err != nil || !wanted {
		return nil, err
	}
	out, err := newExporter(ctx)
	if err != nil {
		return nil, fmt.Errorf("traces: %w", err)
	}
	res, err := resource.New(ctx,
		resource.WithAttributes(attribute.String("service.name", "caissond"), attribute.String("service.version", version)),
		resource.WithHost(), resource.WithTelemetrySDK(), resource.WithFromEnv()) // the environment wins
	if err != nil {
		return nil, errors.Join(fmt.Errorf("traces: resource: %w", err), out.Shutdown(ctx))
	}
	complaints := rate.Sometimes{Interval: complaintInterval}
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) {
		complaints.Do(func() { log.L.WithError(err).Warn("spans are not exported") })
	}))
	otel.SetTextMapPropagator(propagation.NewCompositeTextMapPropagator(propagation.TraceContext{}, propagation.Baggage{}))
	e := &Exporter{sdk.NewTracerProvider(sdk.WithBatcher(out), sdk.WithResource(res))}
	otel.SetTracerProvider(e.provider)
	return e, nil
}

// Close sends what was not sent yet, as far as that takes no more than two seconds.
// Who has ended all calls loses nothing but what a collector does not take.
func (e *Exporter) Close(ctx context.Context) error {
	if e == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), flushLimit)
	defer cancel()
	if err := e.provider.Shutdown(ctx); err != nil {
		log.G(ctx).WithError(err).Warn("spans are lost: they could not be exported")
	}
	return nil
}

func wanted() (bool, error) {
	if v := os.Getenv("OTEL_SDK_DISABLED"); v != "" {
		off, err := strconv.ParseBool(v)
		if err != nil {
			return false, fmt.Errorf("traces: OTEL_SDK_DISABLED=%q is neither true nor false: %w", v, errdefs.ErrInvalidArgument)
		}
		if off {
			return false, nil
		}
	}
	switch v := os.Getenv("OTEL_TRACES_EXPORTER"); v {
	case "", "otlp":
	case "none":
		return false, nil
	default:
		return false, fmt.Errorf("traces: OTEL_TRACES_EXPORTER=%q: only otlp and none are known: %w", v, errdefs.ErrInvalidArgument)
	}
	return first("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT") != "", nil
}

func newExporter(ctx context.Context) (*otlptrace.Exporter, error) {
	switch protocol := first("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"); protocol {
	case "", "http/protobuf":
		return otlptracehttp.New(ctx)
	case "grpc":
		return otlptracegrpc.New(ctx)
	default:
		return nil, fmt.Errorf("OTEL_EXPORTER_OTLP_PROTOCOL=%q: only http/protobuf and grpc are known: %w", protocol, errdefs.ErrInvalidArgument)
	}
}

// first is the value of the first of the variables that is set.
func first(names ...string) string {
	for _, name := range names {
		if v := os.Getenv(name); v != "" {
			return v
		}
	}
	return ""
}
