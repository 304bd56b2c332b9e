package engine

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	api "github.com/containerd/containerd/api/services/sandbox/v1"
	containerd "github.com/containerd/containerd/v2/client"
	srvconfig "github.com/containerd/containerd/v2/cmd/containerd/server/config"
	"github.com/containerd/containerd/v2/core/sandbox/proxy"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/ttrpc"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// A process starts one engine in its life, and the tests kill it: it runs in
// the re-executed test binary, which gets its configuration in this variable.
const childEnv = "CAISSON_TEST_ENGINE"

func TestMain(m *testing.M) {
	if doc := os.Getenv(childEnv); doc != "" {
		os.Exit(child(doc))
	}
	os.Exit(m.Run())
}

// child runs an engine until its standard input ends.
func child(doc string) int {
	var cfg Config
	if err := json.Unmarshal([]byte(doc), &cfg); err != nil {
		os.Stdout.WriteString(err.Error() + "\n")
		return 1
	}
	conn, err := grpc.NewClient("unix:"+sandboxerSocket(cfg), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		os.Stdout.WriteString(err.Error() + "\n")
		return 1
	}
	defer conn.Close() //nolint:errcheck // nothing is lost
	cfg.Sandboxes = proxy.NewSandboxController(api.NewControllerClient(conn), Sandboxer)
	e, err := Start(context.Background(), cfg)
	if err != nil {
		os.Stdout.WriteString(err.Error() + "\n")
		return 1
	}
	if _, err := Start(context.Background(), cfg); !errdefs.IsFailedPrecondition(err) {
		os.Stdout.WriteString("a second engine: " + errors.Join(err).Error() + "\n")
		return 1
	}
	os.Stdout.WriteString("ready\n")
	_, _ = io.Copy(io.Discard, os.Stdin) // ends with the pipe
	e.Stop()
	e.Stop()
	<-e.Done()
	return 0
}

// process is a running child.
type process struct {
	t     *testing.T
	cmd   *exec.Cmd
	stdin io.WriteCloser
	log   *os.File
}

func startEngine(t *testing.T, cfg Config) *process {
	t.Helper()
	doc, err := json.Marshal(cfg)
	if err != nil {
		t.Fatal(err)
	}
	logFile, err := os.CreateTemp(t.TempDir(), "log")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+string(doc))
	cmd.Stderr = logFile
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p := &process{t: t, cmd: cmd, stdin: stdin, log: logFile}
	t.Cleanup(func() {
		if cmd.ProcessState == nil {
			_ = cmd.Process.Kill() // it may be gone
			_ = cmd.Wait()
		}
		_ = logFile.Close()
	})
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if strings.TrimSpace(line) != "ready" {
		t.Fatalf("engine: %q, %v\n%s", line, err, p.output())
	}
	return p
}

func (p *process) output() string {
	data, err := os.ReadFile(p.log.Name())
	if err != nil {
		return err.Error()
	}
	return string(data)
}

// end stops the engine cleanly.
func (p *process) end() {
	p.t.Helper()
	_ = p.stdin.Close()
	timer := time.AfterFunc(10*time.Second, func() { _ = p.cmd.Process.Signal(syscall.SIGQUIT) })
	defer timer.Stop()
	if err := p.cmd.Wait(); err != nil {
		p.t.Fatalf("clean stop: %v\n%s", err, p.output())
	}
}

func (p *process) kill() {
	p.t.Helper()
	if err := p.cmd.Process.Kill(); err != nil {
		p.t.Fatal(err)
	}
	_ = p.cmd.Wait() // reports the kill
}

// sandboxer is a controller that refuses, and remembers what it was asked.
type sandboxer struct {
	api.UnimplementedControllerServer
	mu      sync.Mutex
	created *api.ControllerCreateRequest
}

func (s *sandboxer) Create(_ context.Context, req *api.ControllerCreateRequest) (*api.ControllerCreateResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.created = req
	return nil, status.Error(codes.ResourceExhausted, "no room in the test")
}

