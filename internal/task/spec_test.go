package task

import (
	"encoding/json"
	"testing"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/types/known/anypb"

	"caisson/internal/stdio"
)

// FuzzProcessSpec: the description of an exec is refused as the client's mistake, or
// is JSON that says what the request says.
func FuzzProcessSpec(f *testing.F) {
	f.Add([]byte(`{"args":["true"],"cwd":"/"}`), false)
	f.Add([]byte(`{"terminal":true,"args":["a"],"user":{"uid":1}}`), false)
	f.Add([]byte(`{"args":["a"],"consoleSize":{"height":1}}`), true)
	f.Add([]byte(`{"args":[]}`), false)
	f.Add([]byte(`[`), true)
	s := NewSet(Config{Dir: f.TempDir()})
	f.Fuzz(func(t *testing.T, spec []byte, terminal bool) {
		p := newProcess(newContainer(s, containerRecord{ID: "c"}), "e", stdio.Config{Terminal: terminal}, Adding)
		got, err := processSpec(p, &anypb.Any{Value: spec})
		if err != nil {
			if !errdefs.IsInvalidArgument(err) {
				t.Errorf("class of %v", err)
			}
			return
		}
		var process specs.Process
		if err := json.Unmarshal(got, &process); err != nil || len(process.Args) == 0 || process.Terminal != terminal {
			t.Errorf("%s: %v", got, err)
		}
	})
}
