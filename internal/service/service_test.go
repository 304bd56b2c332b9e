package service

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	runtimeapi "github.com/containerd/containerd/api/runtime/sandbox/v1"
	api "github.com/containerd/containerd/api/services/sandbox/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/containerd/v2/core/sandbox/proxy"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/ttrpc"
	"github.com/containerd/typeurl/v2"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"caisson/internal/request"
)

// server is both servers on real sockets, and clients of them.
type server struct {
	grpc  *grpc.ClientConn
	ttrpc *ttrpc.Client
	dir   string
	stop  func() // ends the servers and checks what they return
}

func serve(t *testing.T, ctl sandbox.Controller, store sandbox.Store) server {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("the sockets are for root only")
	}
	s := server{dir: shortDir(t)}
	ctx, cancel := context.WithCancel(context.Background())
	gl, tl := listen(t, s.dir+"/g"), listen(t, s.dir+"/t")
	done := make(chan error, 2)
	go func() { done <- ServeGRPC(ctx, gl, ctl, store, Observe{}) }()
	go func() { done <- ServeTTRPC(ctx, tl, ctl, Observe{}) }()
	stopped := false
	s.stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := errors.Join(<-done, <-done); err != nil {
			t.Error(err)
		}
	}
	var err error
	if s.grpc, err = grpc.NewClient("unix:"+s.dir+"/g", grpc.WithTransportCredentials(insecure.NewCredentials())); err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("unix", s.dir+"/t")
	if err != nil {
		t.Fatal(err)
	}
	s.ttrpc = ttrpc.NewClient(conn)
	t.Cleanup(func() {
		_ = s.grpc.Close()  // nothing is lost
		_ = s.ttrpc.Close() // likewise
		s.stop()
	})
	return s
}

// shortDir is a directory whose sockets stay below the limit.
func shortDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "c")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func listen(t *testing.T, path string) net.Listener {
	t.Helper()
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func testContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(namespaces.WithNamespace(context.Background(), "ns1"), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func fullSandbox() sandbox.Sandbox {
	return sandbox.Sandbox{
		ID:         "sb1",
		Labels:     map[string]string{"l": "v"},
		Runtime:    sandbox.RuntimeOpts{Name: "io.containerd.caisson.v2", Options: &anypb.Any{TypeUrl: "o", Value: []byte("1")}},
		Spec:       &anypb.Any{TypeUrl: "s", Value: []byte("2")},
		Sandboxer:  "caisson",
		CreatedAt:  created,
		UpdatedAt:  exited,
		Extensions: map[string]typeurl.Any{"e": &anypb.Any{TypeUrl: "x", Value: []byte("3")}},
	}
}

// TestStartSandboxAgain: the answer to a start that an earlier daemon has done is whole.
func TestStartSandboxAgain(t *testing.T) {
	fake := &fakeController{inst: sandbox.ControllerInstance{
		SandboxID: "sb1", Pid: 7, CreatedAt: created, Spec: &anypb.Any{TypeUrl: "spec", Value: []byte("{}")},
	}}
	var done error
	s := &runtimeService{controller: controllerService{ctl: fake}, started: func(context.Context, string) (sandbox.ControllerInstance, error) {
		return fake.inst, done
	}}
	start := func(again bool) (*runtimeapi.StartSandboxResponse, error) {
		ctx := request.With(testContext(t), request.New("r", again, nil, nil))
		return s.StartSandbox(ctx, &runtimeapi.StartSandboxRequest{SandboxID: "sb1"})
	}
	first, err := start(false)
	if err != nil {
		t.Fatal(err)
	}
	fake.fail(errdefs.ErrFailedPrecondition)
	if second, err := start(true); err != nil || !proto.Equal(second, first) || second.GetSpec().GetTypeUrl() != "spec" {
		t.Errorf("%v, %v; at first %v", second, err, first)
	}
	if _, err := start(false); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("another request: %v", err)
	}
	done = errdefs.ErrNotFound
	if _, err := start(true); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("of what does not run: %v", err)
	}
}

