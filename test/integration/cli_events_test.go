package integration

import (
	"bufio"
	"encoding/json"
	"io"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"caisson/test/daemon"
	"caisson/test/harness"
)

// watch starts `caisson events` and answers once it shows them.
func watch(t *testing.T, h *harness.Host, args ...string) (*exec.Cmd, io.ReadCloser, *bufio.Scanner) {
	t.Helper()
	cmd, err := h.Command(h.Context(time.Minute), "caisson", append([]string{"events"}, args...)...)
	if err != nil {
		t.Fatal(err)
	}
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	first := make(chan bool, 1)
	lines := bufio.NewScanner(pipe)
	go func() { first <- lines.Scan() }()
	// Nothing tells when it has begun but what it shows.
	for {
		h.Caisson("run", "--rm", "--name", "again", harness.Image, "true")
		select {
		case ok := <-first:
			if !ok {
				t.Fatalf("events ended: %v", cmd.Wait())
			}
			return cmd, pipe, lines
		case <-time.After(time.Second):
		}
	}
}

func TestCLIEvents(t *testing.T) {
	h := harness.Start(t, daemon.Options{})
	cmd, _, lines := watch(t, h, "--filter", "event=exit", "--filter", "type=tasks", "--format", "json")
	if res := h.TryCaisson("run", "--rm", "--name", "job", harness.Image, "sh", "-c", "exit 6"); res.Code != 6 {
		t.Fatalf("run: %+v", res)
	}
	var event struct {
		Topic, Container string
		Event            map[string]any
	}
	for event.Container != "job" {
		if !lines.Scan() {
			t.Fatal("events ended")
		}
		if err := json.Unmarshal(lines.Bytes(), &event); err != nil {
			t.Fatalf("%s: %v", lines.Text(), err)
		}
		if event.Topic != "/tasks/exit" {
			t.Errorf("not what was asked for: %s", lines.Text())
		}
	}
	if event.Event["exit_status"] != 6.0 {
		t.Errorf("exit: %s", lines.Text())
	}
	if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	for lines.Scan() {
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("after Ctrl-C: %v", err)
	}
}

func TestCLIEventsClosedPipe(t *testing.T) {
	h := harness.Start(t, daemon.Options{})
	cmd, pipe, _ := watch(t, h)
	pipe.Close() // nothing happens after it
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case <-ended:
	case <-time.After(20 * time.Second):
		t.Error("events does not end when nobody reads them")
		_ = cmd.Process.Kill()
		<-ended
	}
}

func TestCLIEventsDaemonEnds(t *testing.T) {
	h := harness.Start(t, daemon.Options{})
	cmd, _, lines := watch(t, h, "--format", "{{.topic}}")
	if !strings.HasPrefix(lines.Text(), "/") {
		t.Errorf("by a template: %q", lines.Text())
	}
	h.Crash()
	for lines.Scan() {
	}
	if err := cmd.Wait(); err == nil || cmd.ProcessState.ExitCode() != 1 {
		t.Errorf("without a daemon: %v", err)
	}
	h.StartDaemon()
}
