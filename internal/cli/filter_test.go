package cli

import (
	"strings"
	"testing"

	"github.com/containerd/containerd/api/types/task"
)

func TestListFilters(t *testing.T) {
	d := startFake(t)
	d.addContainer("web", "pod1", task.Status_RUNNING, map[string]string{"tier": "front", "new": ""})
	d.addContainer("webdb", "pod2", task.Status_RUNNING, map[string]string{"tier": "back"})
	d.addContainer("job", "", task.Status_STOPPED, nil)
	d.processes[2].ExitStatus = 3
	d.must(t, "sandbox", "create", "--label", "a=b", "pod1")
	d.must(t, "sandbox", "create", "pod2")
	d.must(t, "sandbox", "start", "pod2")
	for args, want := range map[string]string{
		"ps -f name=web":                        "web webdb",
		"ps -f name=db":                         "webdb",
		"ps -a -f name=j -f name=db":            "job webdb",
		"ps -f label=tier":                      "web webdb",
		"ps -f label=tier=front":                "web",
		"ps -f label=tier -f label=new":         "web",
		"ps -f label=new=x":                     "",
		"ps -f sandbox=pod2":                    "webdb",
		"ps -f image=demo":                      "web webdb",
		"ps -f image=other":                     "",
		"ps -f status=exited":                   "job",
		"ps -f status=exited -f status=running": "job web webdb",
		"ps -f exited=3":                        "job",
		"ps -f exited=0":                        "",
		"ps -f name=job":                        "",
		"sandbox ls -f state=ready":             "pod2",
		"sandbox ls -f label=a=b":               "pod1",
		"sandbox ls -f name=pod":                "pod1 pod2",
	} {
		got := strings.Fields(d.must(t, append(strings.Fields(args), "-q")...))
		for _, name := range strings.Fields(want) {
			if !strings.Contains(" "+strings.Join(got, " ")+" ", " "+name+" ") {
				t.Errorf("%s: %q, want %s", args, got, want)
			}
		}
		if len(got) != len(strings.Fields(want)) {
			t.Errorf("%s: %q, want %s", args, got, want)
		}
	}
	d.refused(t, "the names are exited, image, label", "ps", "-f", "colour=red")
	d.refused(t, "the names are label, name, state", "sandbox", "ls", "-f", "state")
}