func TestControllerThroughContainerdsProxy(t *testing.T) {
	fake := &fakeController{
		inst: sandbox.ControllerInstance{
			SandboxID: "sb1", Pid: 7, CreatedAt: created, Address: "ttrpc+unix:///a", Version: 3,
			Labels: map[string]string{"a": "b"}, Spec: &anypb.Any{TypeUrl: "spec", Value: []byte("{}")},
		},
		status: sandbox.ControllerStatus{
			SandboxID: "sb1", Pid: 7, State: "SANDBOX_READY", Info: map[string]string{"k": "v"}, CreatedAt: created,
			Extra: &anypb.Any{TypeUrl: "extra"}, Address: "ttrpc+unix:///a", Version: 3,
		},
		exit:   sandbox.ExitStatus{ExitStatus: 9, ExitedAt: exited},
		metric: &types.Metric{ID: "sb1", Timestamp: timestamppb.New(created)},
	}
	s := serve(t, fake, &fakeStore{})
	ctl := proxy.NewSandboxController(api.NewControllerClient(s.grpc), "caisson")
	ctx := testContext(t)
	opts := cmp.Options{protocmp.Transform()}
	check := func(what string, err error, got, want any, asked call) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if diff := cmp.Diff(want, got, opts); diff != "" {
			t.Errorf("%s answers: %s", what, diff)
		}
		asked.Verb, asked.Namespace, asked.ID = what, "ns1", "sb1"
		if diff := cmp.Diff(asked, fake.last(), opts); diff != "" {
			t.Errorf("%s asks: %s", what, diff)
		}
	}

	options := &anypb.Any{TypeUrl: "runtime.v1.PodSandboxConfig", Value: []byte("pod")}
	err := ctl.Create(ctx, fullSandbox(),
		sandbox.WithOptions(options), sandbox.WithNetNSPath("/n"), sandbox.WithAnnotations(map[string]string{"a": "1"}),
		sandbox.WithRootFS([]mount.Mount{{Type: "bind", Source: "/s", Target: "/t", Options: []string{"ro"}}}))
	check("Create", err, nil, nil, call{Sandbox: fullSandbox(), Create: sandbox.CreateOptions{
		Options: options, NetNSPath: "/n", Annotations: map[string]string{"a": "1"},
		Rootfs: []mount.Mount{{Type: "bind", Source: "/s", Target: "/t", Options: []string{"ro"}}},
	}})
	inst, err := ctl.Start(ctx, "sb1")
	check("Start", err, inst, fake.inst, call{})
	p, err := ctl.Platform(ctx, "sb1")
	check("Platform", err, p.OS+p.Architecture+p.Variant, "linuxamd64v3", call{})
	st, err := ctl.Status(ctx, "sb1", true)
	check("Status", err, st, fake.status, call{Verbose: true})
	if !st.ExitedAt.IsZero() {
		t.Errorf("a sandbox that runs exited at %v", st.ExitedAt)
	}
	exit, err := ctl.Wait(ctx, "sb1")
	check("Wait", err, exit, fake.exit, call{})
	m, err := ctl.Metrics(ctx, "sb1")
	check("Metrics", err, m, fake.metric, call{})
	check("Update", ctl.Update(ctx, "sb1", fullSandbox(), "labels", "extensions.e"), nil, nil,
		call{Sandbox: fullSandbox(), Fields: []string{"labels", "extensions.e"}})
	timeout := 5 * time.Second
	check("Stop", ctl.Stop(ctx, "sb1", sandbox.WithTimeout(timeout)), nil, nil, call{Stop: sandbox.StopOptions{Timeout: &timeout}})
	check("Stop", ctl.Stop(ctx, "sb1"), nil, nil, call{})
	check("Shutdown", ctl.Shutdown(ctx, "sb1"), nil, nil, call{})
}

