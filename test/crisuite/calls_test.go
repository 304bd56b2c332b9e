package crisuite

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"caisson/test/daemon"
)

const (
	stateCreated = runtime.ContainerState_CONTAINER_CREATED
	stateRunning = runtime.ContainerState_CONTAINER_RUNNING
	stateExited  = runtime.ContainerState_CONTAINER_EXITED
)

// compare runs gather on every server: Caisson must give the answers that the
// reference gives, where nothing else says what is right.
func compare[T any](t *testing.T, gather func(t *testing.T, s *server) T, opts ...cmp.Option) {
	t.Helper()
	answers := map[string]T{}
	t.Parallel()
	eachAlone(t, func(t *testing.T, s *server) { answers[s.Name] = gather(t, s) })
	want, ok := answers[reference]
	if !ok {
		return // it failed, or only the others were asked for
	}
	for _, name := range []string{embedded, stock} {
		if got, ok := answers[name]; ok {
			if diff := cmp.Diff(want, got, append(opts, protocmp.Transform())...); diff != "" {
				t.Errorf("-%s +%s\n%s", reference, name, diff)
			}
		}
	}
}

// call is a method of CRI's clients.
type call[Req, Resp any] func(context.Context, Req, ...grpc.CallOption) (Resp, error)

// ask makes a call that must be answered.
func ask[Req, Resp any](s *server, call call[Req, Resp], req Req) Resp {
	s.t.Helper()
	resp, err := call(s.Host.Context(time.Minute), req)
	if err != nil {
		s.t.Fatalf("%T: %v", req, err)
	}
	return resp
}

// twice makes a call that must be answered, and once more.
func twice[Req, Resp any](s *server, call call[Req, Resp], req Req) {
	s.t.Helper()
	ask(s, call, req)
	ask(s, call, req)
}

// refuse makes a call that must be refused, and returns the code of the error.
func refuse[Req, Resp any](s *server, call call[Req, Resp], req Req) codes.Code {
	s.t.Helper()
	resp, err := call(s.Host.Context(time.Minute), req)
	if err == nil {
		s.t.Errorf("%T was not refused but answered: %v", req, resp)
	}
	return status.Code(err)
}

func equal(t *testing.T, what string, want, got any) {
	t.Helper()
	if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
		t.Errorf("%s: -want +got\n%s", what, diff)
	}
}

func (p *pod) status() *runtime.PodSandboxStatus {
	p.s.t.Helper()
	return ask(p.s, p.s.PodSandboxStatus, &runtime.PodSandboxStatusRequest{PodSandboxId: p.id}).Status
}

func (p *pod) stop() {
	p.s.t.Helper()
	ask(p.s, p.s.StopPodSandbox, &runtime.StopPodSandboxRequest{PodSandboxId: p.id})
}

func (p *pod) list() []*runtime.PodSandbox {
	p.s.t.Helper()
	return ask(p.s, p.s.ListPodSandbox, &runtime.ListPodSandboxRequest{Filter: &runtime.PodSandboxFilter{Id: p.id}}).Items
}

func (p *pod) containers() []*runtime.Container {
	p.s.t.Helper()
	return ask(p.s, p.s.ListContainers, &runtime.ListContainersRequest{Filter: &runtime.ContainerFilter{PodSandboxId: p.id}}).Containers
}

// create creates a container that runs a command of the shell.
func (p *pod) create(name, script string, change ...func(*runtime.ContainerConfig)) (id string) {
	p.s.t.Helper()
	return ask(p.s, p.s.CreateContainer, &runtime.CreateContainerRequest{
		PodSandboxId: p.id, Config: p.config(name, script, change...), SandboxConfig: p.cfg,
	}).ContainerId
}

// launch creates and starts a container.
func (p *pod) launch(name, script string, change ...func(*runtime.ContainerConfig)) (id string) {
	p.s.t.Helper()
	id = p.create(name, script, change...)
	p.s.startContainer(id)
	return id
}

func (s *server) startContainer(id string) {
	s.t.Helper()
	ask(s, s.StartContainer, &runtime.StartContainerRequest{ContainerId: id})
}

func (s *server) stopContainer(id string, timeout int64) {
	s.t.Helper()
	ask(s, s.StopContainer, &runtime.StopContainerRequest{ContainerId: id, Timeout: timeout})
}

func (s *server) removeContainer(id string) {
	s.t.Helper()
	ask(s, s.RemoveContainer, &runtime.RemoveContainerRequest{ContainerId: id})
}

// poll waits for what CRI gives no notice of.
func (s *server) poll(f func() error) {
	s.t.Helper()
	if err := daemon.Poll(s.Host.Context(time.Minute), 30*time.Second, f); err != nil {
		s.t.Fatal(err)
	}
}

// letters is text of a length that tells when a part of it is lost.
func letters(n int) string {
	text := make([]byte, 0, n+16)
	for i := 0; len(text) < n; i++ {
		text = fmt.Appendf(text, "%07d.", i)
	}
	return string(text[:n])
}

// text of a message as JSON is the same for the same content.
func text(m proto.Message) string {
	content, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(m)
	if err != nil {
		return err.Error()
	}
	var out bytes.Buffer
	if err := json.Compact(&out, content); err != nil { // protojson varies its spaces on purpose
		return err.Error()
	}
	return out.String()
}

func expectNotFound[Req, Resp any](s *server, call call[Req, Resp], req Req) {
	s.t.Helper()
	if code := refuse(s, call, req); code != codes.NotFound {
		s.t.Errorf("%T: code %s", req, code)
	}
}
