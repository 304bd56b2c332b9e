package harness

import (
	"context"
	"fmt"
	"path/filepath"
	"sync/atomic"
	"time"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"caisson/test/daemon"
)

// CRI is what a kubelet talks to.
type CRI struct {
	runtime.RuntimeServiceClient
	Images runtime.ImageServiceClient
	// Handler is the runtime that pods run with.
	Handler string
	host    *Host
}

// CRI connects to CRI and gives it the test image.
func (h *Host) CRI() *CRI {
	h.t.Helper()
	c := h.ConnectCRI(Handler)
	h.Import(CRINamespace, Image)
	// CRI learns of the image from containerd's events, which it cannot be asked about.
	err := daemon.Poll(h.Context(time.Minute), scale(10*time.Second), func() error {
		resp, err := c.Images.ImageStatus(h.Context(10*time.Second), &runtime.ImageStatusRequest{Image: &runtime.ImageSpec{Image: Image}})
		if err == nil && resp.GetImage() == nil {
			err = fmt.Errorf("CRI does not know the image %s", Image)
		}
		return err
	})
	if err != nil {
		h.t.Fatal(err)
	}
	return c
}

// ConnectCRI connects to CRI, for pods of a runtime.
func (h *Host) ConnectCRI(handler string) *CRI {
	h.t.Helper()
	if h.conn == nil {
		conn, err := h.Conn()
		if err != nil {
			h.t.Fatal(err)
		}
		h.conn = conn
	}
	return &CRI{
		RuntimeServiceClient: runtime.NewRuntimeServiceClient(h.conn),
		Images:               runtime.NewImageServiceClient(h.conn),
		Handler:              handler,
		host:                 h,
	}
}

// pods counts the pods of all tests, so that each has a name of its own.
var pods atomic.Int64

// PodConfig is the configuration of a pod of its own namespaces, with a cgroup
// that exists, as kubelet makes it. Tests change what they are about.
func (c *CRI) PodConfig(network runtime.NamespaceMode) *runtime.PodSandboxConfig {
	c.host.t.Helper()
	name := fmt.Sprintf("pod%d", pods.Add(1))
	if err := c.host.AddCgroup("/" + c.host.Token + "/" + name); err != nil {
		c.host.t.Fatal(err)
	}
	cfg := &runtime.PodSandboxConfig{
		Metadata:     &runtime.PodSandboxMetadata{Name: name, Uid: c.host.Token + name, Namespace: "test"},
		LogDirectory: filepath.Join(c.host.Dir, "logs", name),
		Labels:       map[string]string{"app": name},
		Annotations:  map[string]string{"note": "a note"},
		Linux: &runtime.LinuxPodSandboxConfig{
			CgroupParent: "/" + c.host.Token + "/" + name,
			SecurityContext: &runtime.LinuxSandboxSecurityContext{
				NamespaceOptions: &runtime.NamespaceOption{Network: network, Pid: runtime.NamespaceMode_CONTAINER},
			},
		},
	}
	if network == runtime.NamespaceMode_POD {
		cfg.Hostname = name
		cfg.DnsConfig = &runtime.DNSConfig{Servers: []string{"192.0.2.53"}, Searches: []string{"test.example"}, Options: []string{"ndots:2"}}
	}
	return cfg
}

// RunPod runs a pod sandbox. It is removed when the test ends, if it still is
// there then.
func (c *CRI) RunPod(cfg *runtime.PodSandboxConfig) (podID string) {
	t := c.host.t
	t.Helper()
	resp, err := c.RunPodSandbox(c.host.Context(time.Minute), &runtime.RunPodSandboxRequest{Config: cfg, RuntimeHandler: c.Handler})
	if err != nil {
		t.Fatalf("RunPodSandbox: %v", err)
	}
	t.Cleanup(func() { c.Remove(resp.PodSandboxId) })
	return resp.PodSandboxId
}

// Remove stops and removes a pod, which may be gone already.
func (c *CRI) Remove(id string) {
	ctx, cancel := context.WithTimeout(context.Background(), scale(30*time.Second))
	defer cancel()
	_, err := c.StopPodSandbox(ctx, &runtime.StopPodSandboxRequest{PodSandboxId: id})
	if err == nil {
		_, err = c.RemovePodSandbox(ctx, &runtime.RemovePodSandboxRequest{PodSandboxId: id})
	}
	if err != nil {
		c.host.t.Errorf("remove pod: %v", err)
	}
}

// ContainerConfig is the configuration of a container that runs a command of the shell.
func (c *CRI) ContainerConfig(name, script string) *runtime.ContainerConfig {
	return &runtime.ContainerConfig{
		Metadata: &runtime.ContainerMetadata{Name: name},
		Image:    &runtime.ImageSpec{Image: Image},
		Command:  []string{"/bin/sh", "-c", script},
		LogPath:  name + ".log",
		Linux: &runtime.LinuxContainerConfig{
			Resources: &runtime.LinuxContainerResources{MemoryLimitInBytes: 64 << 20, CpuShares: 256},
			SecurityContext: &runtime.LinuxContainerSecurityContext{
				NamespaceOptions: &runtime.NamespaceOption{Pid: runtime.NamespaceMode_CONTAINER},
			},
		},
	}
}

// RunContainer creates and starts a container in a pod.
func (c *CRI) RunContainer(podID string, pod *runtime.PodSandboxConfig, cfg *runtime.ContainerConfig) (containerID string) {
	t := c.host.t
	t.Helper()
	cfg.Linux.SecurityContext.NamespaceOptions.Network = pod.Linux.SecurityContext.NamespaceOptions.Network
	created, err := c.CreateContainer(c.host.Context(time.Minute), &runtime.CreateContainerRequest{
		PodSandboxId: podID, Config: cfg, SandboxConfig: pod,
	})
	if err != nil {
		t.Fatalf("CreateContainer: %v", err)
	}
	if _, err := c.StartContainer(c.host.Context(time.Minute), &runtime.StartContainerRequest{ContainerId: created.ContainerId}); err != nil {
		t.Fatalf("StartContainer: %v", err)
	}
	return created.ContainerId
}

// Shell runs a command of the shell in a container and returns what it printed.
func (c *CRI) Shell(containerID, script string) string {
	c.host.t.Helper()
	resp, err := c.ExecSync(c.host.Context(30*time.Second), &runtime.ExecSyncRequest{
		ContainerId: containerID, Cmd: []string{"/bin/sh", "-c", script}, Timeout: 20,
	})
	if err != nil {
		c.host.t.Fatalf("ExecSync %q: %v", script, err)
	}
	if resp.ExitCode != 0 {
		c.host.t.Fatalf("ExecSync %q: exit code %d, stdout %q, stderr %q", script, resp.ExitCode, resp.Stdout, resp.Stderr)
	}
	return string(resp.Stdout)
}

// AwaitState waits until a container is in a state and returns its status.
func (c *CRI) AwaitState(containerID string, state runtime.ContainerState) *runtime.ContainerStatus {
	c.host.t.Helper()
	var status *runtime.ContainerStatus
	// CRI offers events, but no order between them and what ContainerStatus answers.
	err := daemon.Poll(c.host.Context(time.Minute), scale(20*time.Second), func() error {
		resp, err := c.ContainerStatus(c.host.Context(10*time.Second), &runtime.ContainerStatusRequest{ContainerId: containerID})
		if err != nil {
			return err
		}
		if status = resp.Status; status.State != state {
			return fmt.Errorf("container is %s, not %s", status.State, state)
		}
		return nil
	})
	if err != nil {
		c.host.t.Fatal(err)
	}
	return status
}