func (s *sandboxer) Status(_ context.Context, req *api.ControllerStatusRequest) (*api.ControllerStatusResponse, error) {
	if req.GetSandboxID() != "known" {
		return nil, status.Error(codes.NotFound, "no such sandbox")
	}
	return &api.ControllerStatusResponse{SandboxID: "known", Pid: 4711, State: "SANDBOX_READY"}, nil
}

// sandboxerSocket is where the child reaches the test's sandboxer.
func sandboxerSocket(cfg Config) string { return filepath.Join(cfg.State, "sandboxer.sock") }

func testConfig(t *testing.T) (Config, *sandboxer) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("containerd's core needs root")
	}
	base, err := os.MkdirTemp("", "c") // socket paths must stay short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(base); err != nil {
			t.Error(err)
		}
	})
	cfg := Config{
		Root: filepath.Join(base, "root"), State: filepath.Join(base, "state"),
		CNIConfDir: filepath.Join(base, "cni"),
	}
	for _, dir := range []string{cfg.Root, cfg.State} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	cfg.Address = filepath.Join(cfg.State, "api.sock")
	cfg.ShimSocket = filepath.Join(cfg.State, "shim.sock")

	l, err := net.Listen("unix", sandboxerSocket(cfg))
	if err != nil {
		t.Fatal(err)
	}
	sb := &sandboxer{}
	srv := grpc.NewServer()
	api.RegisterControllerServer(srv, sb)
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()
	t.Cleanup(func() {
		srv.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return cfg, sb
}

func testContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(namespaces.WithNamespace(context.Background(), "test"), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func TestEngineServes(t *testing.T) {
	cfg, sb := testConfig(t)
	ctx := testContext(t)
	p := startEngine(t, cfg)

	client, err := containerd.New(cfg.Address)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close() //nolint:errcheck // nothing is lost
	v, err := client.Version(ctx)
	if err != nil || !strings.HasPrefix(v.Version, "2.") {
		t.Fatalf("version %+v, %v", v, err)
	}

	// The API's controller service must reach the sandboxer, errors' classes included.
	ctl := client.SandboxController(Sandboxer)
	st, err := ctl.Status(ctx, "known", false)
	if err != nil || st.Pid != 4711 {
		t.Fatalf("status through the engine: %+v, %v", st, err)
	}
	if _, err := ctl.Status(ctx, "unknown", false); !errdefs.IsNotFound(err) {
		t.Fatalf("status of an unknown sandbox: %v", err)
	}

	testCRI(ctx, t, cfg, sb)
	testTTRPC(t, cfg)

	p.end()
	for _, sock := range []string{cfg.Address, cfg.Address + ".ttrpc"} {
		if _, err := os.Lstat(sock); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is left: %v", sock, err)
		}
	}
	if out := p.output(); strings.Contains(out, "level=fatal") || strings.Contains(out, "panic") {
		t.Errorf("log of a clean life:\n%s", out)
	}
}

func testCRI(ctx context.Context, t *testing.T, cfg Config, sb *sandboxer) {
	t.Helper()
	conn, err := grpc.NewClient("unix:"+cfg.Address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close() //nolint:errcheck // nothing is lost
	rt := cri.NewRuntimeServiceClient(conn)
	if v, err := rt.Version(ctx, &cri.VersionRequest{}); err != nil || v.GetRuntimeApiVersion() != "v1" {
		t.Fatalf("CRI version %v, %v", v, err)
	}
	st, err := rt.Status(ctx, &cri.StatusRequest{Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	var handlers []string
	for _, h := range st.GetRuntimeHandlers() {
		handlers = append(handlers, h.GetName())
	}
	if !strings.Contains(strings.Join(handlers, " "), Sandboxer) {
		t.Fatalf("runtime handlers are %q", handlers)
	}
	for _, c := range st.GetStatus().GetConditions() {
		if c.GetType() == "RuntimeReady" && !c.GetStatus() {
			t.Fatalf("CRI is not ready: %v", c)
		}
	}

	// The default handler must be the sandboxer, without a pause image.
	pod := &cri.PodSandboxConfig{
		Metadata: &cri.PodSandboxMetadata{Name: "p", Namespace: "n", Uid: "u"},
		Linux: &cri.LinuxPodSandboxConfig{SecurityContext: &cri.LinuxSandboxSecurityContext{
			NamespaceOptions: &cri.NamespaceOption{Network: cri.NamespaceMode_NODE},
		}},
	}
	_, err = rt.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: pod})
	if err == nil || !strings.Contains(err.Error(), "no room in the test") {
		t.Fatalf("RunPodSandbox: %v", err)
	}
	sb.mu.Lock()
	defer sb.mu.Unlock()
	if got := sb.created.GetSandbox().GetRuntime(); got.GetName() != RuntimeType || got.GetOptions() != nil {
		t.Fatalf("sandbox created with runtime %v", got)
	}
	if got := sb.created.GetOptions().GetTypeUrl(); !strings.HasSuffix(got, "runtime.v1.PodSandboxConfig") {
		t.Fatalf("sandbox created with options %q", got)
	}
}

func testTTRPC(t *testing.T, cfg Config) {
	t.Helper()
	conn, err := net.Dial("unix", cfg.Address+".ttrpc")
	if err != nil {
		t.Fatal(err)
	}
	client := ttrpc.NewClient(conn)
	defer client.Close() //nolint:errcheck // nothing is lost
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	err = client.Call(ctx, "containerd.services.events.ttrpc.v1.Events", "Nothing", &cri.VersionRequest{}, &cri.VersionResponse{})
	if status.Code(err) != codes.Unimplemented {
		t.Fatalf("unknown method of the ttrpc event service: %v", err)
	}
}

func TestEngineSurvivesKill(t *testing.T) {
	cfg, _ := testConfig(t)
	ctx := testContext(t)
	// The machine may lack overlayfs; the native snapshotter always works.
	cfg.Passthrough = map[string]any{"plugins": map[string]any{pluginImages: map[string]any{"snapshotter": "native"}}}

	p := startEngine(t, cfg)
	client, err := containerd.New(cfg.Address)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close() //nolint:errcheck // nothing is lost
	if err := client.NamespaceService().Create(ctx, "kept", map[string]string{"a": "b"}); err != nil {
		t.Fatal(err)
	}
	p.kill()

	p = startEngine(t, cfg)
	again, err := containerd.New(cfg.Address)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close() //nolint:errcheck // nothing is lost
	labels, err := again.NamespaceService().Labels(ctx, "kept")
	if err != nil || labels["a"] != "b" {
		t.Fatalf("namespace after the kill: %v, %v", labels, err)
	}
	p.end()
}

// TestCloseToGroup: root's group loses what containerd gives it, a chosen one keeps it.
func TestCloseToGroup(t *testing.T) {
	for name, test := range map[string]struct {
		gid  any
		want os.FileMode
	}{"not said": {nil, 0o600}, "root's": {int64(0), 0o600}, "chosen": {int64(1000), 0o660}} {
		t.Run(name, func(t *testing.T) {
			plugins := table{}
			for _, id := range []string{pluginGRPC, pluginTTRPC} {
				own := table{"address": filepath.Join(t.TempDir(), "sock")}
				if test.gid != nil {
					own["gid"] = test.gid
				}
				plugins[id] = own
				path := own["address"].(string)
				if err := errors.Join(os.WriteFile(path, nil, 0o600), os.Chmod(path, 0o660)); err != nil {
					t.Fatal(err)
				}
			}
			if err := closeToGroup(&srvconfig.Config{Plugins: plugins}); err != nil {
				t.Fatal(err)
			}
			for id, own := range plugins {
				info, err := os.Stat(own.(table)["address"].(string))
				if err != nil || info.Mode().Perm() != test.want {
					t.Errorf("%s: %v, %v", id, info.Mode(), err)
				}
			}
		})
	}
	missing := table{pluginGRPC: table{"address": filepath.Join(t.TempDir(), "none")}}
	if err := closeToGroup(&srvconfig.Config{Plugins: missing}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a socket that is not there: %v", err)
	}
}
