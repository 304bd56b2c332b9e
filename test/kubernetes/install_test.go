package kubernetes

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"caisson/test/daemon"
	"caisson/test/harness"
	"caisson/test/image"
	"caisson/test/leak"
	"caisson/test/registry"
)

// nodeContainerd is the configuration of a node's containerd before Caisson comes.
const nodeContainerd = `version = 3
imports = ["/etc/containerd/conf.d/*.toml"]
[plugins."io.containerd.cri.v1.runtime"]
restrict_oom_score_adj = true
[plugins."io.containerd.cri.v1.runtime".cni]
bin_dirs = [%q]
[plugins."io.containerd.cri.v1.images".pinned_images]
sandbox = %q
`

const pauseImage = "registry.k8s.io/pause:3.10"

const nodeNetwork = `{"cniVersion": "1.0.0", "name": %[1]q, "plugins": [{
	"type": "bridge", "bridge": %[1]q, "isDefaultGateway": true,
	"ipam": {"type": "host-local", "ranges": [[{"subnet": "198.18.0.0/24"}]]}
}]}
`

// TestInstall does what docs/kubernetes.md says, with the directories and sockets
// that everybody has, to a node whose containerd runs a pod already, and goes on
// running pods that do not ask for Caisson.
func TestInstall(t *testing.T) {
	needPrograms(t)
	install, look, apply := commands(t)
	h := newNode(t)
	containerd := h.serve(t, h.binary(t, "containerd"))
	h.awaitCRI(t)
	c := startCluster(t, h.Host)
	c.kubectl(t, "apply", "-f", "testdata/plain.yaml")
	c.kubectl(t, "wait", "--for=condition=Ready", "pod/plain", "--timeout=60s")
	before := c.containerID(t, "plain")

	h.shell(t, install)
	h.serve(t, "/usr/local/bin/caissond")
	containerd.kill()
	containerd.start(t)
	h.awaitCRI(t)
	if said := h.shell(t, look); !strings.Contains(said, "ok    caissond ") || !strings.Contains(said, "ok    containerd ") || strings.Contains(said, "fail ") {
		t.Errorf("%s says:\n%s", look, said)
	}

	h.env = append(h.env, c.environ()...)
	h.shell(t, apply)
	c.bind(t, "caisson-example")
	c.kubectl(t, "wait", "--for=condition=Ready", "pod/caisson-example", "--timeout=60s")
	if found := shims(t); len(found) != 1 || filepath.Base(found[0]) != "containerd-shim-runc-v2" {
		t.Errorf("shims of one pod that does not run in Caisson: %q", found)
	}
	if now := c.containerID(t, "plain"); now != before || c.field(t, "pod/plain", ".status.containerStatuses[0].restartCount") != "0" {
		t.Errorf("the container that was there is %s, was %s", now, before)
	}
	c.kubectl(t, "delete", "pod", "--all")
	c.awaitGone("caisson-example", "plain")
}

