// Package docs runs the examples of docs/, with the directories and sockets that
// everybody has, in namespaces of its own. What docs/kubernetes.md says of
// Kubernetes is run by test/kubernetes.
package docs

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"caisson/internal/config"
	"caisson/test/apart"
	"caisson/test/daemon"
	"caisson/test/harness"
	"caisson/test/image"
	"caisson/test/leak"
)

func TestMain(m *testing.M) {
	apart.Main(m, func(ctx context.Context) (func(context.Context, bool) error, error) {
		interrupted = ctx
		return nil, ownDirectories()
	}, apart.Processes)
}

// interrupted is done when no test may start anything more.
var interrupted = context.Background()

// ownDirectories gives this mount namespace its own of what the servers write to.
func ownDirectories() error {
	over := "lowerdir=/etc,upperdir=/run/etc/upper,workdir=/run/etc/work"
	errs := []error{os.MkdirAll("/run/etc/upper", 0o755), os.MkdirAll("/run/etc/work", 0o755), unix.Mount("overlay", "/etc", "overlay", 0, over)}
	for _, dir := range []string{"/var/lib", "/opt"} {
		errs = append(errs, unix.Mount("own", dir, "tmpfs", 0, "mode=0755"))
	}
	return errors.Join(errs...)
}

var fence = regexp.MustCompile("(?ms)^ *```(\\w+)\n(.*?)^ *```$")

// blocks are the fenced blocks of a page, by language.
func blocks(t *testing.T, page string) map[string][]string {
	t.Helper()
	found := map[string][]string{}
	for _, m := range fence.FindAllStringSubmatch(read(t, page), -1) {
		found[m[1]] = append(found[m[1]], m[2])
	}
	return found
}

// commands are the lines in a page's blocks of shell that begin with one of the programs.
func commands(t *testing.T, page string, programs ...string) []string {
	t.Helper()
	var found []string
	for _, block := range blocks(t, page)["sh"] {
		for line := range strings.Lines(block) {
			name, _, _ := strings.Cut(strings.TrimSpace(line), " ")
			if slices.Contains(programs, name) {
				found = append(found, strings.TrimSpace(line))
			}
		}
	}
	return found
}

func read(t *testing.T, page string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("../../../docs", page))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// TestEachBlockIsKnown: whoever adds an example says here what runs it; TestShellBlocks
// runs those of shell.
func TestEachBlockIsKnown(t *testing.T) {
	want := map[string]map[string]int{
		"apply.md":         {"yaml": 1},            // TestCLIApply
		"configuration.md": {"toml": 1},            // TestConfiguration
		"containerd.md":    {"toml": 3},            // TestContainerd
		"images.md":        {"toml": 3},            // TestRegistry, TestRegistryCertificates, TestRegistryPlatforms
		"kubernetes.md":    {"toml": 1, "yaml": 1}, // TestSystemdCgroup; TestInstall of test/kubernetes, as printed
		"libcontainerd.md": {"go": 1},              // the Example of libcontainerd
	}
	pages, err := filepath.Glob("../../../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, page := range pages {
		var got map[string]int
		for language, found := range blocks(t, filepath.Base(page)) {
			if language == "sh" || language == "text" {
				continue
			}
			if got == nil {
				got = map[string]int{}
			}
			got[language] = len(found)
		}
		if diff := cmp.Diff(want[filepath.Base(page)], got); diff != "" {
			t.Errorf("%s: %s", page, diff)
		}
	}
}

// TestConfiguration: docs/configuration.md shows the defaults, and a daemon that
// has them as its file runs, and can be looked into.
func TestConfiguration(t *testing.T) {
	text := blocks(t, "configuration.md")["toml"][0]
	got, err := config.Parse("", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	want := config.Default()
	if err := errors.Join(got.Complete(), want.Complete()); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("these are not the defaults: %s", diff)
	}

	n := newNode(t)
	n.write("/etc/caisson/config.toml", text)
	n.serve("caissond", got.Address)
	n.doctor("ok    engine ")
	n.run("caisson image import image.tar")
	if out := n.run("caisson run --rm --name c " + harness.Image + " echo hello"); out != "hello\n" {
		t.Errorf("caisson run: %q", out)
	}
	look := commands(t, "configuration.md", "curl", "go")
	if len(look) != 3 {
		t.Fatalf("%d commands, not 3: %q", len(look), look)
	}
	if out := n.run(look[0]); !strings.Contains(out, "goroutine ") {
		t.Errorf("%s: %s", look[0], out)
	}
	n.run(look[1])
	if out := n.run(look[2]); !strings.Contains(out, "Type: inuse_space") {
		t.Errorf("%s: %s", look[2], out)
	}
}

// byShim is the handler for pods without the proxy plugin.
const byShim = `version = 3
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.caisson]
runtime_type = "io.containerd.caisson.v2"
sandboxer = "shim"
disable_pause_image_pull = true
`