func TestStoreThroughContainerdsProxy(t *testing.T) {
	store := &fakeStore{}
	s := serve(t, &fakeController{}, store)
	client := proxy.NewSandboxStore(api.NewStoreClient(s.grpc))
	ctx := testContext(t)
	want := fullSandbox()
	for name, do := range map[string]func() (sandbox.Sandbox, error){
		"create": func() (sandbox.Sandbox, error) { return client.Create(ctx, want) },
		"get":    func() (sandbox.Sandbox, error) { return client.Get(ctx, "sb1") },
		"update": func() (sandbox.Sandbox, error) { return client.Update(ctx, want, "labels.l") },
	} {
		if name != "create" {
			store.records = map[string]sandbox.Sandbox{"ns1/sb1": want}
		} else {
			store.records = nil
		}
		got, err := do()
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
	if diff := cmp.Diff([]string{"labels.l"}, store.fields); diff != "" {
		t.Error(diff)
	}
	if list, err := client.List(ctx); err != nil || len(list) != 1 || list[0].ID != "sb1" {
		t.Fatalf("list: %v, %v", list, err)
	}
	if _, err := client.Create(ctx, want); !errdefs.IsAlreadyExists(err) {
		t.Fatalf("create again: %v", err)
	}
	if err := client.Delete(ctx, "sb1"); err != nil {
		t.Fatal(err)
	}
	if err := client.Delete(ctx, "sb1"); !errdefs.IsNotFound(err) {
		t.Fatalf("delete again: %v", err)
	}
}

func TestErrorClassesSurviveTheWire(t *testing.T) {
	fake := &fakeController{}
	s := serve(t, fake, &fakeStore{})
	ctx := testContext(t)
	overGRPC := proxy.NewSandboxController(api.NewControllerClient(s.grpc), "caisson")
	overTTRPC := runtimeapi.NewTTRPCSandboxClient(s.ttrpc)
	for _, class := range []error{
		errdefs.ErrInvalidArgument, errdefs.ErrNotFound, errdefs.ErrAlreadyExists, errdefs.ErrPermissionDenied,
		errdefs.ErrResourceExhausted, errdefs.ErrFailedPrecondition, errdefs.ErrAborted, errdefs.ErrOutOfRange,
		errdefs.ErrNotImplemented, errdefs.ErrInternal, errdefs.ErrUnavailable, errdefs.ErrDataLoss,
		context.DeadlineExceeded, context.Canceled,
	} {
		fake.fail(fmt.Errorf("sandbox %q: verb: %w", "sb1", class))
		if _, err := overGRPC.Status(ctx, "sb1", false); !errors.Is(err, class) {
			t.Errorf("%v became %v over gRPC", class, err)
		}
		_, err := overTTRPC.SandboxStatus(ctx, &runtimeapi.SandboxStatusRequest{SandboxID: "sb1"})
		if err = errgrpc.ToNative(err); !errors.Is(err, class) {
			t.Errorf("%v became %v over ttrpc", class, err)
		}
	}
	fake.fail(errors.New("no class"))
	if _, err := overGRPC.Status(ctx, "sb1", false); err == nil || !errdefs.IsUnknown(err) {
		t.Errorf("an unclassified error became %v", err)
	}
}

func TestNamespaceIsRequired(t *testing.T) {
	fake := &fakeController{}
	s := serve(t, fake, &fakeStore{})
	for ns, class := range map[string]error{"": errdefs.ErrFailedPrecondition, "a/b": errdefs.ErrInvalidArgument} {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if ns != "" {
			ctx = namespaces.WithNamespace(ctx, ns)
		}
		_, err := api.NewControllerClient(s.grpc).Status(ctx, &api.ControllerStatusRequest{SandboxID: "sb1"})
		if err := errgrpc.ToNative(err); !errors.Is(err, class) {
			t.Errorf("namespace %q over gRPC: %v", ns, err)
		}
		_, err = runtimeapi.NewTTRPCSandboxClient(s.ttrpc).PingSandbox(ctx, &runtimeapi.PingRequest{SandboxID: "sb1"})
		if err := errgrpc.ToNative(err); !errors.Is(err, class) {
			t.Errorf("namespace %q over ttrpc: %v", ns, err)
		}
	}
	if len(fake.calls) > 0 {
		t.Errorf("calls without a namespace went through: %v", fake.calls)
	}
}

// Requests with nothing in them reach every method: none may be unimplemented,
// and none may panic.
func TestEveryMethodIsImplemented(t *testing.T) {
	s := serve(t, &fakeController{}, &fakeStore{})
	ctx := testContext(t)
	for _, service := range []struct {
		file  protoreflect.FileDescriptor
		ttrpc bool
	}{
		{api.File_services_sandbox_v1_sandbox_proto, false},
		{runtimeapi.File_runtime_sandbox_v1_sandbox_proto, true},
	} {
		for i := range service.file.Services().Len() {
			desc := service.file.Services().Get(i)
			for j := range desc.Methods().Len() {
				m := desc.Methods().Get(j)
				in, out := message(t, m.Input()), message(t, m.Output())
				err := s.grpc.Invoke(ctx, fmt.Sprintf("/%s/%s", desc.FullName(), m.Name()), in, out)
				checkImplemented(t, m.FullName(), "gRPC", err)
				if service.ttrpc {
					err := s.ttrpc.Call(ctx, string(desc.FullName()), string(m.Name()), in, out)
					checkImplemented(t, m.FullName(), "ttrpc", err)
				}
			}
		}
	}
}

func message(t *testing.T, desc protoreflect.MessageDescriptor) proto.Message {
	t.Helper()
	mt, err := protoregistry.GlobalTypes.FindMessageByName(desc.FullName())
	if err != nil {
		t.Fatal(err)
	}
	return mt.New().Interface()
}

func checkImplemented(t *testing.T, method protoreflect.FullName, over string, err error) {
	t.Helper()
	switch status.Code(err) {
	case codes.OK, codes.InvalidArgument, codes.NotFound:
	default:
		t.Errorf("%s over %s: %v", method, over, err)
	}
}

func TestRuntimeServiceOverBothTransports(t *testing.T) {
	fake := &fakeController{
		inst:   sandbox.ControllerInstance{Pid: 7, CreatedAt: created},
		status: sandbox.ControllerStatus{SandboxID: "sb1", Pid: 7, State: "SANDBOX_READY", CreatedAt: created},
		exit:   sandbox.ExitStatus{ExitStatus: 3, ExitedAt: exited},
	}
	s := serve(t, fake, &fakeStore{})
	ctx := testContext(t)
	grpcClient := runtimeapi.NewSandboxClient(s.grpc)
	ttrpcClient := runtimeapi.NewTTRPCSandboxClient(s.ttrpc)
	create := &runtimeapi.CreateSandboxRequest{SandboxID: "sb1", NetnsPath: "/n", Annotations: map[string]string{"a": "b"}}
	want := call{Verb: "Create", Namespace: "ns1", ID: "sb1", Sandbox: sandbox.Sandbox{ID: "sb1"},
		Create: sandbox.CreateOptions{NetNSPath: "/n", Annotations: map[string]string{"a": "b"}}}
	if _, err := grpcClient.CreateSandbox(ctx, create); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, fake.last()); diff != "" {
		t.Error(diff)
	}
	if _, err := ttrpcClient.CreateSandbox(ctx, create); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, fake.last()); diff != "" {
		t.Error(diff)
	}
	if r, err := ttrpcClient.StartSandbox(ctx, &runtimeapi.StartSandboxRequest{SandboxID: "sb1"}); err != nil || r.GetPid() != 7 {
		t.Errorf("start: %v, %v", r, err)
	}
	if r, err := ttrpcClient.WaitSandbox(ctx, &runtimeapi.WaitSandboxRequest{SandboxID: "sb1"}); err != nil || r.GetExitStatus() != 3 {
		t.Errorf("wait: %v, %v", r, err)
	}
	if r, err := grpcClient.SandboxStatus(ctx, &runtimeapi.SandboxStatusRequest{SandboxID: "sb1"}); err != nil || r.GetState() != "SANDBOX_READY" {
		t.Errorf("status: %v, %v", r, err)
	}
	if _, err := ttrpcClient.PingSandbox(ctx, &runtimeapi.PingRequest{SandboxID: "sb1"}); err != nil {
		t.Errorf("ping: %v", err)
	}
	fake.fail(errdefs.ErrNotFound)
	if _, err := ttrpcClient.PingSandbox(ctx, &runtimeapi.PingRequest{SandboxID: "sb1"}); !errdefs.IsNotFound(errgrpc.ToNative(err)) {
		t.Errorf("ping of an unknown sandbox: %v", err)
	}
}

