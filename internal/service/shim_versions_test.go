package service

import (
	"context"
	"encoding/json"
	"strings"
	"testing"

	bootapi "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	taskapi "github.com/containerd/containerd/api/runtime/task/v2"
	"github.com/containerd/containerd/api/types"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"caisson/internal/task"
)

// endpoint is what containerd must read from the answer to start.
type endpoint struct {
	Version           int
	Address, Protocol string
}

// asJSON reads the answer as containerd 2.0 to 2.2 do: what is no JSON of a
// version of at least 2 they take for an address.
func asJSON(text string) endpoint {
	var e endpoint
	if err := json.Unmarshal([]byte(strings.TrimSpace(text)), &e); err != nil || e.Version < 2 {
		return endpoint{Version: 2, Address: text, Protocol: "ttrpc"}
	}
	return e
}

// asProto reads it as containerd 2.3 and later do, which try JSON next.
func asProto(text string) endpoint {
	var r bootapi.BootstrapResult
	if err := proto.Unmarshal([]byte(text), &r); err != nil {
		return asJSON(text)
	}
	return endpoint{Version: int(r.Version), Address: r.Address, Protocol: r.Protocol}
}

// TestShimOfEachContainerd runs the binary with what each version of containerd
// gives it, and reads the answers as that version does.
func TestShimOfEachContainerd(t *testing.T) {
	fake := &fakeShim{address: "unix:///run/caisson/s/0123/task.sock", exit: task.Exit{Pid: 42, Status: 9, At: exited}, info: &types.RuntimeInfo{Name: "r"}}
	h := serveShim(t, fake, "")
	options := &anypb.Any{TypeUrl: "containerd.runc.v1.Options", Value: []byte{0x18, 1}}
	params := func(containerd string, more func(*bootapi.BootstrapParams)) []byte {
		p := &bootapi.BootstrapParams{
			InstanceID: "c1", Namespace: "ns1", LogLevel: bootapi.LogLevel_LOG_LEVEL_DEBUG, ContainerdVersion: containerd,
			ContainerdGrpcAddress: "/c.sock", ContainerdTtrpcAddress: "/c.sock.ttrpc", ContainerdBinary: "/bin/containerd",
		}
		more(p)
		return marshal(t, p)
	}
	plain := func(*bootapi.BootstrapParams) {}
	withOptions := func(p *bootapi.BootstrapParams) {
		if err := p.AddExtension(options); err != nil {
			t.Fatal(err)
		}
	}
	withDir := func(p *bootapi.BootstrapParams) {
		withOptions(p)
		p.SocketDir = proto.String("/run/containerd/s")
	}
	want := endpoint{Version: 3, Address: fake.address, Protocol: "ttrpc"}
	for name, c := range map[string]struct {
		stdin []byte
		read  func(string) endpoint
	}{
		"2.0 to 2.2":               {nil, asJSON},
		"2.0 to 2.2 with options":  {marshal(t, options), asJSON},
		"2.3":                      {params("v2.3.7", plain), asProto},
		"2.3 with options":         {params("v2.3.7", withOptions), asProto},
		"2.4 with a socket's home": {params("v2.4.2", withDir), asProto},
	} {
		t.Run(name, func(t *testing.T) {
			common := []string{"-namespace", "ns1", "-address", "/c.sock", "-publish-binary", "/bin/containerd", "-id", "c1"}
			for _, debug := range [][]string{nil, {"-debug"}} {
				args := append(append(append([]string{}, common...), debug...), "start")
				stdout, stderr, code := h.run(c.stdin, args...)
				if code != 0 || stderr != "" { // both outputs are read as one
					t.Fatalf("start: code %d: %s", code, stderr)
				}
				if diff := cmp.Diff(want, c.read(stdout)); diff != "" {
					t.Errorf("start: %s", diff)
				}
				args = append(append(append([]string{}, common...), "-bundle", "/b/c1"), append(debug, "delete")...)
				stdout, stderr, code = h.run(nil, args...)
				var deleted taskapi.DeleteResponse
				unmarshal(t, stdout, &deleted)
				if code != 0 || stderr != "" || deleted.Pid != 42 || deleted.ExitStatus != 9 || !deleted.ExitedAt.AsTime().Equal(exited) {
					t.Errorf("delete: code %d, %v, %s", code, &deleted, stderr)
				}
			}
		})
	}
	for name, stdin := range map[string][]byte{"info without options": nil, "info with options": marshal(t, options)} {
		stdout, stderr, code := h.run(stdin, "-info")
		var info types.RuntimeInfo
		unmarshal(t, stdout, &info)
		if code != 0 || stderr != "" || info.Name != "r" {
			t.Errorf("%s: code %d, %v, %s", name, code, &info, stderr)
		}
	}
}

// FuzzShimStart: whatever is on standard input, start answers with the endpoint,
// in one of the two forms, and never in one that the other reader misreads.
func FuzzShimStart(f *testing.F) {
	f.Add([]byte(nil))
	f.Add([]byte("\n\x02c1"))
	f.Add([]byte(`{"instanceID": "c1"}`))
	f.Fuzz(func(t *testing.T, stdin []byte) {
		shim := &fakeShim{address: "unix:///s/task.sock"}
		reply := runShim(context.Background(), shim, "v", Observe{}, shimRequest{args: []string{"shim", "-namespace", "n", "-id", "c1", "start"}, stdin: stdin})
		var params bootapi.BootstrapParams
		read := asJSON
		if err := proto.Unmarshal(stdin, &params); err == nil && params.InstanceID == "c1" {
			read = asProto
		}
		want := endpoint{Version: 3, Address: "unix:///s/task.sock", Protocol: "ttrpc"}
		if got := read(string(reply.stdout)); reply.code != 0 || got != want || asProto(string(reply.stdout)) != want {
			t.Fatalf("code %d, %+v, %q", reply.code, got, reply.stderr)
		}
	})
}