// TestContainerd does what docs/containerd.md says.
func TestContainerd(t *testing.T) {
	files := blocks(t, "containerd.md")["toml"]
	servers, clients := commands(t, "containerd.md", "caissond"), commands(t, "containerd.md", "ctr")
	if len(servers) != 1 || len(clients) != 1 {
		t.Fatalf("commands %q and %q, not one of each", servers, clients)
	}
	const address = "/run/containerd/containerd.sock"
	ctr := strings.NewReplacer("IMAGE", harness.Image, "ID", "c", "COMMAND", "echo hello").Replace(clients[0])

	// With nothing but programs in PATH.
	n := newNode(t)
	n.write("/etc/containerd/config.toml", "version = 3\nimports = [\"/etc/containerd/conf.d/*.toml\"]\n"+
		"[plugins.\"io.containerd.cri.v1.runtime\"]\nrestrict_oom_score_adj = true\n"+files[2])
	n.write("/etc/containerd/conf.d/caisson.toml", byShim)
	containerd := n.serve("containerd", address)
	if out := n.run("containerd config dump"); !strings.Contains(out, "sandbox = 'registry.example/any:tag'") {
		t.Errorf("no image is pinned:\n%s", out)
	}
	n.run("ctr image import image.tar")
	n.runPod(address)                                                      // starts a daemon
	n.run(`kill $(cat /run/caisson/lock) && flock /run/caisson/lock true`) // it goes when its owner has ended
	if out := n.run(ctr); out != "hello\n" {                               // likewise
		t.Errorf("%s: %q", ctr, out)
	}
	containerd()
	n.run(`kill $(cat /run/caisson/lock) && flock /run/caisson/lock true`)

	// With the daemon as a service, told by its command line or by its file.
	n.write("/etc/containerd/conf.d/caisson.toml", files[1])
	for _, how := range []struct{ file, command string }{{"", servers[0]}, {files[0], "caissond"}} {
		n.write("/etc/caisson/config.toml", how.file)
		caissond := n.serve(how.command, "/run/caisson/shim.sock")
		containerd := n.serve("containerd", address)
		n.doctor("ok    caissond ", "ok    containerd ", "ok    containerd plugin    sandboxer \"caisson\"", "ok    CRI handler caisson ", "ok    shim binary ")
		if out := n.run(ctr); out != "hello\n" {
			t.Errorf("%s: %q", ctr, out)
		}
		n.runPod(address)
		containerd()
		caissond()
	}
}

// TestSystemdCgroup: what docs/kubernetes.md says for nodes with systemd's cgroups
// is what the daemon reads.
func TestSystemdCgroup(t *testing.T) {
	cfg, err := config.Parse("", []byte(blocks(t, "kubernetes.md")["toml"][0]))
	if err != nil || !cfg.Runtime.SystemdCgroup {
		t.Errorf("%+v, %v", cfg.Runtime, err)
	}
}

// node runs the commands of one test.
type node struct {
	t   *testing.T
	dir string
	env []string
}

func newNode(t *testing.T) *node {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	if err := interrupted.Err(); err != nil {
		t.Fatalf("interrupted: %v", err)
	}
	dir, err := os.MkdirTemp("/tmp", leak.TokenPrefix)
	if err != nil {
		t.Fatal(err)
	}
	before, err := leak.Take()
	if err != nil {
		t.Fatal(err)
	}
	token := filepath.Base(dir)
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			clear(t, before, token)
			return
		}
		// runc leaves the cgroup of the namespace.
		for _, pattern := range []string{"/sys/fs/cgroup/", "/sys/fs/cgroup/*/"} {
			found, err := filepath.Glob(pattern + token)
			if err != nil {
				t.Fatal(err)
			}
			for _, path := range found {
				if err := os.Remove(path); err != nil {
					t.Error(err)
				}
			}
		}
		left, err := before.New(token)
		for _, line := range left {
			// The servers' files are where they belong, and end with the namespace.
			if !strings.HasPrefix(line, "file ") {
				t.Errorf("left behind: %s", line)
			}
		}
		if err != nil {
			t.Error(err)
		}
		for _, dir := range runDirs {
			if left, err := leak.Left(dir); err != nil || len(left) > 0 {
				t.Errorf("left behind: %q, %v", left, err)
			}
		}
		if t.Failed() {
			clear(t, before, token)
		}
	})
	if err := image.WriteFile(filepath.Join(dir, "image.tar"), image.Options{}); err != nil {
		t.Fatal(err)
	}
	bin, err := daemon.BinDir()
	if err != nil {
		t.Fatal(err)
	}
	path := bin + ":" + filepath.Join(filepath.Dir(bin), "build") + ":" + os.Getenv("PATH")
	return &node{t: t, dir: dir, env: append(os.Environ(), "PATH="+path, "CONTAINERD_NAMESPACE="+token)}
}

// runDirs are those of caissond that have nothing when no sandbox runs.
var runDirs = []string{"/run/caisson/s", "/run/caisson/netns", "/run/caisson/runtime"}

