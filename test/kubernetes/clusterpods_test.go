package kubernetes

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

	"caisson/test/daemon"
	"caisson/test/harness"
	"caisson/test/image"
	"caisson/test/leak"
	"caisson/test/registry"
)

// TestCluster runs pods of an API server, with kubectl, beside one kubelet.
func TestCluster(t *testing.T) {
	needPrograms(t)
	for _, engine := range engines {
		t.Run(engine, func(t *testing.T) { testCluster(t, engine) })
	}
}

// mirrors makes CRI pull from a registry of the test.
const mirrors = `[plugins."io.containerd.cri.v1.images".registry]
config_path = %q
`

// exampleImage is what the example of `caisson config kubernetes` pulls.
const exampleImage = "docker.io/library/busybox:latest"

func testCluster(t *testing.T, engine string) {
	dir := t.TempDir()
	r := registry.New()
	// Not the same bytes as the image that is there: kubelet asks what it has once
	// pulled to be pulled by all pods, under any name.
	if _, err := r.Add(image.Options{Ref: exampleImage, Files: map[string]string{"/pulled": ""}}); err != nil {
		t.Fatal(err)
	}
	stop, err := r.Serve(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = stop() })
	h := harness.Start(t, daemon.Options{Engine: engine, EngineConfig: fmt.Sprintf(mirrors, dir)})
	c := startCluster(t, h)
	before, err := leak.Take()
	if err != nil {
		t.Fatal(err)
	}
	t.Run("Example", c.testExample)
	c.kubectl(t, "apply", "-f", "testdata/cluster/web.yaml")
	t.Run("Replicas", c.testReplicas)
	t.Run("DNS", c.testDNS)
	t.Run("Exec", c.testExec)
	t.Run("Logs", c.testLogs)
	t.Run("PortForward", c.testPortForward)
	t.Run("Copy", c.testCopy)
	t.Run("Debug", c.testDebug)
	t.Run("Resize", c.testResize)
	t.Run("Statistics", c.testStatistics)
	t.Run("NoPause", func(t *testing.T) { expectNoPause(t, h, c.cri) })
	t.Run("ConfigMap", c.testConfigMap) // kubelet takes its time over changes
	t.Run("Deletion", func(t *testing.T) { c.testDeletion(t, before) })
}

// testExample applies what `caisson config kubernetes` prints, as it is.
func (c *cluster) testExample(t *testing.T) {
	c.input(t, c.h.Caisson("config", "kubernetes"), "apply", "-f", "-")
	c.bind(t, "caisson-example")
	c.kubectl(t, "wait", "--for=condition=Ready", "pod/caisson-example", "--timeout=60s")

	if handlers := c.field(t, "node/"+node, ".status.runtimeHandlers[*].name"); !slices.Contains(strings.Fields(handlers), "caisson") {
		t.Errorf("the node's runtime handlers: %s", handlers)
	}
	if overhead := c.field(t, "pod/caisson-example", ".spec.overhead.memory"); overhead != "1Mi" {
		t.Errorf("overhead: %q", overhead)
	}
	c.expectMemory(t, "caisson-example", 32<<20)
	if got, err := get("http://" + c.field(t, "pod/caisson-example", ".status.podIP") + ":8080/"); err != nil || string(got) != "caisson-example\n" {
		t.Errorf("the pod serves %q, %v", got, err)
	}
	sandboxes, err := os.ReadDir(filepath.Join(c.h.State, "s"))
	if err != nil || len(sandboxes) != 1 {
		t.Errorf("Caisson's sandboxes: %v, %v", sandboxes, err)
	}
}

// expectMemory looks at the limit of a pod's one container, and at the pod's,
// which has the overhead, too.
func (c *cluster) expectMemory(t *testing.T, name string, want int) {
	t.Helper()
	c.expectLimits(t, name, want, want+1<<20, "memory.limit_in_bytes", "memory.max")
}

