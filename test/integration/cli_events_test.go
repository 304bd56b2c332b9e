package integration

import (
	"bufio"
	"encoding/json"
	"os/exec"
	"strings"
	"testing"
	"time"

	"caisson/test/daemon"
	"caisson/test/harness"
)

// watch starts `caisson events` and answers once it shows them.
func watch(t *testing.T, h *harness.Host, args ...string) (*exec.Cmd, *bufio.Scanner) {
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
			return cmd, lines
		case <-time.After(time.Second):
		}
	}
}

func TestCLIEvents(t *testing.T) {
	h := harness.Start(t, daemon.Options{})
	_, lines := watch(t, h, "--filter", "event=exit", "--filter", "type=tasks", "--format", "json")
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
}

func TestCLIEventsDaemonEnds(t *testing.T) {
	h := harness.Start(t, daemon.Options{})
	cmd, lines := watch(t, h, "--format", "{{.topic}}")
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