// clear ends and removes what a test that failed has left. Monitors outlive their daemon,
// and nothing but their namespace tells them from those of others.
func clear(t *testing.T, before *leak.Snapshot, token string) {
	t.Helper()
	if err := apart.KillOthers(); err != nil {
		t.Fatal(err)
	}
	// They end, and let go of what they have, a moment later.
	if err := daemon.Poll(context.Background(), time.Minute, func() error {
		_ = before.Clean(token) // New tells what could not be removed
		left, err := before.New(token)
		left = slices.DeleteFunc(left, func(line string) bool { return strings.HasPrefix(line, "file ") })
		if len(left) > 0 {
			err = errors.Join(err, fmt.Errorf("left behind: %q", left))
		}
		return err
	}); err != nil {
		t.Error(err)
	}
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter("/run/caisson"))
	for _, m := range slices.Backward(mounts) {
		err = errors.Join(err, unix.Unmount(m.Mountpoint, unix.MNT_DETACH))
	}
	for _, dir := range runDirs {
		err = errors.Join(err, os.RemoveAll(dir))
	}
	if err != nil {
		t.Error(err)
	}
}

func (n *node) write(path, text string) {
	n.t.Helper()
	err := os.MkdirAll(filepath.Dir(path), 0o755)
	if err == nil {
		err = os.WriteFile(path, []byte(text), 0o600)
	}
	if err != nil {
		n.t.Fatal(err)
	}
}

func (n *node) command(line string) *exec.Cmd {
	n.t.Helper()
	if err := interrupted.Err(); err != nil {
		n.t.Fatalf("interrupted: %v", err)
	}
	cmd := exec.CommandContext(harness.Context(n.t, time.Minute), "bash", "-c", line)
	cmd.Dir, cmd.Env = n.dir, n.env
	return cmd
}

// run runs a line of shell in a directory that has image.tar.
func (n *node) run(line string) string {
	n.t.Helper()
	cmd := n.command(line)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		n.t.Fatalf("%s: %v\n%s%s", line, err, out, &stderr)
	}
	return string(out)
}

// doctor runs caisson doctor, which finds these lines and no failure.
func (n *node) doctor(lines ...string) {
	n.t.Helper()
	out := n.run("caisson doctor")
	for _, line := range lines {
		if !strings.Contains(out, line) {
			n.t.Errorf("no %q in\n%s", line, out)
		}
	}
}

// runPod runs a pod of the handler caisson through CRI.
func (n *node) runPod(address string) {
	n.t.Helper()
	token := filepath.Base(n.dir)
	h := harness.Share(n.t, &daemon.Daemon{Token: token, Dir: n.dir, Address: address})
	cri := h.CRI()
	cfg := &runtime.PodSandboxConfig{
		Metadata: &runtime.PodSandboxMetadata{Name: "pod", Uid: token, Namespace: "test"},
		Linux: &runtime.LinuxPodSandboxConfig{CgroupParent: "/" + token, SecurityContext: &runtime.LinuxSandboxSecurityContext{
			NamespaceOptions: &runtime.NamespaceOption{Network: runtime.NamespaceMode_NODE, Pid: runtime.NamespaceMode_CONTAINER},
		}},
	}
	pod, err := cri.RunPodSandbox(h.Context(time.Minute), &runtime.RunPodSandboxRequest{Config: cfg, RuntimeHandler: cri.Handler})
	if err != nil {
		n.t.Fatal(err)
	}
	id := cri.RunContainer(pod.PodSandboxId, cfg, cri.ContainerConfig("c", "exec sleep 1000"))
	if out := cri.Shell(id, "echo hello"); out != "hello\n" {
		n.t.Errorf("exec: %q", out)
	}
	cri.Remove(pod.PodSandboxId)
}

// serve starts a server and returns when it listens. It is stopped when the test
// ends, or by what serve returns.
func (n *node) serve(line, socket string) (stop func()) {
	n.t.Helper()
	log, err := os.CreateTemp(n.dir, "log")
	if err != nil {
		n.t.Fatal(err)
	}
	cmd := exec.Command("bash", "-c", "exec "+line)
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = n.dir, n.env, log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		n.t.Fatal(err)
	}
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		if err := errors.Join(cmd.Process.Signal(syscall.SIGTERM), cmd.Wait()); err != nil {
			n.t.Errorf("%s: %v", line, err)
		}
		if text, err := os.ReadFile(log.Name()); n.t.Failed() {
			n.t.Logf("log of %s:\n%s%v", line, text, err)
		}
		if err := log.Close(); err != nil {
			n.t.Error(err)
		}
	}
	n.t.Cleanup(stop)
	if err := daemon.Poll(harness.Context(n.t, time.Minute), time.Minute, func() error {
		conn, err := net.Dial("unix", socket)
		if err != nil {
			return err
		}
		return conn.Close()
	}); err != nil {
		n.t.Fatalf("%s: %v", line, err)
	}
	return stop
}
