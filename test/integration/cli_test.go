package integration

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"caisson/test/daemon"
	"caisson/test/harness"
	"caisson/test/image"
)

func TestCLIRun(t *testing.T) {
	h := harness.Start(t, daemon.Options{})
	for _, test := range []struct {
		name   string
		stdin  string
		args   []string
		code   int
		stdout string
		stderr string // is contained
	}{
		{"both streams", "", []string{harness.Image, "sh", "-c", "echo out; echo err >&2"}, 0, "out\n", "err\n"},
		{"exit code", "", []string{harness.Image, "sh", "-c", "exit 77"}, 77, "", ""},
		{"killed by a signal", "", []string{harness.Image, "sh", "-c", "sh -c 'kill -9 $$'; exit $?"}, 137, "", ""},
		{"input", "typed\n", []string{"-i", harness.Image, "cat"}, 0, "typed\n", ""},
		{"environment", "", []string{"-e", "A=b c", harness.Image, "sh", "-c", "echo $A"}, 0, "b c\n", ""},
		{"host name", "", []string{"--hostname", "box", harness.Image, "hostname"}, 0, "box\n", ""},
		{"memory", "", []string{"-m", "64m", harness.Image, "sh", "-c", "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null; true"}, 0, "67108864\n", ""},
		{"volume", "", []string{"-v", h.Dir + ":/here:ro", harness.Image, "sh", "-c", "test -e /here/config.toml && ! touch /here/x 2>/dev/null && echo read-only"}, 0, "read-only\n", ""},
		{"no network", "", []string{harness.Image, "ls", "/sys/class/net"}, 0, "lo\n", ""},
		{"network of the host", "", []string{"--net", "host", harness.Image, "readlink", "/proc/self/ns/net"}, 0, readlink(t, "/proc/self/ns/net") + "\n", ""},
		{"CNI", "", []string{"--net", "cni", harness.Image, "sh", "-c", "ip -4 -o addr show eth0 | grep -c 'inet 10[.]'"}, 0, "1\n", ""},
		{"not in the image", "", []string{harness.Image, "no-such-binary"}, 127, "", "no-such-binary"},
		{"not executable", "", []string{harness.Image, "/etc/passwd"}, 126, "", "/etc/passwd"},
		{"no such sandbox", "", []string{"--sandbox", "nowhere", harness.Image, "true"}, 125, "", "nowhere"},
		{"bad name", "", []string{"--name", "a/b", harness.Image, "true"}, 125, "", "a/b"},
		{"bad flag", "", []string{"--no-such-flag", harness.Image, "true"}, 125, "", "no-such-flag"},
	} {
		t.Run(test.name, func(t *testing.T) {
			args := append([]string{"run", "--rm"}, test.args...)
			res := h.TryInput(strings.NewReader(test.stdin), "caisson", args...)
			if res.Code != test.code || res.Stdout != test.stdout || !strings.Contains(res.Stderr, test.stderr) {
				t.Errorf("%s: %+v", strings.Join(args, " "), res)
			}
		})
	}
	if out := h.Caisson("ps", "-aq"); out != "" {
		t.Errorf("containers after run --rm: %q", out)
	}
	if out := h.Caisson("sandbox", "ls", "-q"); out != "" {
		t.Errorf("sandboxes after run --rm: %q", out)
	}
}

func TestCLITerminal(t *testing.T) {
	h := harness.Start(t, daemon.Options{})
	term := h.Terminal("caisson", "run", "--rm", "-it", "--name", "tty", harness.Image, "sh")
	// The size arrives after the start.
	term.Type("until stty size 2>/dev/null | grep '40 120'; do usleep 20000; done; tty\n")
	term.Expect("\n40 120")
	term.Resize(100, 30)
	term.Type("until stty size | grep '30 100'; do usleep 20000; done\n")
	term.Expect("\n30 100")
	exec := h.Terminal("caisson", "exec", "-it", "tty", "sh")
	exec.Type("echo second $((40+2)); exit 4\n")
	exec.Expect("second 42")
	if code, out := exec.Wait(); code != 4 {
		t.Errorf("exec: exit code %d:\n%s", code, out)
	}
	term.Type("exit 3\n")
	if code, out := term.Wait(); code != 3 {
		t.Errorf("exit code %d:\n%s", code, out)
	}
}

