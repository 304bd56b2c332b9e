package kubernetes

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"caisson/test/daemon"
	"caisson/test/harness"
)

// node is the name that kubelet appends to those of its static pods.
const node = "node1"

// What pods have in resolv.conf.
const (
	clusterDNS    = "192.0.2.53"
	clusterDomain = "test.example"
)

// kubeletConfig is what is configured. Authentication and authorization need an
// API server unless they are switched off. The thresholds keep a full disk from
// removing the image. One gate makes a restart come after 2 seconds, not 10 or
// more; with the other one, kubelet asks CRI for statistics, which it otherwise
// reads itself: those of the network where a pause container would be.
const kubeletConfig = `apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
failCgroupV1: false
cgroupDriver: cgroupfs
cgroupRoot: /%[1]s
staticPodPath: %[2]s/manifests
fileCheckFrequency: 1s
syncFrequency: 5s
address: %[4]s
port: %[5]d
readOnlyPort: %[6]d
healthzPort: 0
authentication: {anonymous: {enabled: true}, webhook: {enabled: false}}
authorization: {mode: AlwaysAllow}
containerRuntimeEndpoint: unix://%[3]s
podLogsDir: %[2]s/logs
containerLogMaxSize: 256Ki
containerLogMonitorInterval: 3s
volumePluginDir: %[2]s/root/volumeplugins
maxOpenFiles: 20000
oomScoreAdj: 0
registerNode: %[7]t
clusterDNS: [%[8]s]
clusterDomain: %[9]s
makeIPTablesUtilChains: false
imageGCHighThresholdPercent: 100
evictionHard: {memory.available: 50Mi, nodefs.available: 1%%, imagefs.available: 1%%, nodefs.inodesFree: 1%%, imagefs.inodesFree: 1%%}
crashLoopBackOff: {maxContainerRestartPeriod: 2s}
featureGates: {KubeletCrashLoopBackOffMax: true, PodAndContainerStatsFromCRI: %[7]t}
`

// kubelet is one kubelet of a daemon, which tests kill and start again.
type kubelet struct {
	t       *testing.T
	h       *harness.Host
	cri     *harness.CRI
	dir     string // below the daemon's, so that all of it carries the token
	url     string // of the port without TLS
	args    []string
	running *program
	lasting []string // the static pods that run all the time
}

// startKubelet starts a kubelet beside the daemon, for an API server if it is
// given the way to one. When the test ends, kubelet is stopped, and the host is
// as it was before.
func startKubelet(t *testing.T, h *harness.Host, kubeconfig string) *kubelet {
	t.Helper()
	k := &kubelet{t: t, h: h, cri: h.CRI(), dir: filepath.Join(h.Dir, "kubelet")}
	for _, name := range []string{"manifests", "logs", "root"} {
		if err := os.MkdirAll(filepath.Join(k.dir, name), 0o711); err != nil {
			t.Fatal(err)
		}
	}
	root := filepath.Join(k.dir, "root")
	k.args = []string{"--config=" + k.dir + "/config.yaml", "--root-dir=" + root, "--cert-dir=" + root + "/pki",
		"--hostname-override=" + node, "--v=2"}
	if kubeconfig != "" {
		k.args = append(k.args, "--kubeconfig="+kubeconfig, "--node-ip="+nodeIP)
	}
	ports := freePorts(t, nodeIP, 2)
	k.url = fmt.Sprintf("http://%s:%d", nodeIP, ports[1])
	text := fmt.Sprintf(kubeletConfig, h.Token, k.dir, h.Address, nodeIP, ports[0], ports[1], kubeconfig != "", clusterDNS, clusterDomain)
	if err := os.WriteFile(filepath.Join(k.dir, "config.yaml"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			k.running.showLog(t)
		}
		k.running.kill()
		k.removePods()
		detach(t, root)
		removeCgroups(t, h.Token)
	})
	k.start()
	return k
}

// freePorts are free when they are returned: the programs cannot choose one themselves.
func freePorts(t *testing.T, address string, n int) []int {
	t.Helper()
	var ports []int
	for range n {
		l, err := net.Listen("tcp", address+":0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		ports = append(ports, l.Addr().(*net.TCPAddr).Port)
	}
	return ports
}

// start starts kubelet, or starts it again, and waits until it is healthy.
func (k *kubelet) start() {
	k.t.Helper()
	k.running = start(k.t, k.dir, built("kubelet"), nil, k.args...)
	k.await(time.Minute, func() error {
		_, err := k.get("/healthz")
		return err
	})
}

// removePods removes what a test that failed left running, so that only real
// leaks are reported beside its failure.
func (k *kubelet) removePods() {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	pods, err := k.cri.ListPodSandbox(ctx, &runtime.ListPodSandboxRequest{})
	if err != nil {
		k.t.Errorf("pods: %v", err)
		return
	}
	for _, pod := range pods.Items {
		k.t.Errorf("pod %s is still there", pod.Metadata.Name)
		k.cri.Remove(pod.Id)
	}
}

// await waits for something that kubelet does in its own time.
func (k *kubelet) await(limit time.Duration, f func() error) {
	k.t.Helper()
	if err := daemon.Poll(harness.Context(k.t, limit), limit, f); err != nil {
		k.t.Fatal(err)
	}
}

func (k *kubelet) get(path string) ([]byte, error) { return get(k.url + path) }

func get(url string) ([]byte, error) {
	client := http.Client{Timeout: 5 * time.Second}
	defer client.CloseIdleConnections()
	resp, err := client.Get(url)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 4<<20))
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s: %s", url, resp.Status, body)
	}
	return body, err
}

