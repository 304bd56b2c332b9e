package cli

import (
	"testing"

	"github.com/containerd/containerd/api/types/task"
)

func TestWait(t *testing.T) {
	d := startFake(t)
	d.addContainer("web", "pod1", task.Status_RUNNING, nil)
	d.addContainer("job", "pod1", task.Status_STOPPED, nil)
	d.processes[1].ExitStatus = 7
	d.addContainer("new", "pod1", task.Status_UNKNOWN, nil)
	if out := d.must(t, "wait", "job", "web"); out != "7\n4\n" {
		t.Errorf("wait printed %q", out)
	}
	if code, out, _ := d.run(t, "wait", "nowhere", "job"); code != 1 || out != "7\n" {
		t.Errorf("one of two is not there: code %d, %q", code, out)
	}
	d.refused(t, `no container "nowhere"`, "wait", "nowhere")
	d.refused(t, `"new" has no process`, "wait", "new")
	d.refused(t, "needs a container", "wait")
}