func TestCLIContainer(t *testing.T) {
	h := harness.Start(t, daemon.Options{})
	h.Caisson("run", "-d", "--name", "web", harness.Image, "sh", "-c", "trap 'echo asked to stop; exit 8' TERM; echo started; while :; do sleep 1 & wait $!; done")
	if out := h.Caisson("ps"); !strings.Contains(out, "web") || !strings.Contains(out, "running") {
		t.Errorf("ps:\n%s", out)
	}
	var rows []map[string]any
	if out := h.Caisson("ps", "--format", "json"); json.Unmarshal([]byte(out), &rows) != nil || len(rows) != 1 || rows[0]["id"] != "web" {
		t.Errorf("ps --format json: %s", out)
	}
	if res := h.TryCaisson("exec", "web", "sh", "-c", "echo in; exit 5"); res.Code != 5 || res.Stdout != "in\n" {
		t.Errorf("exec: %+v", res)
	}
	if res := h.TryCaisson("exec", "web", "no-such-binary"); res.Code != 127 {
		t.Errorf("exec of nothing: %+v", res)
	}
	if res := h.TryCaisson("rm", "web"); res.Code == 0 || !strings.Contains(res.Stderr, "caisson stop web") {
		t.Errorf("rm of a running container must say what to do: %+v", res)
	}
	if res := h.TryCaisson("run", "--name", "web", harness.Image, "true"); res.Code != 125 {
		t.Errorf("run with a name in use: %+v", res)
	}
	h.Caisson("stop", "web")
	if out := h.Caisson("logs", "-f", "web"); out != "started\nasked to stop\n" {
		t.Errorf("logs: %q", out)
	}
	if out := h.Caisson("ps", "-a", "--format", "json"); json.Unmarshal([]byte(out), &rows) != nil || rows[0]["exitCode"] != 8.0 {
		t.Errorf("ps -a: %s", out)
	}
	h.Caisson("rm", "web")

	h.Caisson("run", "-d", "--name", "k", harness.Image, "sleep", "1000")
	h.Caisson("kill", "k")
	h.Caisson("rm", "-f", "k")
	for _, command := range []string{"exec unknown true", "stop unknown", "kill unknown", "rm unknown", "logs unknown"} {
		if res := h.TryCaisson(strings.Fields(command)...); res.Code == 0 || !strings.Contains(res.Stderr, "unknown") {
			t.Errorf("%s: %+v", command, res)
		}
	}
}

func TestCLISandbox(t *testing.T) {
	h := harness.Start(t, daemon.Options{})
	h.Caisson("sandbox", "create", "--net", "cni", "--hostname", "the-box", "-m", "128m", "pod1")
	if res := h.TryCaisson("run", "--sandbox", "pod1", harness.Image, "true"); res.Code != 125 || !strings.Contains(res.Stderr, "caisson sandbox start pod1") {
		t.Errorf("run in a sandbox that does not run: %+v", res)
	}
	h.Caisson("sandbox", "start", "pod1")
	h.Caisson("run", "-d", "--name", "a", "--sandbox", "pod1", harness.Image, "sleep", "1000")
	if out := h.Caisson("run", "--rm", "--sandbox", "pod1", harness.Image, "hostname"); out != "the-box\n" {
		t.Errorf("host name: %q", out)
	}
	if out := h.Caisson("sandbox", "ls"); !strings.Contains(out, "pod1") || !strings.Contains(out, "ready") {
		t.Errorf("sandbox ls:\n%s", out)
	}
	if out := h.Caisson("sandbox", "inspect", "pod1"); !json.Valid([]byte(out)) || !strings.Contains(out, "the-box") {
		t.Errorf("sandbox inspect:\n%s", out)
	}
	if out := h.Caisson("sandbox", "metrics", "pod1"); !strings.Contains(out, "pod1") {
		t.Errorf("sandbox metrics:\n%s", out)
	}
	h.Caisson("sandbox", "update", "--label", "tier=db", "-m", "96m", "pod1")
	if out := h.Caisson("sandbox", "inspect", "pod1"); !strings.Contains(out, "tier") {
		t.Errorf("sandbox inspect after update:\n%s", out)
	}
	if res := h.TryCaisson("sandbox", "create", "pod1"); res.Code == 0 || !strings.Contains(res.Stderr, "pod1") {
		t.Errorf("create twice: %+v", res)
	}
	if res := h.TryCaisson("sandbox", "rm", "pod1"); res.Code == 0 || !strings.Contains(res.Stderr, "caisson ") {
		t.Errorf("rm of a running sandbox must say what to do: %+v", res)
	}
	h.Caisson("sandbox", "stop", "pod1")
	h.Caisson("sandbox", "wait", "pod1")
	h.Caisson("sandbox", "rm", "-f", "pod1")
	if out := h.Caisson("sandbox", "ls", "-q"); out != "" {
		t.Errorf("sandboxes after rm: %q", out)
	}
}

func TestCLIImages(t *testing.T) {
	h := harness.New(t, daemon.Options{})
	h.StartDaemon()
	archive := filepath.Join(h.Dir, "image.tar")
	if err := image.WriteFile(archive, image.Options{Ref: "docker.io/library/one:1", Cmd: []string{"echo", "from the archive"}}); err != nil {
		t.Fatal(err)
	}
	h.Caisson("image", "import", archive)
	if out := h.Caisson("run", "--rm", "one:1"); out != "from the archive\n" {
		t.Errorf("run: %q", out)
	}
	rootfs := filepath.Join(h.Dir, "rootfs.tar")
	f, err := os.Create(rootfs)
	if err != nil {
		t.Fatal(err)
	}
	if err := image.RootFS(f, image.Options{}); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	h.Caisson("image", "import", "--cmd", "echo", "--cmd", "from the rootfs", rootfs, "two:2")
	if out := h.Caisson("run", "--rm", "two:2"); out != "from the rootfs\n" {
		t.Errorf("run: %q", out)
	}
	if out := h.Caisson("image", "ls"); !strings.Contains(out, "one:1") || !strings.Contains(out, "two:2") {
		t.Errorf("image ls:\n%s", out)
	}
	h.Caisson("image", "rm", "one:1", "two:2")
	if out := h.Caisson("image", "ls", "-q"); out != "" {
		t.Errorf("images after rm: %q", out)
	}
	if res := h.TryCaisson("image", "import", h.ConfigFile); res.Code == 0 || !strings.Contains(res.Stderr, h.ConfigFile) {
		t.Errorf("import of no archive: %+v", res)
	}
}
