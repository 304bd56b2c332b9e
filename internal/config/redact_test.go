package config

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestRedacted(t *testing.T) {
	c, err := Parse("/c.toml", []byte(`
version = 3
imports = ["/etc/more.toml"]
oom_score = -5
[timeouts]
"io.containerd.timeout.shim.load" = "5s"
[stream_processors."x"]
path = "decoder"
args = ["--from", "https://u:hunter2@keys.example/k"]
env = ["KEY=hunter2"]
[plugins."io.containerd.cri.v1.images".registry.configs."r.example".auth]
username = "u"
password = "hunter2"
[plugins."io.containerd.cri.v1.images".registry.mirrors."https://u:hunter2@m.example"]
endpoint = ["https://u:hunter2@m.example/v2"]
[[plugins."x".list]]
identitytoken = "hunter2"
snapshotter = "native"
[plugins."x".header]
Authorization = ["Basic hunter2"]
`))
	if err != nil {
		t.Fatal(err)
	}
	before, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	r := c.Redacted()
	text, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(text), "hunter2") {
		t.Errorf("a secret is left: %s", text)
	}
	for _, kept := range []string{"native", "/etc/more.toml", "-5", "5s", "decoder", "keys.example/k", "r.example"} {
		if !strings.Contains(string(text), kept) {
			t.Errorf("%q is gone: %s", kept, text)
		}
	}
	after, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(before), string(after)); diff != "" {
		t.Errorf("the configuration itself was changed: %s", diff)
	}
}