// run gives kubelet a pod of testdata. Kubelet reads half-written files, so the
// file is renamed into its directory.
func (k *kubelet) run(name string) {
	k.t.Helper()
	text, err := os.ReadFile("testdata/" + name + ".yaml")
	if err != nil {
		k.t.Fatal(err)
	}
	tmp := filepath.Join(k.dir, name)
	if err := os.WriteFile(tmp, text, 0o600); err != nil {
		k.t.Fatal(err)
	}
	if err := os.Rename(tmp, k.manifest(name)); err != nil {
		k.t.Fatal(err)
	}
}

// delete takes the files of static pods away and waits until CRI knows the pods
// no more.
func (k *kubelet) delete(names ...string) {
	k.t.Helper()
	var pods []string
	for _, name := range names {
		if err := os.Remove(k.manifest(name)); err != nil {
			k.t.Fatal(err)
		}
		pods = append(pods, name+"-"+node)
	}
	k.awaitGone(pods...)
}

// awaitGone waits until CRI does not know any of the pods: kubelet collects ended
// ones once a minute.
func (k *kubelet) awaitGone(pods ...string) {
	k.t.Helper()
	k.await(3*time.Minute, func() error {
		for _, pod := range pods {
			resp, err := k.cri.ListPodSandbox(k.h.Context(10*time.Second), &runtime.ListPodSandboxRequest{Filter: &runtime.PodSandboxFilter{
				LabelSelector: map[string]string{"io.kubernetes.pod.name": pod},
			}})
			if err != nil {
				return err
			}
			if len(resp.Items) > 0 {
				return fmt.Errorf("pod %s is still there: %v", pod, resp.Items)
			}
		}
		return nil
	})
}

func (k *kubelet) manifest(name string) string {
	return filepath.Join(k.dir, "manifests", name+".yaml")
}

// pod is what we read of kubelet's answer.
type pod struct {
	Metadata struct{ Name, UID string }
	Status   struct {
		Phase, PodIP          string
		Conditions            []struct{ Type, Status string }
		InitContainerStatuses []container
		ContainerStatuses     []container
	}
}

type container struct {
	Name, ContainerID string
	Ready             bool
	RestartCount      int
	State, LastState  struct {
		Running    *struct{ StartedAt time.Time }
		Waiting    *struct{ Reason, Message string }
		Terminated *struct {
			ExitCode int
			Reason   string
		}
	}
}

// id is the container's in CRI.
func (c container) id() string { return filepath.Base(c.ContainerID) }

func (p pod) ready() bool {
	for _, c := range p.Status.Conditions {
		if c.Type == "Ready" {
			return c.Status == "True"
		}
	}
	return false
}

// pod is a pod of kubelet's list.
func (k *kubelet) pod(name string) (pod, error) {
	var list struct{ Items []pod }
	body, err := k.get("/pods")
	if err != nil {
		return pod{}, err
	}
	if err := json.Unmarshal(body, &list); err != nil {
		return pod{}, err
	}
	for _, p := range list.Items {
		if p.Metadata.Name == name+"-"+node {
			return p, nil
		}
	}
	return pod{}, fmt.Errorf("kubelet has no pod %s", name)
}

// awaitPod waits until a pod is as it should be. It is for a test that waits for
// what it is about, and so t is that test's.
func (k *kubelet) awaitPod(t *testing.T, name string, good func(pod) bool) pod {
	t.Helper()
	var p pod
	limit := 90 * time.Second
	err := daemon.Poll(harness.Context(t, limit), limit, func() (err error) {
		if p, err = k.pod(name); err == nil && !good(p) {
			text, _ := json.Marshal(p) // plain structs: cannot fail
			err = fmt.Errorf("pod %s is not as it should be: %s", name, text)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// logFile is the log of the n-th run of a container.
func (k *kubelet) logFile(p pod, container string, n int) string {
	return fmt.Sprintf("%s/logs/default_%s_%s/%s/%d.log", k.dir, p.Metadata.Name, p.Metadata.UID, container, n)
}
