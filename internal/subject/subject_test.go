package subject

import (
	"bytes"
	"context"
	"encoding/json"
	"testing"

	"github.com/containerd/log"
	"github.com/google/go-cmp/cmp"
	"github.com/sirupsen/logrus"
)

func TestSubjectInTheLog(t *testing.T) {
	logger := logrus.New()
	var out bytes.Buffer
	logger.SetOutput(&out)
	logger.SetFormatter(&logrus.JSONFormatter{DisableTimestamp: true})
	logger.AddHook(LogHook{})
	entry := logrus.NewEntry(logger)
	line := func(e *logrus.Entry) map[string]string {
		t.Helper()
		out.Reset()
		e.Info("m")
		var got map[string]string
		if err := json.Unmarshal(out.Bytes(), &got); err != nil {
			t.Fatal(err)
		}
		return got
	}
	sandbox := With(context.Background(), Subject{Namespace: "n", SandboxID: "s"})
	exec := With(With(sandbox, Subject{ContainerID: "c"}), Subject{ExecID: "e"})
	for _, tc := range []struct {
		entry *logrus.Entry
		want  map[string]string
	}{
		{entry, map[string]string{}},
		{entry.WithContext(context.Background()), map[string]string{}},
		{entry.WithContext(sandbox), map[string]string{"namespace": "n", "sandbox_id": "s"}},
		{entry.WithContext(exec), map[string]string{"namespace": "n", "sandbox_id": "s", "container_id": "c", "exec_id": "e"}},
		{entry.WithContext(exec).WithField("container_id", "other"), map[string]string{"namespace": "n", "sandbox_id": "s", "container_id": "other", "exec_id": "e"}},
	} {
		tc.want["level"], tc.want["msg"] = "info", "m"
		if diff := cmp.Diff(tc.want, line(tc.entry)); diff != "" {
			t.Error(diff)
		}
	}
	if log.G(exec).Context != exec {
		t.Error("containerd's logger does not know the context that it was asked for")
	}
	if entry.Data["namespace"] != nil {
		t.Error("the entry itself was changed")
	}
}

func TestAttributes(t *testing.T) {
	if got := (Subject{}).Attributes(); got != nil {
		t.Errorf("of nothing: %v", got)
	}
	got := Subject{SandboxID: "s", ExecID: "e"}.Attributes()
	if len(got) != 2 || got[0].Key != "sandbox.id" || got[1].Value.AsString() != "e" {
		t.Errorf("got %v", got)
	}
}

func BenchmarkWith(b *testing.B) {
	ctx := context.Background()
	b.ReportAllocs()
	for b.Loop() {
		With(ctx, Subject{Namespace: "n", SandboxID: "s", ContainerID: "c"})
	}
}
