package integration

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"caisson/test/daemon"
	"caisson/test/harness"
)

func TestCLIApply(t *testing.T) {
	h := harness.Start(t, daemon.Options{})
	h.Caisson("image", "tag", harness.Image, "demo")
	t.Run("example", func(t *testing.T) { applyExample(t, h) })
	t.Run("everything", func(t *testing.T) { applyEverything(t, h) })
	t.Run("undo", func(t *testing.T) { applyUndo(t, h) })
}

// podFile writes a file to apply.
func podFile(t *testing.T, h *harness.Host, text string) string {
	t.Helper()
	path := filepath.Join(h.Dir, "pod.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// nothingLeft: neither a container nor a sandbox nor a volume.
func nothingLeft(t *testing.T, h *harness.Host, when string) {
	t.Helper()
	if out := h.Caisson("ps", "-aq") + h.Caisson("sandbox", "ls", "-q"); out != "" {
		t.Errorf("%s: %q is left", when, out)
	}
	left, err := filepath.Glob(filepath.Join(h.Root, "*", "volumes", "*", "*"))
	more, err2 := filepath.Glob(filepath.Join(h.Root, "volumes", "*", "*"))
	if left = append(left, more...); errors.Join(err, err2) != nil || len(left) > 0 {
		t.Errorf("%s: %q is left, %v", when, left, errors.Join(err, err2))
	}
}

// applyExample does what docs/apply.md says.
func applyExample(t *testing.T, h *harness.Host) {
	page, err := os.ReadFile("../../docs/apply.md")
	if err != nil {
		t.Fatal(err)
	}
	example := regexp.MustCompile("(?s)```yaml\n(.*?)```").FindSubmatch(page)
	commands := regexp.MustCompile(`(?m)^caisson (.*)$`).FindAllSubmatch(page, -1)
	if example == nil || len(commands) != 5 {
		t.Fatalf("the example and its commands: %q, %q", example, commands)
	}
	path := podFile(t, h, string(example[1]))
	for i, want := range []string{"web created\n", "web-server", "Hello from a sandbox.\nServed by web.\n", "web unchanged\n", "web\n"} {
		line := strings.ReplaceAll(string(commands[i][1]), "pod.yaml", path)
		// The server may need a moment until it listens.
		if strings.HasPrefix(line, "exec ") {
			h.Caisson("exec", "web-server", "sh", "-c", "until wget -q -O /dev/null http://127.0.0.1:8080/ 2>/dev/null; do usleep 10000; done")
		}
		if out := h.Caisson(strings.Fields(line)...); !strings.Contains(out, want) || strings.HasSuffix(want, "\n") && out != want {
			t.Errorf("%s: %q, want %q", line, out, want)
		}
	}
	nothingLeft(t, h, "after rm")
}

const everything = `
apiVersion: v1
kind: Secret
metadata: {name: keys}
stringData: {token: s3cret}
---
apiVersion: v1
kind: Pod
metadata: {name: all, labels: {app: x}}
spec:
  hostname: box
  shareProcessNamespace: true
  securityContext:
    fsGroup: 2000
    sysctls: [{name: kernel.shm_rmid_forced, value: "1"}]
  volumes:
  - {name: work, emptyDir: {}}
  - {name: fast, emptyDir: {medium: Memory, sizeLimit: 1Mi}}
  - {name: keys, secret: {secretName: keys, defaultMode: 0400}}
  - {name: host, hostPath: {path: HOSTPATH, type: DirectoryOrCreate}}
  initContainers:
  - name: first
    image: demo
    command: [sh, -c, "mkdir /work/sub && echo one >/work/sub/file && id -G | grep -qw 2000"]
    volumeMounts: [{name: work, mountPath: /work}]
  - {name: side, image: demo, restartPolicy: Always, command: [sleep, "1000"]}
  containers:
  - name: main
    image: demo
    command: [sh, -c]
    args: ["cat /proc/sys/kernel/shm_rmid_forced; hostname; cat /sub/file /keys/token; echo; echo $(IP) | grep -c 10; df -k /fast | tail -n 1 | awk '{print $2}'; echo 2 >/host/file; id -u; id -G; touch /x 2>/dev/null || echo read-only; grep -E 'CapBnd|Seccomp:|NoNewPrivs' /proc/self/status; cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null; test $$$$ -gt 1 && echo shared"]
    env: [{name: IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}]
    resources: {limits: {memory: 64Mi}}
    securityContext:
      runAsUser: 1000
      readOnlyRootFilesystem: true
      allowPrivilegeEscalation: false
      seccompProfile: {type: Unconfined}
      capabilities: {drop: [ALL], add: [CHOWN]}
    volumeMounts:
    - {name: work, mountPath: /sub, subPath: sub}
    - {name: fast, mountPath: /fast}
    - {name: keys, mountPath: /keys}
    - {name: host, mountPath: /host}
    - {name: host, mountPath: /part, subPath: part}
  - name: big
    image: demo
    command: [sh, -c, "grep CapBnd /proc/self/status; mount -t tmpfs x /mnt && echo mounted; touch /here/new; sleep 1000"]
    securityContext: {privileged: true}
    volumeMounts: [{name: work, mountPath: /here, subPath: sub}]
`

const everythingSays = `1
box
one
s3cret
1
1024
1000
1000 50 2000
read-only
CapBnd:	0000000000000001
NoNewPrivs:	1
Seccomp:	0
67108864
shared
`

func applyEverything(t *testing.T, h *harness.Host) {
	hostPath := filepath.Join(h.Dir, "made")
	keep := filepath.Join(hostPath, "part", "mounted", "keep")
	if err := errors.Join(os.MkdirAll(filepath.Dir(keep), 0o755), os.Chmod(hostPath, 0o777)); err != nil {
		t.Fatal(err)
	}
	// Shared mounts, as most hosts have: what is done to a copy is done to all.
	defer unix.Unmount(hostPath, unix.MNT_DETACH)
	if err := errors.Join(
		unix.Mount(hostPath, hostPath, "", unix.MS_BIND, ""), unix.Mount("", hostPath, "", unix.MS_SHARED, ""),
		unix.Mount("own", filepath.Dir(keep), "tmpfs", 0, ""), os.WriteFile(keep, nil, 0o600),
	); err != nil {
		t.Fatal(err)
	}
	text := strings.ReplaceAll(everything, "HOSTPATH", hostPath)
	path := podFile(t, h, text)
	if out := h.Caisson("sandbox", "apply", "-f", path); out != "all created\n" {
		t.Errorf("apply: %q", out)
	}
	h.Caisson("wait", "all-main")
	if out := h.Caisson("logs", "all-main"); out != everythingSays {
		t.Errorf("the container says:\n%s", out)
	}
	if out, err := os.ReadFile(filepath.Join(hostPath, "file")); err != nil || string(out) != "2\n" {
		t.Errorf("the host's file: %q, %v", out, err)
	}
	if out := h.Caisson("inspect", "-f", "{{.status}}", "all-side"); out != "running\n" {
		t.Errorf("the sidecar: %s", out)
	}
	if res := h.TryInput(strings.NewReader(text), "caisson", "sandbox", "apply", "-f", "-"); res.Code != 0 || res.Stdout != "all unchanged\n" {
		t.Errorf("apply again: %+v", res)
	}
	path = podFile(t, h, strings.Replace(text, "hostname: box", "hostname: cube", 1))
	if res := h.TryCaisson("sandbox", "apply", "-f", path); res.Code != 1 || !strings.Contains(res.Stderr, "--replace") {
		t.Errorf("apply of a change: %+v", res)
	}
	if out := h.Caisson("sandbox", "apply", "--replace", "-f", path); out != "all replaced\n" {
		t.Errorf("apply --replace: %q", out)
	}
	h.Caisson("wait", "all-main")
	if out := h.Caisson("logs", "all-main"); !strings.Contains(out, "\ncube\n") {
		t.Errorf("after --replace the container says:\n%s", out)
	}
	h.Caisson("sandbox", "delete", "-f", "all")
	nothingLeft(t, h, "after rm")
	for _, path := range []string{filepath.Join(hostPath, "file"), keep} {
		if _, err := os.Stat(path); err != nil {
			t.Errorf("the host's own: %v", err)
		}
	}
}

// applyUndo: what fails half-way leaves nothing.
func applyUndo(t *testing.T, h *harness.Host) {
	made := filepath.Join(h.Dir, "undone")
	for name, test := range map[string]struct{ init, main, want string }{
		"init fails":    {"command: [sh, -c, 'echo why >&2; exit 3']", "command: [sleep, '1000']", `init container "setup" ended with exit code 3, so that nothing of sandbox "web" was kept; it wrote:` + "\n  why\n"},
		"no executable": {"command: ['true']", "command: [no-such-binary]", "no-such-binary"},
		"subPath leads out": {"command: [ln, -s, /etc, /v/out]\n    volumeMounts: [{name: v, mountPath: /v}]",
			"command: [sleep, '1000']\n    volumeMounts: [{name: v, mountPath: /v, subPath: out}]", `subPath "out"`},
		"no image": {"command: ['true']", "imagePullPolicy: Never\n    image: nowhere", "imagePullPolicy is Never"},
	} {
		text := "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec:\n" +
			"  volumes: [{name: v, emptyDir: {medium: Memory}}, {name: h, hostPath: {path: " + made + "/deep, type: DirectoryOrCreate}}]\n" +
			"  initContainers:\n  - name: setup\n    image: demo\n    " + test.init + "\n" +
			"  containers:\n  - {name: other, image: demo, command: [sleep, '1000']}\n  - name: server\n"
		if !strings.Contains(test.main, "image:") {
			text += "    image: demo\n"
		}
		path := podFile(t, h, text+"    "+test.main+"\n")
		res := h.TryCaisson("sandbox", "apply", "--net", "none", "-f", path)
		if res.Code != 1 || res.Stdout != "" || !strings.Contains(res.Stderr, test.want) {
			t.Errorf("%s: %+v", name, res)
		}
		nothingLeft(t, h, name)
		if _, err := os.Stat(made); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: the path of the host: %v", name, err)
		}
	}
	applyInterrupted(t, h)
	path := podFile(t, h, "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec:\n  containers:\n  - {name: a}\n")
	if res := h.TryCaisson("sandbox", "apply", "-f", path); res.Code != 1 || !strings.Contains(res.Stderr, path+`: document 1 (Pod "web"): spec.containers[0].image: is missing`) {
		t.Errorf("a bad file: %+v", res)
	}
	if res := h.TryCaisson("sandbox", "apply"); res.Code != 1 || !strings.Contains(res.Stderr, "-f pod.yaml") {
		t.Errorf("no file: %+v", res)
	}
	if res := h.TryCaisson("sandbox", "apply", "-f", path+".none"); res.Code != 1 || !strings.Contains(res.Stderr, "no such file") {
		t.Errorf("a file that is not there: %+v", res)
	}
}

// applyInterrupted: ctrl-C while an init container runs.
func applyInterrupted(t *testing.T, h *harness.Host) {
	path := podFile(t, h, "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec:\n"+
		"  initContainers: [{name: setup, image: demo, command: [sleep, '1000']}]\n  containers: [{name: a, image: demo}]\n")
	term := h.Terminal("caisson", "sandbox", "apply", "--net", "none", "-f", path)
	for limit := h.Context(time.Minute); h.Caisson("ps", "-q") != "web-setup\n"; {
		if limit.Err() != nil {
			t.Fatal("the init container does not run")
		}
	}
	term.Type("\x03")
	if code, out := term.Wait(); code != 130 || !strings.Contains(out, "interrupted") {
		t.Errorf("interrupted: exit code %d:\n%s", code, out)
	}
	nothingLeft(t, h, "interrupted")
}
