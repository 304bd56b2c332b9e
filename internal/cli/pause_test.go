package cli

import (
	"testing"

	"github.com/containerd/containerd/api/types/task"
)

func TestPause(t *testing.T) {
	d := startFake(t)
	d.addContainer("web", "pod1", task.Status_RUNNING, nil)
	d.addContainer("job", "pod1", task.Status_STOPPED, nil)
	if out := d.must(t, "pause", "web"); out != "web\n" || d.processes[0].Status != task.Status_PAUSED {
		t.Errorf("pause printed %q, state %v", out, d.processes[0].Status)
	}
	if out := d.must(t, "unpause", "web"); out != "web\n" || d.processes[0].Status != task.Status_RUNNING {
		t.Errorf("unpause printed %q, state %v", out, d.processes[0].Status)
	}
	d.refused(t, `"web" is not paused`, "unpause", "web")
	for _, command := range []string{"pause", "unpause"} {
		d.refused(t, `"job" is not running`, command, "job")
		d.refused(t, `no container "nowhere"`, command, "nowhere")
		d.refused(t, "needs a container", command)
	}
}
