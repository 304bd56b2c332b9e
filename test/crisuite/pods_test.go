package crisuite

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// pod is one that runs, with its configuration.
type pod struct {
	s   *server
	cfg *runtime.PodSandboxConfig
	id  string
}

// pod runs a pod with a network of its own, changed by what the spec is about.
func (s *server) pod(change ...func(*runtime.PodSandboxConfig)) *pod {
	s.t.Helper()
	cfg := s.PodConfig(runtime.NamespaceMode_POD)
	for _, f := range change {
		f(cfg)
	}
	return &pod{s: s, cfg: cfg, id: s.RunPod(cfg)}
}

// run is a subtest that uses the pod.
func (p *pod) run(name string, spec func(t *testing.T, p *pod)) {
	p.s.t.Helper()
	p.s.t.Run(name, func(t *testing.T) { spec(t, &pod{s: use(t, p.s.Name), cfg: p.cfg, id: p.id}) })
}

// config is that of a container of the pod as kubelet makes it.
func (p *pod) config(name, script string, change ...func(*runtime.ContainerConfig)) *runtime.ContainerConfig {
	p.s.t.Helper()
	cfg := p.s.container(name, script)
	cfg.Linux.SecurityContext.NamespaceOptions = proto.Clone(p.cfg.Linux.SecurityContext.NamespaceOptions).(*runtime.NamespaceOption)
	for _, f := range change {
		f(cfg)
	}
	return cfg
}

// start runs a container. An error is that of its creation or of its start.
func (p *pod) start(cfg *runtime.ContainerConfig) (id string, err error) {
	p.s.t.Helper()
	created, err := p.s.CreateContainer(p.s.Host.Context(time.Minute), &runtime.CreateContainerRequest{
		PodSandboxId: p.id, Config: cfg, SandboxConfig: p.cfg,
	})
	if err != nil {
		return "", fmt.Errorf("CreateContainer: %w", err)
	}
	if _, err := p.s.StartContainer(p.s.Host.Context(time.Minute), &runtime.StartContainerRequest{ContainerId: created.ContainerId}); err != nil {
		return created.ContainerId, fmt.Errorf("StartContainer: %w", err)
	}
	return created.ContainerId, nil
}

// sleeper runs a container that does nothing until it is stopped.
func (p *pod) sleeper(name string, change ...func(*runtime.ContainerConfig)) (id string) {
	p.s.t.Helper()
	cfg := p.config(name, "", change...)
	cfg.Command = []string{"sleep", "1000"}
	id, err := p.start(cfg)
	if err != nil {
		p.s.t.Fatal(err)
	}
	return id
}

// security changes a container's security context.
func security(change func(*runtime.LinuxContainerSecurityContext)) func(*runtime.ContainerConfig) {
	return func(cfg *runtime.ContainerConfig) { change(cfg.Linux.SecurityContext) }
}

// privilegedPod is one that may have privileged containers.
func privilegedPod(cfg *runtime.PodSandboxConfig) { cfg.Linux.SecurityContext.Privileged = true }

// namespaces changes the namespace options of a pod.
func namespaces(change func(*runtime.NamespaceOption)) func(*runtime.PodSandboxConfig) {
	return func(cfg *runtime.PodSandboxConfig) {
		options := cfg.Linux.SecurityContext.NamespaceOptions
		change(options)
		if options.Network == runtime.NamespaceMode_NODE {
			cfg.Hostname = ""
		}
	}
}

// exec runs a program in a container that need not succeed.
func (s *server) exec(containerID string, command ...string) *runtime.ExecSyncResponse {
	s.t.Helper()
	resp, err := s.ExecSync(s.Host.Context(30*time.Second), &runtime.ExecSyncRequest{ContainerId: containerID, Cmd: command, Timeout: 20})
	if err != nil {
		s.t.Fatalf("ExecSync %q: %v", command, err)
	}
	return resp
}

// expect runs a command of the shell in a container and compares what it prints.
func (s *server) expect(containerID, script, want string) {
	s.t.Helper()
	if got := s.Shell(containerID, script); got != want {
		s.t.Errorf("%s: got %q, want %q", script, got, want)
	}
}

// refused runs a program that must fail, and say so.
func (s *server) refused(containerID, message string, command ...string) {
	s.t.Helper()
	resp := s.exec(containerID, command...)
	if resp.ExitCode == 0 || !strings.Contains(string(resp.Stderr), message) {
		s.t.Errorf("%q: got %v, want a failure: %s", command, resp, message)
	}
}

// status is a container's.
func (s *server) status(containerID string) *runtime.ContainerStatus {
	s.t.Helper()
	resp, err := s.ContainerStatus(s.Host.Context(time.Minute), &runtime.ContainerStatusRequest{ContainerId: containerID})
	if err != nil {
		s.t.Fatalf("ContainerStatus: %v", err)
	}
	return resp.Status
}

// proc is a file of /proc of a container's first process, read outside of it.
func (s *server) proc(containerID, file string) string {
	s.t.Helper()
	content, err := os.ReadFile(filepath.Join("/proc", fmt.Sprint(s.pid(containerID)), file))
	if err != nil {
		s.t.Fatal(err)
	}
	return string(content)
}

// procField is one line of /proc/PID/status of a container's first process.
func (s *server) procField(containerID, name string) string {
	s.t.Helper()
	content := s.proc(containerID, "status")
	for line := range strings.Lines(content) {
		if value, ok := strings.CutPrefix(line, name+":"); ok {
			return strings.TrimSpace(value)
		}
	}
	s.t.Fatalf("no %s in\n%s", name, content)
	return ""
}

// namespace is the one that a process is in; "self" is the host's.
func (s *server) namespace(pid, kind string) string {
	s.t.Helper()
	link, err := os.Readlink(filepath.Join("/proc", pid, "ns", kind))
	if err != nil {
		s.t.Fatal(err)
	}
	return link
}

// namespaceOf is one that a container's first process is in.
func (s *server) namespaceOf(containerID, kind string) string {
	s.t.Helper()
	return s.namespace(fmt.Sprint(s.pid(containerID)), kind)
}

// pid is that of a container's first process, as the host sees it.
func (s *server) pid(containerID string) int {
	s.t.Helper()
	resp, err := s.ContainerStatus(s.Host.Context(time.Minute), &runtime.ContainerStatusRequest{ContainerId: containerID, Verbose: true})
	if err != nil {
		s.t.Fatalf("ContainerStatus: %v", err)
	}
	var info struct{ Pid int }
	if err := json.Unmarshal([]byte(resp.Info["info"]), &info); err != nil || info.Pid == 0 {
		s.t.Fatalf("no pid in the verbose status: %v, %v", resp.Info, err)
	}
	return info.Pid
}

// features are those of the server's handler.
func (s *server) features() *runtime.RuntimeHandlerFeatures {
	s.t.Helper()
	resp, err := s.Status(s.Host.Context(time.Minute), &runtime.StatusRequest{})
	if err != nil {
		s.t.Fatalf("Status: %v", err)
	}
	i := slices.IndexFunc(resp.RuntimeHandlers, func(h *runtime.RuntimeHandler) bool { return h.Name == s.Handler })
	if i < 0 {
		s.t.Fatalf("no handler %s among %v", s.Handler, resp.RuntimeHandlers)
	}
	return resp.RuntimeHandlers[i].Features
}

// matches fails the test unless text has the pattern.
func (s *server) matches(what, text, pattern string) {
	s.t.Helper()
	if !regexp.MustCompile(pattern).MatchString(text) {
		s.t.Errorf("%s: %q does not match %s", what, text, pattern)
	}
}
