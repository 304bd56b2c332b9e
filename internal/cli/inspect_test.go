package cli

import (
	"encoding/json"
	"testing"

	"github.com/containerd/containerd/api/types/task"
)

func TestInspectContainers(t *testing.T) {
	d := startFake(t)
	d.addContainer("web", "pod1", task.Status_RUNNING, map[string]string{"tier": "<front>"})
	d.addContainer("new", "", task.Status_UNKNOWN, nil)
	var all []map[string]any
	if err := json.Unmarshal([]byte(d.must(t, "inspect", "web", "new")), &all); err != nil || len(all) != 2 || all[0]["pid"] != 9.0 || all[1]["status"] != "created" {
		t.Errorf("inspect: %v, %v", all, err)
	}
	for format, want := range map[string]string{
		"{{.id}} {{.status}} {{.pid}}": "web running 9\n",
		"{{json .labels}}":             "{\"tier\":\"<front>\"}\n",
		"{{upper .sandbox}}":           "POD1\n",
		"{{index .labels \"tier\"}}":   "<front>\n",
		"{{range $k, $v := .labels}}{{$k}};{{end}}{{join (.command) \",\"}}": "tier;\n",
	} {
		if out := d.must(t, "inspect", "-f", format, "web"); out != want {
			t.Errorf("%s: %q, want %q", format, out, want)
		}
	}
	d.refused(t, `"nope"`, "inspect", "-f", "{{.nope}}", "web")
	d.refused(t, "no Go template", "inspect", "-f", "{{.id", "web")
	d.refused(t, "unknown format", "inspect", "-f", "yaml", "web")
	d.refused(t, `no container "nowhere"`, "inspect", "nowhere")
	d.refused(t, "needs a container", "inspect")
	if code, out, _ := d.run(t, "inspect", "-f", "{{.id}}", "nowhere", "new"); code != 1 || out != "new\n" {
		t.Errorf("one of two is not there: code %d, %q", code, out)
	}
	if out := d.must(t, "ps", "-a", "--format", "{{.id}}"); len(out) != len("web\nnew\n") {
		t.Errorf("ps by a template: %q", out)
	}
	for format, want := range map[string]string{
		`{{.id}}\t{{if .sandbox}}\n{{end}}`:       "web\t\n\nnew\t\n",
		`table {{.id}}\t{{.status}}{{json .pid}}`: "ID    STATUSPID\nweb   running9\nnew   created0\n",
	} {
		if out := d.must(t, "ps", "-a", "--format", format); out != want {
			t.Errorf("ps by %s: %q, want %q", format, out, want)
		}
	}
	if out := d.must(t, "inspect", "-f", "table", "web"); out == "" {
		t.Error("no table")
	}
}

func TestSandboxInspectTemplate(t *testing.T) {
	d := startFake(t)
	d.must(t, "sandbox", "create", "pod1")
	if out := d.must(t, "sandbox", "inspect", "-f", "{{.id}} {{.state}} {{.pid}}", "pod1"); out != "pod1 notready 7\n" {
		t.Errorf("sandbox inspect: %q", out)
	}
	d.refused(t, `"nope"`, "sandbox", "inspect", "-f", "{{.nope}}", "pod1")
}
