package integration

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"caisson/test/daemon"
	"caisson/test/harness"
)

// TestCRINode makes the calls that kubelet makes about the node.
func TestCRINode(t *testing.T) {
	h := harness.Start(t, daemon.Options{})
	cri := h.CRI()
	ctx := h.Context(time.Minute)

	version, err := cri.Version(ctx, &runtime.VersionRequest{})
	if err != nil || version.RuntimeApiVersion != "v1" || version.RuntimeName == "" {
		t.Errorf("Version: %v, %v", version, err)
	}
	status, err := cri.Status(ctx, &runtime.StatusRequest{Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range status.Status.Conditions {
		if !c.Status && c.Type != "ContainerdHasNoDeprecationWarnings" { // the host may have cgroup v1
			t.Errorf("condition %s: %s: %s", c.Type, c.Reason, c.Message)
		}
	}
	i := slices.IndexFunc(status.RuntimeHandlers, func(r *runtime.RuntimeHandler) bool { return r.Name == harness.Handler })
	if i < 0 {
		t.Fatalf("no handler %s among %v", harness.Handler, status.RuntimeHandlers)
	}
	if f := status.RuntimeHandlers[i].Features; !f.GetUserNamespaces() || !f.GetRecursiveReadOnlyMounts() {
		t.Errorf("features of the handler: %v", f)
	}
	if _, err := cri.RuntimeConfig(ctx, &runtime.RuntimeConfigRequest{}); err != nil {
		t.Errorf("RuntimeConfig: %v", err)
	}
	if _, err := cri.UpdateRuntimeConfig(ctx, &runtime.UpdateRuntimeConfigRequest{RuntimeConfig: &runtime.RuntimeConfig{NetworkConfig: &runtime.NetworkConfig{PodCidr: "10.1.0.0/24"}}}); err != nil {
		t.Errorf("UpdateRuntimeConfig: %v", err)
	}
	images, err := cri.Images.ListImages(ctx, &runtime.ListImagesRequest{})
	if err != nil || len(images.Images) == 0 {
		t.Errorf("ListImages: %v, %v", images, err)
	}
	if fs, err := cri.Images.ImageFsInfo(ctx, &runtime.ImageFsInfoRequest{}); err != nil || len(fs.ImageFilesystems) == 0 {
		t.Errorf("ImageFsInfo: %v, %v", fs, err)
	}
	if m, err := cri.ListMetricDescriptors(ctx, &runtime.ListMetricDescriptorsRequest{}); err != nil || len(m.Descriptors) == 0 {
		t.Errorf("ListMetricDescriptors: %v, %v", m, err)
	}
}

// modes are the networks a pod can have.
var modes = map[string]runtime.NamespaceMode{"host network": runtime.NamespaceMode_NODE, "CNI": runtime.NamespaceMode_POD}

// TestCRIPod makes the calls that kubelet makes about a pod and its containers.
func TestCRIPod(t *testing.T) {
	h := harness.Start(t, daemon.Options{})
	cri := h.CRI()
	for name, mode := range modes {
		t.Run(name, func(t *testing.T) {
			cfg := cri.PodConfig(mode)
			pod := cri.RunPod(cfg)
			checkPod(t, h, cri, cfg, pod)
			one := cri.ContainerConfig("one", "echo hello from one; echo oops >&2; exec sleep 1000")
			one.Envs = []*runtime.KeyValue{{Key: "GREETING", Value: []byte("hi")}}
			one.WorkingDir = "/tmp"
			id := cri.RunContainer(pod, cfg, one)
			checkContainer(t, h, cri, cfg, pod, id)
			checkStats(t, h, cri, pod, id)
			checkLogs(t, h, cri, cfg, id)
			checkUpdate(t, h, cri, id)
			stopPod(t, h, cri, cfg, pod, id)
		})
	}
}

func checkPod(t *testing.T, h *harness.Host, cri *harness.CRI, cfg *runtime.PodSandboxConfig, pod string) {
	t.Helper()
	ctx := h.Context(time.Minute)
	resp, err := cri.PodSandboxStatus(ctx, &runtime.PodSandboxStatusRequest{PodSandboxId: pod, Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	s := resp.Status
	if s.State != runtime.PodSandboxState_SANDBOX_READY || s.Metadata.Name != cfg.Metadata.Name || s.RuntimeHandler != harness.Handler {
		t.Errorf("PodSandboxStatus: %v", s)
	}
	onHost := cfg.Linux.SecurityContext.NamespaceOptions.Network == runtime.NamespaceMode_NODE
	if hasIP := strings.HasPrefix(s.Network.GetIp(), "10."); hasIP == onHost {
		t.Errorf("address of the pod: %q", s.Network.GetIp())
	}
	list, err := cri.ListPodSandbox(ctx, &runtime.ListPodSandboxRequest{Filter: &runtime.PodSandboxFilter{LabelSelector: cfg.Labels}})
	if err != nil || len(list.Items) != 1 || list.Items[0].Id != pod || time.Since(time.Unix(0, list.Items[0].CreatedAt)) > time.Hour {
		t.Errorf("ListPodSandbox: %v, %v", list, err)
	}
}

func checkContainer(t *testing.T, h *harness.Host, cri *harness.CRI, cfg *runtime.PodSandboxConfig, pod, id string) {
	t.Helper()
	ctx := h.Context(time.Minute)
	resp, err := cri.ContainerStatus(ctx, &runtime.ContainerStatusRequest{ContainerId: id, Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	if s := resp.Status; s.State != runtime.ContainerState_CONTAINER_RUNNING || s.StartedAt == 0 || s.Resources.GetLinux().GetMemoryLimitInBytes() != 64<<20 {
		t.Errorf("ContainerStatus: %v", s)
	}
	list, err := cri.ListContainers(ctx, &runtime.ListContainersRequest{Filter: &runtime.ContainerFilter{PodSandboxId: pod}})
	if err != nil || len(list.Containers) != 1 || list.Containers[0].Id != id {
		t.Errorf("ListContainers: %v, %v", list, err)
	}

	if got := cri.Shell(id, "echo $GREETING $PWD"); got != "hi /tmp\n" {
		t.Errorf("ExecSync: %q", got)
	}
	exec, err := cri.ExecSync(ctx, &runtime.ExecSyncRequest{ContainerId: id, Cmd: []string{"sh", "-c", "echo out; echo err >&2; exit 5"}})
	if err != nil || exec.ExitCode != 5 || string(exec.Stdout) != "out\n" || string(exec.Stderr) != "err\n" {
		t.Errorf("ExecSync: %v, %v", exec, err)
	}
	if exec, err := cri.ExecSync(ctx, &runtime.ExecSyncRequest{ContainerId: id, Cmd: []string{"sleep", "100"}, Timeout: 1}); err == nil {
		t.Errorf("ExecSync beyond its time: %v", exec)
	}
	if exec, err := cri.ExecSync(ctx, &runtime.ExecSyncRequest{ContainerId: id, Cmd: []string{"no-such-binary"}}); err == nil || !strings.Contains(err.Error(), "no-such-binary") {
		t.Errorf("ExecSync of nothing: %v, %v", exec, err)
	}
	onHost := cfg.Linux.SecurityContext.NamespaceOptions.Network == runtime.NamespaceMode_NODE
	hostname, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	if !onHost {
		hostname = cfg.Hostname
		if got := cri.Shell(id, "cat /etc/resolv.conf"); got != "search test.example\nnameserver 192.0.2.53\noptions ndots:2\n" {
			t.Errorf("resolv.conf: %q", got)
		}
		if got := cri.Shell(id, "cat /proc/sys/net/ipv4/ip_unprivileged_port_start"); got != "0\n" {
			t.Errorf("ip_unprivileged_port_start: %q", got)
		}
	}
	if got := cri.Shell(id, "hostname; cat /etc/hostname"); got != hostname+"\n"+hostname+"\n" {
		t.Errorf("hostname: %q, want %q", got, hostname)
	}
	if got := cri.Shell(id, "cat /etc/hosts"); !strings.Contains(got, "localhost") {
		t.Errorf("hosts: %q", got)
	}
}

func checkStats(t *testing.T, h *harness.Host, cri *harness.CRI, pod, id string) {
	t.Helper()
	ctx := h.Context(time.Minute)
	stats, err := cri.ContainerStats(ctx, &runtime.ContainerStatsRequest{ContainerId: id})
	if err != nil || stats.Stats.GetMemory().GetWorkingSetBytes().GetValue() == 0 || stats.Stats.GetCpu().GetUsageCoreNanoSeconds().GetValue() == 0 {
		t.Errorf("ContainerStats: %v, %v", stats, err)
	}
	listed, err := cri.ListContainerStats(ctx, &runtime.ListContainerStatsRequest{})
	if err != nil || len(listed.Stats) != 1 {
		t.Errorf("ListContainerStats: %v, %v", listed, err)
	}
	podStats, err := cri.PodSandboxStats(ctx, &runtime.PodSandboxStatsRequest{PodSandboxId: pod})
	if err != nil || podStats.Stats.GetLinux().GetMemory().GetUsageBytes().GetValue() == 0 || len(podStats.Stats.GetLinux().GetContainers()) != 1 {
		t.Errorf("PodSandboxStats: %v, %v", podStats, err)
	}
	podsStats, err := cri.ListPodSandboxStats(ctx, &runtime.ListPodSandboxStatsRequest{})
	if err != nil || len(podsStats.Stats) != 1 {
		t.Errorf("ListPodSandboxStats: %v, %v", podsStats, err)
	}
	metrics, err := cri.ListPodSandboxMetrics(ctx, &runtime.ListPodSandboxMetricsRequest{})
	if err != nil || len(metrics.PodMetrics) != 1 || len(metrics.PodMetrics[0].ContainerMetrics) != 1 {
		t.Errorf("ListPodSandboxMetrics: %v, %v", metrics, err)
	}
}

func checkLogs(t *testing.T, h *harness.Host, cri *harness.CRI, cfg *runtime.PodSandboxConfig, id string) {
	t.Helper()
	path := filepath.Join(cfg.LogDirectory, "one.log")
	awaitText(t, h, path, "stdout F hello from one\n", "stderr F oops\n")
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	if _, err := cri.ReopenContainerLog(h.Context(time.Minute), &runtime.ReopenContainerLogRequest{ContainerId: id}); err != nil {
		t.Errorf("ReopenContainerLog: %v", err)
	}
	// The log is the init process's, whoever writes to its stdout.
	cri.Shell(id, "echo after rotation >/proc/1/fd/1")
	awaitText(t, h, path, "stdout F after rotation\n")
}

// awaitText waits until a file that others write holds all of the texts.
func awaitText(t *testing.T, h *harness.Host, path string, texts ...string) {
	t.Helper()
	err := daemon.Poll(h.Context(time.Minute), 10*time.Second, func() error {
		content, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for _, text := range texts {
			if !strings.Contains(string(content), text) {
				return fmt.Errorf("no %q in %s:\n%s", text, path, content)
			}
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

func checkUpdate(t *testing.T, h *harness.Host, cri *harness.CRI, id string) {
	t.Helper()
	ctx := h.Context(time.Minute)
	if _, err := cri.UpdateContainerResources(ctx, &runtime.UpdateContainerResourcesRequest{
		ContainerId: id, Linux: &runtime.LinuxContainerResources{MemoryLimitInBytes: 80 << 20, CpuShares: 512, CpuQuota: 50000, CpuPeriod: 100000},
	}); err != nil {
		t.Errorf("UpdateContainerResources: %v", err)
	}
	resp, err := cri.ContainerStatus(ctx, &runtime.ContainerStatusRequest{ContainerId: id})
	if err != nil || resp.Status.GetResources().GetLinux().GetMemoryLimitInBytes() != 80<<20 {
		t.Errorf("resources after the update: %v, %v", resp.GetStatus().GetResources(), err)
	}
	if got := cri.Shell(id, "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null || true"); got != fmt.Sprintf("%d\n", 80<<20) {
		t.Errorf("memory limit in the container: %q", got)
	}
}

// stopPod takes a pod down in kubelet's order, each step twice.
func stopPod(t *testing.T, h *harness.Host, cri *harness.CRI, cfg *runtime.PodSandboxConfig, pod, id string) {
	t.Helper()
	ctx := h.Context(time.Minute)
	for range 2 {
		if _, err := cri.StopContainer(ctx, &runtime.StopContainerRequest{ContainerId: id, Timeout: 1}); err != nil {
			t.Errorf("StopContainer: %v", err)
		}
	}
	if s := cri.AwaitState(id, runtime.ContainerState_CONTAINER_EXITED); s.ExitCode != 137 || s.FinishedAt < s.StartedAt {
		t.Errorf("stopped container: %v", s)
	}
	for range 2 {
		if _, err := cri.RemoveContainer(ctx, &runtime.RemoveContainerRequest{ContainerId: id}); err != nil {
			t.Errorf("RemoveContainer: %v", err)
		}
	}
	for range 2 {
		if _, err := cri.StopPodSandbox(ctx, &runtime.StopPodSandboxRequest{PodSandboxId: pod}); err != nil {
			t.Errorf("StopPodSandbox: %v", err)
		}
	}
	resp, err := cri.PodSandboxStatus(ctx, &runtime.PodSandboxStatusRequest{PodSandboxId: pod})
	if err != nil || resp.Status.State != runtime.PodSandboxState_SANDBOX_NOTREADY {
		t.Errorf("stopped pod: %v, %v", resp, err)
	}
	for range 2 {
		if _, err := cri.RemovePodSandbox(ctx, &runtime.RemovePodSandboxRequest{PodSandboxId: pod}); err != nil {
			t.Errorf("RemovePodSandbox: %v", err)
		}
	}
	list, err := cri.ListPodSandbox(ctx, &runtime.ListPodSandboxRequest{Filter: &runtime.PodSandboxFilter{LabelSelector: cfg.Labels}})
	if err != nil || len(list.Items) != 0 {
		t.Errorf("ListPodSandbox after RemovePodSandbox: %v, %v", list, err)
	}
}

// TestCRIShared runs two containers in a pod: one shared memory, host name,
// resolv.conf and localhost.
func TestCRIShared(t *testing.T) {
	h := harness.Start(t, daemon.Options{})
	cri := h.CRI()
	for name, mode := range modes {
		t.Run(name, func(t *testing.T) {
			cfg := cri.PodConfig(mode)
			pod := cri.RunPod(cfg)
			port := freePort(t)
			server := cri.RunContainer(pod, cfg, cri.ContainerConfig("server", fmt.Sprintf(
				"mkdir /www; echo a page >/www/index.html; echo a note >/dev/shm/note; exec httpd -f -p 127.0.0.1:%d -h /www", port)))
			client := cri.RunContainer(pod, cfg, cri.ContainerConfig("client", "exec sleep 1000"))
			get := fmt.Sprintf("until wget -q -O - http://127.0.0.1:%d/; do usleep 20000; done", port)
			if got := cri.Shell(client, get); got != "a page\n" {
				t.Errorf("over localhost: %q", got)
			}
			if got := cri.Shell(client, "cat /dev/shm/note"); got != "a note\n" {
				t.Errorf("in /dev/shm: %q", got)
			}
			const look = "hostname; cat /etc/hostname /etc/hosts /etc/resolv.conf; readlink /proc/self/ns/net; readlink /proc/self/ns/ipc; readlink /proc/self/ns/uts"
			if a, b := cri.Shell(server, look), cri.Shell(client, look); a != b {
				t.Errorf("the containers see different pods:\n%s\n%s", a, b)
			}
			if a, b := cri.Shell(server, "readlink /proc/self/ns/pid"), cri.Shell(client, "readlink /proc/self/ns/pid"); a == b {
				t.Error("the containers share a PID namespace, which nobody asked for")
			}
		})
	}
}

// TestCRIStreams uses the URLs that kubectl exec, attach and port-forward get.
func TestCRIStreams(t *testing.T) {
	h := harness.Start(t, daemon.Options{})
	cri := h.CRI()
	ctx := h.Context(time.Minute)
	cfg := cri.PodConfig(runtime.NamespaceMode_POD)
	pod := cri.RunPod(cfg)
	cat := cri.ContainerConfig("cat", "echo ready; exec cat")
	cat.Stdin = true
	id := cri.RunContainer(pod, cfg, cat)
	cri.RunContainer(pod, cfg, cri.ContainerConfig("server", "mkdir /www; echo a page >/www/index.html; exec httpd -f -p 8080 -h /www"))

	t.Run("exec", func(t *testing.T) {
		resp, err := cri.Exec(ctx, &runtime.ExecRequest{ContainerId: id, Cmd: []string{"sh", "-c", "cat; echo err >&2; exit 6"}, Stdin: true, Stdout: true, Stderr: true})
		if err != nil {
			t.Fatal(err)
		}
		s := h.Attach(resp.Url, false)
		if _, err := io.WriteString(s.Stdin, "typed\n"); err != nil {
			t.Fatal(err)
		}
		if err := s.Stdin.Close(); err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(s.Stdout); err != nil || string(got) != "typed\n" {
			t.Errorf("stdout: %q, %v", got, err)
		}
		if got, err := io.ReadAll(s.Stderr); err != nil || string(got) != "err\n" {
			t.Errorf("stderr: %q, %v", got, err)
		}
		if code := s.Wait(); code != 6 {
			t.Errorf("exit code %d", code)
		}
	})
	t.Run("exec with a terminal", func(t *testing.T) {
		resp, err := cri.Exec(ctx, &runtime.ExecRequest{ContainerId: id, Cmd: []string{"sh", "-c", "until stty size | grep '20 90'; do usleep 20000; done; tty"}, Stdin: true, Stdout: true, Tty: true})
		if err != nil {
			t.Fatal(err)
		}
		s := h.Attach(resp.Url, true)
		if got, err := io.ReadAll(s.Stdout); err != nil || !strings.Contains(string(got), "/dev/pts/") {
			t.Errorf("stdout: %q, %v", got, err)
		}
		if code := s.Wait(); code != 0 {
			t.Errorf("exit code %d", code)
		}
	})
	t.Run("attach", func(t *testing.T) {
		resp, err := cri.RuntimeServiceClient.Attach(ctx, &runtime.AttachRequest{ContainerId: id, Stdin: true, Stdout: true, Stderr: true})
		if err != nil {
			t.Fatal(err)
		}
		s := h.Attach(resp.Url, false)
		if _, err := io.WriteString(s.Stdin, "attached\n"); err != nil {
			t.Fatal(err)
		}
		want := "attached\n"
		got := make([]byte, len(want))
		if _, err := io.ReadFull(s.Stdout, got); err != nil || string(got) != want {
			t.Errorf("stdout: %q, %v", got, err)
		}
	})
	t.Run("port forward", func(t *testing.T) {
		resp, err := cri.PortForward(ctx, &runtime.PortForwardRequest{PodSandboxId: pod, Port: []int32{8080}})
		if err != nil {
			t.Fatal(err)
		}
		conn := h.Forward(resp.Url, 8080)
		if _, err := io.WriteString(conn, "GET / HTTP/1.0\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(conn); err != nil || !strings.HasSuffix(string(got), "a page\n") {
			t.Errorf("answer: %q, %v", got, err)
		}
	})
}

// TestCRIEvents follows a container with GetContainerEvents, as kubelet does
// with evented PLEG.
func TestCRIEvents(t *testing.T) {
	h := harness.Start(t, daemon.Options{})
	cri := h.CRI()
	ctx := h.Context(time.Minute)
	stream, err := cri.GetContainerEvents(ctx, &runtime.GetEventsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	cfg := cri.PodConfig(runtime.NamespaceMode_NODE)
	pod := cri.RunPod(cfg)
	id := cri.RunContainer(pod, cfg, cri.ContainerConfig("short", "exit 9"))
	cri.AwaitState(id, runtime.ContainerState_CONTAINER_EXITED)
	if _, err := cri.RemoveContainer(ctx, &runtime.RemoveContainerRequest{ContainerId: id}); err != nil {
		t.Fatal(err)
	}
	want := []runtime.ContainerEventType{
		runtime.ContainerEventType_CONTAINER_CREATED_EVENT, runtime.ContainerEventType_CONTAINER_STARTED_EVENT,
		runtime.ContainerEventType_CONTAINER_STOPPED_EVENT, runtime.ContainerEventType_CONTAINER_DELETED_EVENT,
	}
	var got []runtime.ContainerEventType
	for len(got) < len(want) {
		e, err := stream.Recv()
		if err != nil {
			t.Fatalf("after %v: %v", got, err)
		}
		if e.ContainerId == id {
			got = append(got, e.ContainerEventType)
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("events %v", got)
	}
}

// TestCRINoCgroup runs a pod whose cgroup nobody has chosen.
func TestCRINoCgroup(t *testing.T) {
	h := harness.Start(t, daemon.Options{})
	cri := h.CRI()
	cfg := cri.PodConfig(runtime.NamespaceMode_POD)
	cfg.Linux.CgroupParent = ""
	pod := cri.RunPod(cfg)
	id := cri.RunContainer(pod, cfg, cri.ContainerConfig("c", "exec sleep 1000"))
	if got := cri.Shell(id, "echo runs"); got != "runs\n" {
		t.Errorf("ExecSync: %q", got)
	}
}

// TestCRIBadInput makes calls that must fail, and looks whether the node is as
// it was.
func TestCRIBadInput(t *testing.T) {
	h := harness.Start(t, daemon.Options{})
	cri := h.CRI()
	ctx := h.Context(time.Minute)
	before := stateFiles(t, h)
	bad := map[string]func(*runtime.PodSandboxConfig){
		"a user namespace mode that no pod has": func(c *runtime.PodSandboxConfig) {
			c.Linux.SecurityContext.NamespaceOptions.UsernsOptions = &runtime.UserNamespace{Mode: runtime.NamespaceMode_CONTAINER}
		},
		"a user namespace without user 0": func(c *runtime.PodSandboxConfig) {
			ids := []*runtime.IDMapping{{ContainerId: 1, HostId: 1000, Length: 1000}}
			c.Linux.SecurityContext.NamespaceOptions.UsernsOptions = &runtime.UserNamespace{Mode: runtime.NamespaceMode_POD, Uids: ids, Gids: ids}
		},
		"a sysctl that does not exist": func(c *runtime.PodSandboxConfig) {
			c.Linux.Sysctls = map[string]string{"net.no_such_setting": "1"}
		},
		"a sysctl of the host": func(c *runtime.PodSandboxConfig) { c.Linux.Sysctls = map[string]string{"vm.swappiness": "1"} },
	}
	for name, change := range bad {
		t.Run(name, func(t *testing.T) {
			cfg := cri.PodConfig(runtime.NamespaceMode_POD)
			change(cfg)
			if resp, err := cri.RunPodSandbox(ctx, &runtime.RunPodSandboxRequest{Config: cfg, RuntimeHandler: harness.Handler}); err == nil {
				cri.Remove(resp.PodSandboxId)
				t.Error("the pod runs")
			} else {
				t.Log(err)
			}
			list, err := cri.ListPodSandbox(ctx, &runtime.ListPodSandboxRequest{})
			if err != nil || len(list.Items) != 0 {
				t.Errorf("ListPodSandbox: %v, %v", list, err)
			}
			if diff := cmp.Diff(before, stateFiles(t, h)); diff != "" {
				t.Errorf("files of sandboxes: %s", diff)
			}
		})
	}
	cfg := cri.PodConfig(runtime.NamespaceMode_NODE)
	pod := cri.RunPod(cfg)
	missing := cri.ContainerConfig("missing", "")
	missing.Command = []string{"/no/such/binary"}
	created, err := cri.CreateContainer(ctx, &runtime.CreateContainerRequest{PodSandboxId: pod, Config: missing, SandboxConfig: cfg})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := cri.StartContainer(ctx, &runtime.StartContainerRequest{ContainerId: created.ContainerId}); err == nil || !strings.Contains(err.Error(), "/no/such/binary") {
		t.Errorf("StartContainer of a missing binary: %v", err)
	}
	if s := cri.AwaitState(created.ContainerId, runtime.ContainerState_CONTAINER_EXITED); s.ExitCode == 0 || s.Message == "" {
		t.Errorf("its status: %v", s)
	}
}
