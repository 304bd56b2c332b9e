package integration

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"caisson/test/daemon"
	"caisson/test/harness"
)

// TestCLICheckpoint takes a container from one life to the next where CRIU works, and sees
// that the container stays as it is, and the reason is told, where it does not.
func TestCLICheckpoint(t *testing.T) {
	noCRIU := checkCRIU() // first, since it leaves a file in /run
	h := harness.Start(t, daemon.Options{})
	defer h.Caisson("rm", "-f", "count", "logs", "tty")
	h.Caisson("run", "-dt", "--name", "tty", harness.Image, "sleep", "1000")
	if res := h.TryCaisson("checkpoint", "tty"); res.Code != 1 || !strings.Contains(res.Stderr, "without --tty") {
		t.Errorf("checkpoint of one with a terminal: %+v", res)
	}
	h.Caisson("run", "-d", "--name", "logs", harness.Image, "sh", "-c", "n=0; while :; do n=$((n+1)); echo $n; echo $n >&2; usleep 50000; done")
	h.Caisson("run", "-d", "--name", "count", "--log-driver", "none", harness.Image, "sh", "-c", "n=0; while :; do n=$((n+1)); echo $n >>/count; usleep 50000; done")
	if res := h.TryCaisson("logs", "count"); res.Code != 1 || !strings.Contains(res.Stderr, "keeps no log") {
		t.Errorf("logs of one without: %+v", res)
	}
	image := filepath.Join(h.Root, "checkpoints", h.Token, "count")
	if res := h.TryCaisson("restore", "count"); res.Code != 1 || !strings.Contains(res.Stderr, "caisson checkpoint count") {
		t.Errorf("restore without a checkpoint: %+v", res)
	}
	if res := h.TryCaisson("checkpoint", "--image-path", h.Dir, "count"); res.Code != 1 || !strings.Contains(res.Stderr, "remove it first") {
		t.Errorf("checkpoint to a directory in use: %+v", res)
	}
	if noCRIU != nil {
		t.Logf("CRIU does not work here: %v", noCRIU)
		before := filepath.Join(image, "before")
		if err := errors.Join(os.MkdirAll(image, 0o700), os.WriteFile(before, nil, 0o600)); err != nil {
			t.Fatal(err)
		}
		res := h.TryCaisson("checkpoint", "count")
		if res.Code != 1 || !strings.Contains(res.Stderr, `container "count": checkpoint:`) || !strings.Contains(res.Stderr, "criu check") {
			t.Errorf("checkpoint: %+v", res)
		}
		if errors.Is(noCRIU, exec.ErrNotFound) && !strings.Contains(res.Stderr, "install CRIU") {
			t.Errorf("checkpoint without CRIU: %+v", res)
		}
		if _, err := os.Stat(before); err != nil {
			t.Errorf("the checkpoint of before: %v", err)
		}
		if all, err := os.ReadDir(filepath.Dir(image)); err != nil || len(all) != 1 {
			t.Errorf("the checkpoint that failed: %v, %v", all, err)
		}
		if out := h.Caisson("inspect", "-f", "{{.status}}", "count"); out != "running\n" {
			t.Errorf("status afterwards: %s", out)
		}
		return
	}
	counted := func() []string { return strings.Fields(h.Caisson("exec", "count", "cat", "/count")) }
	h.Caisson("checkpoint", "--leave-running", "count")
	if out := h.Caisson("inspect", "-f", "{{.status}}", "count"); out != "running\n" {
		t.Errorf("status of one that was left running: %s", out)
	}
	running := counted()
	h.Caisson("checkpoint", "count")
	if out := h.Caisson("inspect", "-f", "{{.status}}", "count"); out != "exited\n" {
		t.Errorf("status after a checkpoint: %s", out)
	}
	before := len(running)
	h.Caisson("restore", "count")
	if err := daemon.Poll(t.Context(), time.Minute, func() error {
		if len(counted()) > before+5 {
			return nil
		}
		return errors.New("it does not go on")
	}); err != nil {
		t.Error(err)
	}
	if n := counted(); strings.Join(n, " ") != strings.Join(upTo(len(n)), " ") {
		t.Errorf("it does not go on where it was: %q", n)
	}
	if _, err := os.Stat(image); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the checkpoint stays: %v", err)
	}

	h.Caisson("checkpoint", "logs")
	logged := func() []string { return strings.Fields(h.Caisson("logs", "logs")) }
	before = len(logged())
	h.Caisson("restore", "logs")
	if err := daemon.Poll(t.Context(), time.Minute, func() error {
		if len(logged()) > before+10 {
			return nil
		}
		return errors.New("it writes nothing more")
	}); err != nil {
		t.Error(err)
	}
	h.Caisson("kill", "logs")
	h.TryCaisson("wait", "logs")
	var want []string
	for _, n := range upTo(len(logged())/2 + 1) {
		want = append(want, n, n) // to stdout, and to stderr
	}
	if got := logged(); !slices.Equal(got, want[:len(got)]) {
		t.Errorf("the log does not go on where it was: %q", got)
	}
}

// checkCRIU says why CRIU does not work on this machine.
func checkCRIU() error {
	out, err := exec.Command("criu", "check").CombinedOutput()
	if err != nil {
		return fmt.Errorf("criu check: %w: %s", err, out)
	}
	return nil
}

// upTo are the numbers from 1 on.
func upTo(n int) []string {
	list := make([]string, n)
	for i := range list {
		list[i] = strconv.Itoa(i + 1)
	}
	return list
}
