package cli

import (
	"strings"
	"testing"

	"github.com/containerd/containerd/api/types/task"
)

func TestCompletion(t *testing.T) {
	d := startFake(t)
	d.addContainer("web", "pod1", task.Status_RUNNING, nil)
	d.addContainer("db", "pod1", task.Status_RUNNING, nil)
	d.must(t, "sandbox", "create", "pod1")
	for args, want := range map[string]string{
		"wait":            "db web",
		"wait web":        "db",
		"logs":            "db web",
		"logs web":        "",
		"stats":           "db pod1 web",
		"sandbox inspect": "pod1",
		"port-forward":    "pod1",
		"sandbox create":  "",
		"run --sandbox":   "pod1",
		"run --net":       "none host cni",
		"top --sort":      "sandbox cpu memory pids net block",
		"ps --format":     "table json",
		"events --filter": "container= event= image= sandbox= topic= type=",
		"cp":              "db: web:",
		"cp x":            "db: web:",
		"cp x web:/y":     "",
		"cp web:/y":       "",
	} {
		out := d.must(t, append(append([]string{"__complete"}, strings.Fields(args)...), "")...)
		var names []string
		for line := range strings.Lines(out) {
			if line = strings.TrimSpace(line); !strings.HasPrefix(line, ":") {
				names = append(names, line)
			}
		}
		if got := strings.Join(names, " "); got != want {
			t.Errorf("%s: %q, want %q", args, got, want)
		}
	}
	// Without a daemon there is nothing to complete, and nothing to say.
	if code, out, _ := runCLI(t, "--address", "/no/such.sock", "__complete", "wait", ""); code != 0 || !strings.HasPrefix(out, ":") {
		t.Errorf("without a daemon: code %d, %q", code, out)
	}
}
