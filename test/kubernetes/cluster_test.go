package kubernetes

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"caisson/test/daemon"
	"caisson/test/harness"
)

// cluster is an API server on loopback with an etcd of its own. There is no
// scheduler and no controller: pods name their node, or are bound to it.
type cluster struct {
	*kubelet
	dir, kubeconfig string
	servers         []*program
}

// token is what kubelet and kubectl show. The network namespace keeps others out.
const token = "caisson"

const kubeconfig = `apiVersion: v1
kind: Config
clusters: [{name: test, cluster: {server: "https://127.0.0.1:%d", insecure-skip-tls-verify: true}}]
users: [{name: admin, user: {token: %s}}]
contexts: [{name: test, context: {cluster: test, user: admin}}]
current-context: test
`

// startCluster starts the servers and a kubelet, and returns when the node is
// ready.
func startCluster(t *testing.T, h *harness.Host) *cluster {
	t.Helper()
	c := &cluster{dir: filepath.Join(h.Dir, "cluster")}
	c.kubeconfig = filepath.Join(c.dir, "kubeconfig")
	if err := os.Mkdir(c.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, server := range c.servers {
			if t.Failed() {
				server.showLog(t)
			}
			server.kill()
		}
	})
	ports := freePorts(t, "127.0.0.1", 3)
	c.write(t, "kubeconfig", fmt.Sprintf(kubeconfig, ports[2], token))
	c.startServers(t, ports[0], ports[1], ports[2])
	limit := time.Minute
	if err := daemon.Poll(harness.Context(t, limit), limit, func() error {
		// The namespace is made some time after the server is ready.
		if res := c.try(t, "", "get", "namespace", "default"); res.Code != 0 {
			return fmt.Errorf("API server: %s", res.Stderr)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	c.kubelet = startKubelet(t, h, c.kubeconfig)
	c.kubectl(t, "wait", "--for=create", "node/"+node, "--timeout=60s")
	c.kubectl(t, "wait", "--for=condition=Ready", "node/"+node, "--timeout=60s")
	return c
}

// startServers starts etcd and the API server that keeps everything in it.
func (c *cluster) startServers(t *testing.T, client, peer, api int) {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	accounts := c.write(t, "accounts.pem", string(pem.EncodeToMemory(&pem.Block{
		Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key),
	})))
	tokens := c.write(t, "tokens.csv", token+`,admin,admin,"system:masters"`+"\n")

	etcd, other := fmt.Sprintf("http://127.0.0.1:%d", client), fmt.Sprintf("http://127.0.0.1:%d", peer)
	c.servers = append(c.servers, start(t, c.dir, built("etcd"), nil, "--data-dir="+c.dir+"/etcd", "--unsafe-no-fsync", "--log-level=warn",
		"--listen-client-urls="+etcd, "--advertise-client-urls="+etcd,
		"--listen-peer-urls="+other, "--initial-advertise-peer-urls="+other, "--initial-cluster=default="+other))
	c.servers = append(c.servers, start(t, c.dir, built("kube-apiserver"), nil, "--etcd-servers="+etcd,
		"--bind-address=127.0.0.1", fmt.Sprintf("--secure-port=%d", api), "--cert-dir="+c.dir+"/pki",
		"--advertise-address="+nodeIP, "--endpoint-reconciler-type=none", "--service-cluster-ip-range=198.51.100.0/24",
		// Nothing resolves the node's name.
		"--kubelet-preferred-address-types=InternalIP",
		"--token-auth-file="+tokens, "--authorization-mode=AlwaysAllow",
		// Nobody makes the service accounts that pods are given otherwise.
		"--disable-admission-plugins=ServiceAccount",
		"--service-account-issuer=https://127.0.0.1", "--service-account-key-file="+accounts, "--service-account-signing-key-file="+accounts))
}

func (c *cluster) write(t *testing.T, name, text string) (path string) {
	t.Helper()
	path = filepath.Join(c.dir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func (c *cluster) environ() []string {
	return []string{"HOME=" + c.dir, "KUBECONFIG=" + c.kubeconfig}
}

// try runs kubectl, whatever it exits with.
func (c *cluster) try(t *testing.T, stdin string, args ...string) harness.Result {
	t.Helper()
	return command(t, built("kubectl"), stdin, c.environ(), args...)
}

// kubectl runs kubectl, and fails the test unless it exits with 0.
func (c *cluster) kubectl(t *testing.T, args ...string) string {
	t.Helper()
	return c.input(t, "", args...)
}

// input does the same with input.
func (c *cluster) input(t *testing.T, stdin string, args ...string) string {
	t.Helper()
	res := c.try(t, stdin, args...)
	if res.Code != 0 {
		t.Fatalf("kubectl %s: exit code %d\nstdout: %s\nstderr: %s", strings.Join(args, " "), res.Code, res.Stdout, res.Stderr)
	}
	return res.Stdout
}

// field is a field of an object, by its JSON path.
func (c *cluster) field(t *testing.T, object, path string) string {
	t.Helper()
	return c.kubectl(t, "get", object, "-o", "jsonpath={"+path+"}")
}

// bind does the scheduler's part.
func (c *cluster) bind(t *testing.T, pod string) {
	t.Helper()
	c.input(t, `{"apiVersion": "v1", "kind": "Binding", "metadata": {"name": "`+pod+`"}, "target": {"kind": "Node", "name": "`+node+`"}}`,
		"create", "--raw", "/api/v1/namespaces/default/pods/"+pod+"/binding", "-f", "-")
}

// forward runs kubectl port-forward, from a port that it chooses, until the
// test ends, and returns what it says first.
func (c *cluster) forward(t *testing.T, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(harness.Context(t, time.Minute), built("kubectl"), append([]string{"port-forward"}, args...)...)
	cmd.Env = append(os.Environ(), c.environ()...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 5 * time.Second
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = cmd.Stdout
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Cancel() // it has ended already
		_ = cmd.Wait()   // "signal: terminated"
	})
	line := make([]byte, 200)
	n, err := out.Read(line)
	if err != nil {
		t.Fatalf("port-forward: %v", err)
	}
	return string(line[:n])
}