func TestIDAndRecordMustAgree(t *testing.T) {
	s := serve(t, &fakeController{}, &fakeStore{})
	client := api.NewControllerClient(s.grpc)
	ctx := testContext(t)
	_, err := client.Create(ctx, &api.ControllerCreateRequest{SandboxID: "a", Sandbox: &types.Sandbox{SandboxID: "b"}})
	if !errdefs.IsInvalidArgument(errgrpc.ToNative(err)) {
		t.Errorf("create: %v", err)
	}
	_, err = client.Update(ctx, &api.ControllerUpdateRequest{SandboxID: "a", Sandbox: &types.Sandbox{SandboxID: "b"}})
	if !errdefs.IsInvalidArgument(errgrpc.ToNative(err)) {
		t.Errorf("update: %v", err)
	}
}

func TestConversionOfHoles(t *testing.T) {
	sb := sandboxFromProto(&types.Sandbox{SandboxID: "a", Extensions: map[string]*anypb.Any{"nil": nil}})
	if diff := cmp.Diff(sandbox.Sandbox{ID: "a"}, sb); diff != "" {
		t.Error(diff)
	}
	if sb.Spec != nil || sb.Runtime.Options != nil {
		t.Error("a missing Any became an interface that is not nil")
	}
	if diff := cmp.Diff(sandbox.Sandbox{}, sandboxFromProto(nil)); diff != "" {
		t.Error(diff)
	}
}

