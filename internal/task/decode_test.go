package task

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/containerd/containerd/api/events"
	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"caisson/internal/statefile"
)

// anyOf is an option of a request: of the type that is wanted, also with the host that
// some clients put before it, or of another one.
func anyOf(kind byte, want proto.Message, value []byte) *anypb.Any {
	name := string(want.ProtoReflect().Descriptor().FullName())
	urls := []string{name, "type.googleapis.com/" + name, "containerd.runc.v1.ProcessDetails", "no/type", ""}
	return &anypb.Any{TypeUrl: urls[int(kind)%len(urls)], Value: value}
}

func encoded(f *testing.F, m proto.Message) []byte {
	f.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		f.Fatal(err)
	}
	return b
}

// expectPath: to every process a path means the same.
func expectPath(t *testing.T, path string) {
	t.Helper()
	if !filepath.IsAbs(path) || slices.Contains([]byte(path), 0) {
		t.Errorf("accepted the path %q", path)
	}
}

// FuzzRuncOptions: options of a container are refused as the client's mistake, or say
// which OCI runtime it gets, and which directories.
func FuzzRuncOptions(f *testing.F) {
	for i, o := range []*options.Options{
		{},
		{BinaryName: "/bin/sh", Root: "/r", SystemdCgroup: true, IoUid: 7},
		{BinaryName: "no-such-runtime", NoPivotRoot: true},
		{Root: "r/../.."},
		{CriuImagePath: "i", CriuWorkPath: "/w\x00"},
	} {
		f.Add(byte(i), encoded(f, o))
		f.Add(byte(0), encoded(f, o))
	}
	f.Add(byte(0), []byte{0xff})
	s := NewSet(Config{Namespace: "ns", RuntimeName: func() string { return "/bin/sh" }, RuntimeRoot: "/run/r"})
	f.Fuzz(func(t *testing.T, kind byte, value []byte) {
		opts, err := runcOptions("c", anyOf(kind, &options.Options{}, value))
		if err != nil {
			if !errdefs.IsInvalidArgument(err) {
				t.Errorf("class of %v", err)
			}
			return
		}
		for _, path := range []string{opts.CriuImagePath, opts.CriuWorkPath} {
			if path != "" {
				expectPath(t, path)
			}
		}
		runtime, err := s.runtime(opts)
		if err != nil {
			if !errdefs.IsNotFound(err) {
				t.Errorf("class of %v", err)
			}
			return
		}
		expectPath(t, runtime.Binary)
		expectPath(t, runtime.Root)
	})
}

// FuzzCheckpointOptions: options of a checkpoint are refused as the client's mistake,
// or say where it is written and in which of the modes that there are.
func FuzzCheckpointOptions(f *testing.F) {
	for i, o := range []*options.CheckpointOptions{
		{},
		{ImagePath: "/i", WorkPath: "/w", ParentPath: "../p", CgroupsMode: "soft", Exit: true},
		{CgroupsMode: "all"},
		{ImagePath: "i"},
		{WorkPath: "/w\x00"},
	} {
		f.Add(byte(i), "/checkpoint", encoded(f, o))
		f.Add(byte(0), "", encoded(f, o))
	}
	f.Add(byte(0), "relative", []byte{0xff})
	f.Fuzz(func(t *testing.T, kind byte, path string, value []byte) {
		opts, err := checkpointOptions(anyOf(kind, &options.CheckpointOptions{}, value))
		var image, work string
		if err == nil {
			image, work, err = containerRecord{ID: "c", Bundle: "/b"}.checkpointDirs(path, opts)
		}
		if err != nil {
			if !errdefs.IsInvalidArgument(err) {
				t.Errorf("class of %v", err)
			}
			return
		}
		expectPath(t, image)
		expectPath(t, work)
		if !slices.Contains([]string{"", "soft", "full", "strict"}, opts.CgroupsMode) {
			t.Errorf("mode %q", opts.CgroupsMode)
		}
	})
}

// FuzzLimits: new limits of a container are refused as the client's mistake, or reach
// the OCI runtime, as JSON, as they were meant.
func FuzzLimits(f *testing.F) {
	f.Add([]byte(`{"memory":{"limit":1048576},"cpu":{"shares":2,"cpus":"0-1"}}`))
	f.Add([]byte(`{"devices":[{"allow":true,"major":-1}],"unified":{"memory.max":"max"},"pids":{"limit":null}}`))
	f.Add([]byte(`{"hugepageLimits":[{"pageSize":"2MB","limit":18446744073709551615}],"rdma":{"a":{}}}`))
	f.Add([]byte(`null`))
	f.Add([]byte(`{"memory":1}`))
	f.Fuzz(func(t *testing.T, resources []byte) {
		limits, err := limitsOf(&anypb.Any{Value: resources})
		if err != nil {
			if !errdefs.IsInvalidArgument(err) {
				t.Errorf("class of %v", err)
			}
			return
		}
		b, err := json.Marshal(limits)
		if err != nil {
			t.Fatal(err)
		}
		var again specs.LinuxResources
		if err := json.Unmarshal(b, &again); err != nil {
			t.Fatal(err)
		}
		second, err := json.Marshal(again)
		if diff := cmp.Diff(string(b), string(second)); err != nil || diff != "" {
			t.Errorf("%v, read again (-written +read): %s", err, diff)
		}
	})
}

