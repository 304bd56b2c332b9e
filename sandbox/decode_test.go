package sandbox

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/api/types/runc/options"
	core "github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	api "caisson/api/caisson/sandbox/v1"
	"caisson/internal/network"
	"caisson/internal/statefile"
)

// FuzzParseSettings: options of any content are refused as the client's mistake, or
// become settings that a new daemon reads as they were.
func FuzzParseSettings(f *testing.F) {
	for _, m := range []proto.Message{
		&api.Options{}, &cri.PodSandboxConfig{},
		&api.Options{Hostname: "h", Sysctls: map[string]string{"kernel.shm_rmid_forced": "1"}, PortMappings: []*api.PortMapping{{HostPort: 80, ContainerPort: 80, HostIp: "::1"}}},
		&api.Options{Namespaces: &api.Namespaces{HostIpc: true, Uids: []*api.IDMapping{{HostId: 1000, Size: 10}}}},
		&cri.PodSandboxConfig{Hostname: "h", Linux: &cri.LinuxPodSandboxConfig{CgroupParent: "/a", SecurityContext: &cri.LinuxSandboxSecurityContext{
			NamespaceOptions: &cri.NamespaceOption{Network: cri.NamespaceMode_NODE},
		}}},
	} {
		b, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(m.ProtoReflect().Descriptor().FullName() == criOptions, "/run/netns/a", b)
		f.Add(m.ProtoReflect().Descriptor().FullName() == criOptions, "", b)
	}
	f.Fuzz(func(t *testing.T, fromCRI bool, netNS string, value []byte) {
		url := ownOptions
		if fromCRI {
			url = criOptions
		}
		opts := core.CreateOptions{NetNSPath: netNS, Options: &anypb.Any{TypeUrl: url, Value: value}}
		s, err := parseSettings(core.Sandbox{ID: "sb"}, opts, network.None)
		if err != nil {
			if !errdefs.IsInvalidArgument(err) && !errdefs.IsNotImplemented(err) {
				t.Errorf("class of %v", err)
			}
			return
		}
		expectKept(t, s)
	})
}

// FuzzRuntimeOf: the options of a sandbox's runtime are refused, or name an OCI runtime
// that is there, whether or not a host is put before their type.
func FuzzRuntimeOf(f *testing.F) {
	for _, o := range []*options.Options{{}, {BinaryName: "/bin/sh"}, {BinaryName: "no-such-runtime"}, {Root: "/r", BinaryName: "."}} {
		b, err := proto.Marshal(o)
		if err != nil {
			f.Fatal(err)
		}
		f.Add("", b)
		f.Add("type.googleapis.com/", b)
	}
	f.Add("x", []byte{0xff})
	f.Add("", []byte{0xff})
	f.Fuzz(func(t *testing.T, host string, value []byte) {
		sb := core.Sandbox{ID: "sb"}
		sb.Runtime.Options = &anypb.Any{TypeUrl: host + "containerd.runc.v1.Options", Value: value}
		got, err := runtimeOf(sb)
		var o options.Options
		switch damaged := proto.Unmarshal(value, &o) != nil; {
		case host != "" && !strings.HasSuffix(host, "/"): // another type
			if got != "" || err != nil {
				t.Errorf("%q, %v", got, err)
			}
		case damaged:
			if !errdefs.IsInvalidArgument(err) {
				t.Errorf("%q, class of %v", got, err)
			}
		case err != nil && !errdefs.IsNotFound(err), err == nil && got != o.BinaryName:
			t.Errorf("%q, want %q, class of %v", got, o.BinaryName, err)
		}
	})
}

// expectKept: a value is the same after it was written and read.
func expectKept[T any](t *testing.T, value T) {
	t.Helper()
	b, err := json.Marshal(value)
	if err != nil {
		t.Fatal(err)
	}
	var again T
	if err := json.Unmarshal(b, &again); err != nil {
		t.Fatal(err)
	}
	second, err := json.Marshal(again)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(b), string(second)); diff != "" {
		t.Errorf("read again (-written +read): %s", diff)
	}
}

// FuzzReadSandbox: a record of a sandbox is refused as damaged, or is read as it was.
func FuzzReadSandbox(f *testing.F) {
	f.Add([]byte(`{"Namespace":"n","ID":"a","Kind":"sandbox","State":"ready","Settings":{"ShmSize":1}}`))
	f.Add([]byte(`{"State":"stopping","StopBy":"2020-01-01T00:00:00Z","Rootfs":[{"Type":"bind"}],"Network":{}}`))
	f.Add([]byte(`{"State":"gone"}`))
	f.Add([]byte(`{"Settings":{"DNS":null,"Resources":{"memory":{"limit":-1}}}}`))
	f.Add([]byte(`[]`))
	path := filepath.Join(f.TempDir(), recordName)
	f.Fuzz(func(t *testing.T, data []byte) {
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		var rec boxRecord
		if err := statefile.Read(path, &rec); err != nil {
			if !errdefs.IsDataLoss(err) {
				t.Errorf("class of %v", err)
			}
			return
		}
		expectKept(t, rec)
	})
}

// FuzzExtensions: what a client put into a record's extensions changes a sandbox or
// is refused, and never makes an answer that is no JSON.
func FuzzExtensions(f *testing.F) {
	own, err := typeurl.MarshalAnyToProto(&api.Options{Resources: &api.Resources{MemoryLimit: 1 << 20}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(own.Value, []byte(`{"Resources":{"memory_limit_in_bytes":1}}`), []byte(`{"Metadata":{"Config":{},"CNIResult":null}}`))
	f.Add([]byte{0xff}, []byte(`{}`), []byte(`{"Metadata":{"Config":1}}`))
	f.Add([]byte(nil), []byte(`null`), []byte(`{"Version":"v1","Metadata":[]}`))
	f.Fuzz(func(t *testing.T, own, resources, metadata []byte) {
		for _, extensions := range []map[string]typeurl.Any{
			{ownExtension: &anypb.Any{Value: own}},
			{criExtension: &anypb.Any{Value: resources}},
			{ownExtension: &anypb.Any{Value: own}, criExtension: &anypb.Any{Value: resources}},
		} {
			ch, err := changeOf(core.Sandbox{ID: "sb", Extensions: extensions}, nil)
			if err != nil && !errdefs.IsInvalidArgument(err) {
				t.Errorf("class of %v", err)
			}
			if err == nil && ch.resources != nil {
				expectKept(t, ch.resources)
			}
		}
		var info criInfo
		info.addMetadata(core.Sandbox{ID: "sb", Extensions: map[string]typeurl.Any{criMetadata: &anypb.Any{Value: metadata}}})
		if _, err := json.Marshal(info); err != nil {
			t.Errorf("status: %v", err)
		}
	})
}