// expectLimits waits for a limit of a pod's container and of the pod: kubelet sets
// one after the other, and its status tells of the container's alone.
func (c *cluster) expectLimits(t *testing.T, name string, container, pod int, files ...string) {
	t.Helper()
	uid, id := c.field(t, "pod/"+name, ".metadata.uid"), c.containerID(t, name)
	limit := 10 * time.Second
	err := daemon.Poll(harness.Context(t, limit), limit, func() error {
		for below, want := range map[string]int{id: container, "": pod} {
			got, err := cgroupLimit(t, c.h.Token, uid, below, files...)
			if err != nil {
				return err
			}
			if got != want {
				return fmt.Errorf("pod %s, container %q: %s is %d, not %d", name, below, files[0], got, want)
			}
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

func (c *cluster) containerID(t *testing.T, name string) string {
	t.Helper()
	return filepath.Base(c.field(t, "pod/"+name, ".status.containerStatuses[0].containerID"))
}

func (c *cluster) testReplicas(t *testing.T) {
	c.kubectl(t, "wait", "--for=condition=Ready", "pod", "-l", "app=web", "--timeout=90s")
	ips := strings.Fields(c.kubectl(t, "get", "pod", "-l", "app=web", "-o", "jsonpath={.items[*].status.podIP}"))
	if slices.Sort(ips); len(slices.Compact(ips)) != 3 {
		t.Fatalf("addresses of three pods: %q", ips)
	}
	for _, ip := range ips {
		if got, err := get("http://" + ip + ":8080/greeting"); err != nil || string(got) != "hello" {
			t.Errorf("%s serves %q, %v", ip, got, err)
		}
	}
	if got := c.kubectl(t, "exec", "web-2", "--", "sh", "-c", "echo $PASSWORD; cat /secret/password; stat -Lc ' %a' /secret/password"); got != "swordfish\nswordfish 400\n" {
		t.Errorf("the secret in the container: %q", got)
	}
}

// testDNS looks at what the pod asks, and as who.
func (c *cluster) testDNS(t *testing.T) {
	got := c.kubectl(t, "exec", "web-1", "--", "cat", "/etc/resolv.conf")
	for _, want := range []string{"nameserver " + clusterDNS, "search default.svc." + clusterDomain + " "} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in the pod's resolv.conf:\n%s", want, got)
		}
	}
}

func (c *cluster) testExec(t *testing.T) {
	res := c.try(t, "some input", "exec", "-i", "web-1", "--", "sh", "-c", "cat; echo error >&2; exit 7")
	if res.Code != 7 || res.Stdout != "some input" || !strings.HasPrefix(res.Stderr, "error\n") {
		t.Errorf("exec: %+v", res)
	}
}

// testLogs follows a log from its first line until the container has ended.
func (c *cluster) testLogs(t *testing.T) {
	if got := c.kubectl(t, "logs", "web-3"); got != "web-3 serves\n" {
		t.Errorf("log: %q", got)
	}
	c.kubectl(t, "apply", "-f", "testdata/cluster/counter.yaml")
	var want strings.Builder
	for n := range 60 {
		fmt.Fprintln(&want, n)
	}
	limit := time.Minute
	err := daemon.Poll(harness.Context(t, limit), limit, func() error {
		res := c.try(t, "", "logs", "-f", "counter")
		if res.Code != 0 {
			return fmt.Errorf("logs -f: %s", res.Stderr) // the container is not there yet
		}
		if res.Stdout != want.String() {
			t.Errorf("log that was followed: %q", res.Stdout)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	c.kubectl(t, "wait", "--for=jsonpath={.status.phase}=Succeeded", "pod/counter", "--timeout=60s")
}

func (c *cluster) testPortForward(t *testing.T) {
	said := c.forward(t, "pod/web-1", ":8080")
	var port int
	if _, err := fmt.Sscanf(said, "Forwarding from 127.0.0.1:%d -> 8080", &port); err != nil {
		t.Fatalf("port-forward says %q", said)
	}
	if got, err := get(fmt.Sprintf("http://127.0.0.1:%d/greeting", port)); err != nil || string(got) != "hello" {
		t.Errorf("through the forwarded port: %q, %v", got, err)
	}
}

// testCopy sends more than a pipe holds into a container and back.
func (c *cluster) testCopy(t *testing.T) {
	dir := t.TempDir()
	there, back := filepath.Join(dir, "there"), filepath.Join(dir, "back")
	text := strings.Repeat("0123456789abcdef", 1<<16)
	if err := os.WriteFile(there, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	c.kubectl(t, "cp", there, "web-1:/tmp/copy")
	c.kubectl(t, "cp", "web-1:/tmp/copy", back)
	if got, err := os.ReadFile(back); err != nil || string(got) != text {
		t.Errorf("%d bytes came back of %d, %v", len(got), len(text), err)
	}
}

// testDebug adds a container that sees the processes of another one.
func (c *cluster) testDebug(t *testing.T) {
	c.kubectl(t, "debug", "web-1", "--image="+harness.Image, "--image-pull-policy=Never", "--container=debugger", "--target=web", "--", "sleep", "9003")
	c.kubectl(t, "wait", "--for=jsonpath={.status.ephemeralContainerStatuses[0].state.running}", "pod/web-1", "--timeout=60s")
	if got := c.kubectl(t, "exec", "web-1", "-c", "debugger", "--", "sh", "-c", "tr '\\0' ' ' </proc/1/cmdline; cat /proc/1/root/config/greeting"); got != "httpd -f -p 8080 -h /config hello" {
		t.Errorf("the debugger sees process 1 and its file as %q", got)
	}
	if got := c.field(t, "pod/web-1", ".status.containerStatuses[0].restartCount"); got != "0" {
		t.Errorf("the target restarted %s times", got)
	}
}

// testResize gives a running container more, and less again.
func (c *cluster) testResize(t *testing.T) {
	id := c.containerID(t, "web-2")
	c.expectMemory(t, "web-2", 32<<20)
	for _, to := range []struct{ cpu, memory int }{{200, 48}, {150, 40}} {
		limits := fmt.Sprintf(`{"cpu": "%dm", "memory": "%dMi"}`, to.cpu, to.memory)
		c.kubectl(t, "patch", "pod", "web-2", "--subresource=resize", "--patch",
			`{"spec": {"containers": [{"name": "web", "resources": {"limits": `+limits+`}}]}}`)
		c.kubectl(t, "wait", fmt.Sprintf("--for=jsonpath={.status.containerStatuses[0].resources.limits.memory}=%dMi", to.memory), "pod/web-2", "--timeout=60s")
		c.kubectl(t, "wait", fmt.Sprintf("--for=jsonpath={.status.containerStatuses[0].resources.limits.cpu}=%dm", to.cpu), "pod/web-2", "--timeout=60s")
		c.expectMemory(t, "web-2", to.memory<<20)
		quota := to.cpu * 100 // of 100000 microseconds
		c.expectLimits(t, "web-2", quota, quota, "cpu.cfs_quota_us", "cpu.max")
	}
	if now, restarts := c.containerID(t, "web-2"), c.field(t, "pod/web-2", ".status.containerStatuses[0].restartCount"); now != id || restarts != "0" {
		t.Errorf("the container is %s with %s restarts, was %s", now, restarts, id)
	}
}

// testStatistics reads those of a pod from kubelet through the API server: its
// summary, and what it has for Prometheus.
func (c *cluster) testStatistics(t *testing.T) {
	proxy := "/api/v1/nodes/" + node + "/proxy"
	limit := 30 * time.Second // kubelet collects them from time to time
	err := daemon.Poll(harness.Context(t, limit), limit, func() error {
		var summary struct {
			Pods []struct {
				PodRef     struct{ Name string }
				Network    struct{ RxBytes uint64 }
				Containers []struct {
					Memory struct{ WorkingSetBytes uint64 }
				}
			}
		}
		if err := json.Unmarshal([]byte(c.kubectl(t, "get", "--raw", proxy+"/stats/summary")), &summary); err != nil {
			return err
		}
		for _, p := range summary.Pods {
			if p.PodRef.Name == "web-3" && p.Network.RxBytes > 0 && len(p.Containers) == 1 && p.Containers[0].Memory.WorkingSetBytes > 0 {
				return nil
			}
		}
		return fmt.Errorf("no statistics of web-3: %+v", summary)
	})
	if err != nil {
		t.Error(err)
	}
	metrics := c.kubectl(t, "get", "--raw", proxy+"/metrics/cadvisor")
	for _, name := range []string{"container_memory_working_set_bytes", "container_network_receive_bytes_total"} {
		if !regexp.MustCompile(`(?m)^` + name + `\{.*pod="web-3".*\} [0-9.]*[1-9]`).MatchString(metrics) {
			t.Errorf("no metric %s of web-3", name)
		}
	}
}

// testConfigMap changes what a running container sees.
func (c *cluster) testConfigMap(t *testing.T) {
	c.kubectl(t, "patch", "configmap", "web", "--patch", `{"data": {"greeting": "hello again"}}`)
	ip := c.field(t, "pod/web-1", ".status.podIP")
	limit := 90 * time.Second
	err := daemon.Poll(harness.Context(t, limit), limit, func() error {
		got, err := get("http://" + ip + ":8080/greeting")
		if err == nil && string(got) != "hello again" {
			err = fmt.Errorf("the pod serves %q", got)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// testDeletion deletes everything, after which nothing is left of any pod.
func (c *cluster) testDeletion(t *testing.T, before *leak.Snapshot) {
	if running, err := leftOf(before, c.h); err != nil || len(running) < 20 {
		t.Errorf("of running pods we see %q only, %v", running, err)
	}
	c.kubectl(t, "delete", "-f", "testdata/cluster")
	c.kubectl(t, "delete", "pod/caisson-example")
	c.kubectl(t, "delete", "runtimeclass/caisson")  // last: kubelet looks at it when it ends pods
	awaitNothingLeft(t, before, c.h, 3*time.Minute) // kubelet collects ended pods once a minute
	c.awaitGone("caisson-example")
	c.await(time.Minute, func() error {
		left, err := os.ReadDir(filepath.Join(c.kubelet.dir, "root/pods"))
		if err == nil && len(left) > 0 {
			err = fmt.Errorf("kubelet's directories of pods: %v", left)
		}
		return err
	})
}