// told keeps the events that say that a container was deleted.
type told struct{ deletes []*events.TaskDelete }

func (d *told) Tell(ctx context.Context, key, topic string, event any) error {
	return d.Publish(ctx, key, topic, event)
}

func (d *told) Publish(_ context.Context, _, _ string, event any) error {
	d.deletes = append(d.deletes, event.(*events.TaskDelete))
	return nil
}

// FuzzLoadGrave: of a container that a daemon began to delete, the end is told once if
// the records know it, and the records go. Nothing else in the directory does.
func FuzzLoadGrave(f *testing.F) {
	stopped := []byte(`{"State":"stopped","Pid":1,"Serial":2,"ExitStatus":3,"ExitedAt":"2020-01-01T00:00:00Z"}`)
	f.Add([]byte(`{"ID":"c"}`), stopped, false)
	f.Add([]byte(`{"ID":"c","Runtime":null,"Rootfs":[{}]}`), stopped, true)
	f.Add([]byte(`{"ID":"c"}`), []byte(`{"State":"running"}`), true)
	f.Add([]byte(`{"ID":"c"}`), []byte(`{"State":"stopped","Pid":-1}`), false)
	f.Add([]byte(`{"ID":"../neighbour"}`), stopped, false)
	f.Add([]byte(`{"ID":"neighbour"}`), stopped, true)
	f.Add([]byte(`[]`), []byte(`null`), false)
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, containerJSON, processJSON []byte, keeps bool) {
		journal := &told{}
		s := NewSet(Config{Dir: dir, Events: journal, KeepsDeleted: func() bool { return keeps }})
		grave := s.dir(gravePrefix + "c")
		for _, d := range []string{grave, s.dir("neighbour")} {
			if err := os.MkdirAll(d, 0o700); err != nil {
				t.Fatal(err)
			}
		}
		for name, data := range map[string][]byte{"container.json": containerJSON, "init.json": processJSON} {
			if err := os.WriteFile(filepath.Join(grave, name), data, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.loadGrave(t.Context(), gravePrefix+"c"); err != nil {
			t.Fatal(err)
		}
		st, kept := s.wasDeleted("c", "")
		if kept && (!keeps || len(journal.deletes) == 0 || st.State != Stopped) {
			t.Errorf("kept as %+v after %v", st, journal.deletes)
		}
		if len(journal.deletes) > 1 {
			t.Errorf("told %v", journal.deletes)
		}
		for _, event := range journal.deletes {
			if event.ContainerID != "c" || int32(event.Pid) < 0 {
				t.Errorf("told %v", event)
			}
		}
		if _, err := os.Stat(grave); (err == nil) != kept {
			t.Errorf("kept %v, but its directory: %v", kept, err)
		}
		if _, err := os.Stat(s.dir("neighbour")); err != nil {
			t.Error(err)
		}
	})
}

// TestAGraveThatCannotBeReadNow: what could not be read for want of something is
// there for the next try, and its end is told then.
func TestAGraveThatCannotBeReadNow(t *testing.T) {
	journal := &told{}
	s := NewSet(Config{Dir: t.TempDir(), Events: journal})
	grave := s.dir(gravePrefix + "c")
	record := filepath.Join(grave, "container.json")
	if err := errors.Join(os.MkdirAll(record, 0o700), statefile.Write(filepath.Join(grave, "init.json"), map[string]any{"State": Stopped})); err != nil {
		t.Fatal(err)
	}
	if err := s.loadGrave(t.Context(), gravePrefix+"c"); err == nil || len(journal.deletes) > 0 {
		t.Errorf("%v, told %v", err, journal.deletes)
	}
	if err := errors.Join(os.Remove(record), statefile.Write(record, containerRecord{ID: "c"})); err != nil {
		t.Fatal(err)
	}
	if err := s.loadGrave(t.Context(), gravePrefix+"c"); err != nil || len(journal.deletes) != 1 {
		t.Errorf("%v, told %v", err, journal.deletes)
	}
}