func FuzzSandboxFromProto(f *testing.F) {
	sb := fullSandbox()
	seed, err := proto.Marshal(sandbox.ToProto(&sb))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(seed)
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		var pb types.Sandbox
		if proto.Unmarshal(data, &pb) != nil {
			return
		}
		sb := sandboxFromProto(&pb)
		again := sandboxFromProto(sandbox.ToProto(&sb))
		if diff := cmp.Diff(sb, again, protocmp.Transform()); diff != "" {
			t.Fatal(diff)
		}
	})
}

// A wait in flight must not keep a server from stopping, and must end for its
// client with a broken connection.
func TestStopCutsWaitsOff(t *testing.T) {
	fake := &fakeController{waiting: make(chan struct{})}
	s := serve(t, fake, &fakeStore{})
	ctx := testContext(t)
	grpcErr, ttrpcErr := make(chan error, 1), make(chan error, 1)
	go func() {
		_, err := api.NewControllerClient(s.grpc).Wait(ctx, &api.ControllerWaitRequest{SandboxID: "sb1"})
		grpcErr <- err
	}()
	go func() {
		_, err := runtimeapi.NewTTRPCSandboxClient(s.ttrpc).WaitSandbox(ctx, &runtimeapi.WaitSandboxRequest{SandboxID: "sb1"})
		ttrpcErr <- err
	}()
	<-fake.waiting
	<-fake.waiting
	s.stop()
	if err := <-grpcErr; status.Code(err) != codes.Unavailable {
		t.Errorf("the wait over gRPC ended with %v", err)
	}
	if err := <-ttrpcErr; !errors.Is(err, ttrpc.ErrClosed) {
		t.Errorf("the wait over ttrpc ended with %v", err)
	}
}

func TestListen(t *testing.T) {
	path := filepath.Join(shortDir(t), "s")
	l := listen(t, path)
	st, err := os.Stat(path)
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Fatalf("socket: %v, %v", st, err)
	}
	// As after a kill: the file stays, nobody listens.
	l.(rootOnly).Listener.(*net.UnixListener).SetUnlinkOnClose(false)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := listen(t, path).Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(path); err == nil {
		t.Fatal("a file was replaced by a socket")
	}
}
