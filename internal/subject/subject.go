// Package subject says, in a context, what work is about: which sandbox, which
// container in it, which exec. The log and the traces name it by that, in fields
// that are called the same wherever a line or a span comes from.
//
// A subject costs a call one value in its context. Nothing is formatted before a
// line is written.
package subject

import (
	"context"

	"github.com/sirupsen/logrus"
	"go.opentelemetry.io/otel/attribute"
)

// Subject is what work is about. What is empty is not known, or there is none.
type Subject struct {
	Namespace, SandboxID, ContainerID, ExecID string
}

type key struct{}

// With returns a context of work on s. What s leaves empty stays as it was.
func With(ctx context.Context, s Subject) context.Context {
	outer := From(ctx)
	for _, f := range []struct{ to, from *string }{
		{&s.Namespace, &outer.Namespace},
		{&s.SandboxID, &outer.SandboxID},
		{&s.ContainerID, &outer.ContainerID},
		{&s.ExecID, &outer.ExecID},
	} {
		if *f.to == "" {
			*f.to = *f.from
		}
	}
	return Of(ctx, &s)
}

// Of is With for a subject that is not known in full yet: what is found out by those
// who have the context first is filled in, before anybody else gets it.
func Of(ctx context.Context, s *Subject) context.Context {
	return context.WithValue(ctx, key{}, s)
}

// From is what the work of a context is about.
func From(ctx context.Context) Subject {
	if s, ok := ctx.Value(key{}).(*Subject); ok {
		return *s
	}
	return Subject{}
}

// The keys of the log.
const (
	KeyNamespace   = "namespace"
	KeySandboxID   = "sandbox_id"
	KeyContainerID = "container_id"
	KeyExecID      = "exec_id"
)

// LogHook gives each line of a log, if it was written with a context, the fields of
// the subject. A field that the line has already stays.
type LogHook struct{}

var _ logrus.Hook = LogHook{}

// Levels are all.
func (LogHook) Levels() []logrus.Level { return logrus.AllLevels }

// Fire adds the fields.
func (LogHook) Fire(e *logrus.Entry) error {
	if e.Context == nil {
		return nil
	}
	s := From(e.Context)
	for _, f := range []struct{ key, value string }{
		{KeyNamespace, s.Namespace}, {KeySandboxID, s.SandboxID}, {KeyContainerID, s.ContainerID}, {KeyExecID, s.ExecID},
	} {
		if _, given := e.Data[f.key]; !given && f.value != "" {
			e.Data[f.key] = f.value
		}
	}
	return nil
}

// Attributes are those of a span; CRI's own are called the same.
func (s Subject) Attributes() []attribute.KeyValue {
	var all []attribute.KeyValue
	for _, a := range []attribute.KeyValue{
		attribute.String("namespace", s.Namespace), attribute.String("sandbox.id", s.SandboxID),
		attribute.String("container.id", s.ContainerID), attribute.String("exec.id", s.ExecID),
	} {
		if a.Value.AsString() != "" {
			all = append(all, a)
		}
	}
	return all
}