// commands are the blocks of shell in docs/kubernetes.md.
func commands(t *testing.T) (install, look, apply string) {
	t.Helper()
	text, err := os.ReadFile("../../docs/kubernetes.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := regexp.MustCompile("(?ms)^```sh\n(.*?)^```$").FindAllStringSubmatch(string(text), -1)
	if len(blocks) != 3 {
		t.Fatalf("%d blocks of shell in docs/kubernetes.md, not 3", len(blocks))
	}
	return blocks[0][1], blocks[1][1], blocks[2][1]
}

// host is a node whose servers have the usual addresses, in directories that the
// mount namespace has for itself.
type host struct {
	*harness.Host
	env []string
}

func newNode(t *testing.T) *host {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", leak.TokenPrefix)
	if err != nil {
		t.Fatal(err)
	}
	d := &daemon.Daemon{Token: filepath.Base(dir), Dir: dir, State: "/run/caisson", Address: "/run/containerd/containerd.sock"}
	t.Cleanup(func() {
		awaitNoProcess(t)
		for _, root := range cgroupRoots(t) {
			if err := unix.Rmdir(filepath.Join(root, d.Token)); err != nil {
				t.Errorf("cgroup: %v", err)
			}
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	for _, over := range []string{"/etc", "/usr/local"} {
		overlay(t, over, filepath.Join("/run/over", over))
	}
	h := &host{Host: harness.Share(t, d)}
	if err := d.AddCgroup("/" + d.Token); err != nil {
		t.Fatal(err)
	}
	h.env = []string{"PATH=/usr/local/bin:" + os.Getenv("PATH") + ":" + filepath.Dir(h.binary(t, "containerd")) + ":" + os.Getenv(programsEnv)}

	r := registry.New()
	for ref, opts := range map[string]image.Options{
		exampleImage: {Ref: exampleImage, Files: map[string]string{"/pulled": ""}},
		pauseImage:   {Ref: pauseImage, Entrypoint: []string{"/bin/sleep", "9999"}},
	} {
		if _, err := r.Add(opts); err != nil {
			t.Fatalf("%s: %v", ref, err)
		}
	}
	stop, err := r.Serve(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = stop() })
	for path, text := range map[string]string{
		"/etc/containerd/config.toml":    fmt.Sprintf(nodeContainerd+mirrors, daemon.CNIBinDir, pauseImage, dir),
		"/etc/cni/net.d/10-net.conflist": fmt.Sprintf(nodeNetwork, d.Token),
	} {
		err := os.MkdirAll(filepath.Dir(path), 0o755)
		if err == nil {
			err = os.WriteFile(path, []byte(text), 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return h
}

// overlay lets a directory be written to until the test ends.
func overlay(t *testing.T, dir, changes string) {
	t.Helper()
	upper, work := filepath.Join(changes, "upper"), filepath.Join(changes, "work")
	for _, path := range []string{upper, work} {
		if err := os.MkdirAll(path, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mount("overlay", dir, "overlay", 0, "lowerdir="+dir+",upperdir="+upper+",workdir="+work); err != nil {
		t.Fatalf("overlay on %s: %v", dir, err)
	}
	t.Cleanup(func() { detach(t, dir) })
}

// binary is a program that tests use, of build/.
func (h *host) binary(t *testing.T, name string) string {
	t.Helper()
	path, err := filepath.Abs("../../build/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// serve runs a server until the test ends. Told to stop, caissond ends its keeper if
// no sandbox needs that any more; killed, it leaves it to the next one.
func (h *host) serve(t *testing.T, path string) *program {
	t.Helper()
	p := start(t, h.Dir, path, h.env)
	t.Cleanup(func() {
		if t.Failed() {
			p.showLog(t)
		}
		if err := p.stop(time.Minute); err != nil {
			t.Error(err)
		}
	})
	return p
}

// awaitNoProcess waits until nothing runs in the mount namespace but the test, and ends
// what goes on all the same.
func awaitNoProcess(t *testing.T) {
	var found []int
	err := daemon.Poll(context.Background(), 10*time.Second, func() (err error) {
		var lines []string
		found, lines, err = beside(os.Getpid())
		if err == nil && len(found) > 0 {
			err = fmt.Errorf("the node's servers have ended, and these run on: %q", lines)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	for _, pid := range found {
		_ = unix.Kill(pid, unix.SIGKILL) // it ends just now
	}
}

// beside are the other processes, and their command lines, that see the same mounts.
func beside(pid int) (pids []int, lines []string, err error) {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		other, err := strconv.Atoi(filepath.Base(dir))
		if err != nil || other == pid {
			continue
		}
		line, _ := os.ReadFile(dir + "/cmdline") // a zombie has none, nor what has ended
		if ours, _ := sameFile("/proc/self/ns/mnt", dir+"/ns/mnt"); ours && len(line) > 0 {
			pids, lines = append(pids, other), append(lines, string(bytes.ReplaceAll(line, []byte{0}, []byte{' '})))
		}
	}
	return pids, lines, err
}

func (h *host) awaitCRI(t *testing.T) {
	t.Helper()
	conn, err := h.Conn()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	limit := time.Minute
	if err := daemon.Poll(h.Context(limit), limit, func() error {
		_, err := runtime.NewRuntimeServiceClient(conn).Version(h.Context(limit), &runtime.VersionRequest{})
		return err
	}); err != nil {
		t.Fatal(err)
	}
}

// shell runs commands where the repository is, and stops at the first that fails.
func (h *host) shell(t *testing.T, script string) string {
	t.Helper()
	res := command(t, "sh", "", h.env, "-euc", "cd ../..\n"+script)
	if res.Code != 0 {
		t.Fatalf("%s\nexit code %d\n%s%s", script, res.Code, res.Stdout, res.Stderr)
	}
	return res.Stdout
}
