package cli

import (
	"strings"
	"testing"

	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/api/types/task"
	"github.com/google/go-cmp/cmp"
)

func TestPrunable(t *testing.T) {
	d := startFake(t)
	d.addContainer("web", "web", task.Status_RUNNING, nil)
	d.addContainer("job", "", task.Status_STOPPED, nil)
	d.addContainer("pod", "", task.Status_STOPPED, map[string]string{labelCRI: "container"})
	d.addContainer("new", "", task.Status_UNKNOWN, nil)
	d.addContainer("ice", "", task.Status_PAUSED, nil)
	for id, state := range map[string]string{"web": "SANDBOX_READY", "lost": "SANDBOX_NOTREADY", "begun": "SANDBOX_READY", "pod1": "SANDBOX_NOTREADY"} {
		d.records[id], d.states[id] = &types.Sandbox{SandboxID: id, Sandboxer: sandboxer, Runtime: &types.Sandbox_Runtime{Name: runtimeName}}, state
		if id != "pod1" {
			d.records[id].Labels = map[string]string{labelOwned: id}
		}
	}
	a := &app{address: d.address, namespace: defaultNamespace}
	ctx, c, err := a.connect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	got, err := c.prunable(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff("containers job and sandboxes lost", got.String()); diff != "" {
		t.Error(diff)
	}
}

func TestPruneArguments(t *testing.T) {
	for args, want := range map[string]string{
		"":                                "add --force",
		"x":                               "takes no arguments",
		"--force --address /no/such.sock": "no caissond",
	} {
		code, _, stderr := runCLI(t, append([]string{"prune"}, strings.Fields(args)...)...)
		if code != 1 || !strings.Contains(stderr, want) {
			t.Errorf("prune %s: code %d, %q", args, code, stderr)
		}
	}
	for answer, want := range map[string]bool{"y\n": true, "Yes\n": true, " y ": true, "": false, "\n": false, "n\n": false, "yo\n": false} {
		if isYes(answer) != want {
			t.Errorf("answer %q", answer)
		}
	}
}
