package integration

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"caisson/test/daemon"
	"caisson/test/harness"
)

// ctrRun are the arguments of `ctr run` with our runtime, before image and ID.
func ctrRun(h *harness.Host, flags ...string) []string {
	args := []string{"run", "--runtime", harness.Runtime, "--fifo-dir", filepath.Join(h.Dir, "fifo")}
	return append(args, flags...)
}

func TestCtrVersion(t *testing.T) {
	h := harness.Start(t, daemon.Options{})
	if out := h.Ctr("version"); !strings.Contains(out, "Server:") || !strings.Contains(out, "2.4") {
		t.Errorf("ctr version: %s", out)
	}
	if out := h.Ctr("images", "ls"); !strings.Contains(out, harness.Image) {
		t.Errorf("ctr images ls: %s", out)
	}
	if out := h.Ctr("plugins", "ls"); !strings.Contains(out, "caisson") || strings.Contains(out, "error") {
		t.Errorf("ctr plugins ls: %s", out)
	}
}

func TestCtrRunForeground(t *testing.T) {
	h := harness.Start(t, daemon.Options{})

	res := h.TryCtr(append(ctrRun(h, "--rm"), harness.Image, "fg", "sh", "-c", "echo to-stdout; echo to-stderr >&2; exit 7")...)
	if res.Code != 7 || res.Stdout != "to-stdout\n" || !strings.Contains(res.Stderr, "to-stderr\n") {
		t.Errorf("got %+v", res)
	}
	res = h.TryInput(strings.NewReader("some input\n"), "ctr", append(ctrRun(h, "--rm"), harness.Image, "in", "cat")...)
	if res.Code != 0 || res.Stdout != "some input\n" {
		t.Errorf("cat: got %+v", res)
	}
	// More than a pipe holds, to the last byte.
	res = h.TryCtr(append(ctrRun(h, "--rm"), harness.Image, "big", "sh", "-c", "yes 0123456789abcde | head -n 200000")...)
	if want := strings.Repeat("0123456789abcde\n", 200000); res.Stdout != want {
		t.Errorf("big output: exit code %d, %d bytes of %d", res.Code, len(res.Stdout), len(want))
	}
	if out := h.Ctr("containers", "ls", "-q"); out != "" {
		t.Errorf("containers after --rm: %q", out)
	}
}

func TestCtrRunDetached(t *testing.T) {
	h := harness.Start(t, daemon.Options{})
	h.Ctr(append(ctrRun(h, "-d", "--memory-limit", "67108864"), harness.Image, "bg", "sleep", "1000")...)
	expect := func(want string) {
		t.Helper()
		if out := h.Ctr("task", "ls"); !strings.Contains(out, "bg") || !strings.Contains(out, want) {
			t.Errorf("task ls: want %s:\n%s", want, out)
		}
	}
	expect("RUNNING")

	execArgs := []string{"task", "exec", "--fifo-dir", filepath.Join(h.Dir, "fifo")}
	res := h.TryCtr(append(execArgs, "--exec-id", "e1", "bg", "sh", "-c", "hostname >/dev/null; echo from exec; exit 9")...)
	if res.Code != 9 || res.Stdout != "from exec\n" {
		t.Errorf("exec: %+v", res)
	}
	if out := h.Ctr("task", "ps", "bg"); len(strings.Split(strings.TrimSpace(out), "\n")) != 2 {
		t.Errorf("task ps: want a title and one process:\n%s", out)
	}
	if out := h.Ctr("task", "metrics", "bg"); !strings.Contains(out, "memory") || !strings.Contains(out, "67108864") {
		t.Errorf("task metrics: want the memory and its limit:\n%s", out)
	}
	h.Ctr("task", "pause", "bg")
	expect("PAUSED")
	h.Ctr("task", "resume", "bg")
	expect("RUNNING")

	if res := h.TryCtr("task", "delete", "bg"); res.Code == 0 {
		t.Errorf("a running task was deleted: %+v", res)
	}
	task, err := loadTask(h, "bg")
	if err != nil {
		t.Fatal(err)
	}
	exit, err := task.Wait(h.In(time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	h.Ctr("task", "kill", "--signal", "SIGKILL", "bg")
	if status := <-exit; status.ExitCode() != 137 {
		t.Errorf("exit code %d (%v)", status.ExitCode(), status.Error())
	}
	expect("STOPPED")
	h.TryCtr("task", "delete", "bg") // its exit code is the task's
	if out := h.Ctr("task", "ls", "-q"); out != "" {
		t.Errorf("tasks after delete: %q", out)
	}
	h.Ctr("containers", "rm", "bg")
}

func TestCtrTerminal(t *testing.T) {
	h := harness.Start(t, daemon.Options{})
	term := h.Terminal("ctr", append(ctrRun(h, "--rm", "-t"), harness.Image, "tty", "sh")...)
	// The size arrives after the start.
	term.Type("until stty size 2>/dev/null | grep '40 120'; do usleep 20000; done; tty\n")
	term.Expect("\n40 120")
	term.Expect("\n/dev/")
	term.Resize(100, 30)
	term.Type("until stty size | grep '30 100'; do usleep 20000; done\n")
	term.Expect("\n30 100")

	exec := h.Terminal("ctr", "task", "exec", "--fifo-dir", filepath.Join(h.Dir, "fifo"), "-t", "--exec-id", "e", "tty", "sh")
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

// TestCtrSandboxes goes through containerd's own sandboxer, which starts our
// runtime by its shim binary.
func TestCtrSandboxes(t *testing.T) {
	h := harness.Start(t, daemon.Options{})
	cfg := filepath.Join(h.Dir, "pod.json")
	if err := os.WriteFile(cfg, []byte(`{"hostname": "box"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"sb1", "sb2"} {
		if out := h.Ctr("sandboxes", "create", "--runtime", harness.Runtime, cfg, id); out != id+"\n" {
			t.Errorf("sandboxes create: %q", out)
		}
	}
	if out := h.Ctr("sandboxes", "list"); !strings.Contains(out, "sb1") || !strings.Contains(out, "sb2") || !strings.Contains(out, harness.Runtime) {
		t.Errorf("sandboxes list:\n%s", out)
	}
	// Containers of one sandbox share its namespaces, those of another do not.
	namespaces := func(sandbox, id string) string {
		return h.Ctr(append(ctrRun(h, "--rm", "--sandbox", sandbox), harness.Image, id, "sh", "-c", "for n in net ipc uts; do readlink /proc/self/ns/$n; done")...)
	}
	first, second, other := namespaces("sb1", "n1"), namespaces("sb1", "n2"), namespaces("sb2", "n3")
	if first != second || first == other {
		t.Errorf("namespaces of two containers in sb1: %q and %q; in sb2: %q", first, second, other)
	}
	h.Ctr("sandboxes", "remove", "sb1", "sb2")
	if out := h.Ctr("sandboxes", "list"); strings.Contains(out, "sb") {
		t.Errorf("sandboxes list after remove:\n%s", out)
	}
}
