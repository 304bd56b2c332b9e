package task

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	"github.com/google/go-cmp/cmp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"caisson/internal/isolation"
	"caisson/internal/monitor"
	"caisson/internal/oci"
	"caisson/internal/statefile"
	"caisson/internal/stdio"
)

// These tests need no root. What needs processes is tested in package sandbox.

// journal is a Publisher that keeps keys.
type journal struct{ keys []string }

func (j *journal) Tell(ctx context.Context, key, topic string, event any) error {
	return j.Publish(ctx, key, topic, event)
}

func (j *journal) Publish(_ context.Context, key, _ string, _ any) error {
	j.keys = append(j.keys, key)
	return nil
}

func newTestSet(t testing.TB) *Set {
	return NewSet(Config{
		Namespace:   "ns",
		SandboxID:   "sb",
		Dir:         t.TempDir(),
		RuntimeName: func() string { return "runc" },
		RuntimeRoot: "/run/r",
		Membership:  func(string) oci.Membership { return oci.Membership{} },
		StdinStays:  func() bool { return false },
		Events:      &journal{},
	})
}

func newTestProcess(t testing.TB, s *Set, id, execID string, state State) *process {
	t.Helper()
	c, err := s.container(id)
	if err != nil {
		c = newContainer(s, containerRecord{ID: id, CreatedAt: time.Unix(5, 0)})
		c.init = newProcess(c, "", stdio.Config{}, state)
		if err := errors.Join(c.save(), c.init.save()); err != nil {
			t.Fatal(err)
		}
		s.containers[id] = c
	}
	if execID == "" {
		return c.init
	}
	p := newProcess(c, execID, stdio.Config{}, state)
	c.execs[execID] = p
	return p
}

var states = []State{Adding, Created, Starting, Running, Stopped}

func TestEveryPairOfStates(t *testing.T) {
	want := map[[2]State]bool{
		{Adding, Created}:   true,
		{Adding, Stopped}:   true,
		{Created, Starting}: true,
		{Created, Stopped}:  true,
		{Starting, Running}: true,
		{Starting, Created}: true,
		{Starting, Stopped}: true,
		{Running, Stopped}:  true,
	}
	for _, from := range states {
		if _, ok := allowed[from]; !ok {
			t.Errorf("%s is not in the table", from)
		}
		for _, to := range states {
			p := newTestProcess(t, newTestSet(t), "c", "", from)
			err := p.move(to, func(r *record) { r.Pid = 7 })
			state := p.snapshot().State
			var written record
			if err := statefile.Read(p.path, &written); err != nil {
				t.Fatal(err)
			}
			switch {
			case want[[2]State{from, to}]:
				if err != nil || state != to || written.State != to || written.Pid != 7 {
					t.Errorf("%s to %s: %v, %s, on disk %s", from, to, err, state, written.State)
				}
			case !errdefs.IsFailedPrecondition(err) || state != from || written.State != from || written.Pid != 0:
				t.Errorf("%s to %s: %v, %s, on disk %s", from, to, err, state, written.State)
			}
		}
	}
}

func TestAFactThatCannotBeWrittenIsKept(t *testing.T) {
	p := newTestProcess(t, newTestSet(t), "c", "", Running)
	if err := os.Mkdir(p.path+statefile.TempSuffix, 0o700); err != nil { // in the way
		t.Fatal(err)
	}
	if err := p.move(Stopped, nil); err == nil || p.snapshot().State != Running {
		t.Errorf("move: %v, %s", err, p.snapshot().State)
	}
	p.stop(t.Context(), 3, time.Unix(9, 0))
	if rec := p.snapshot(); rec.State != Stopped || rec.ExitStatus != 3 {
		t.Errorf("%+v", rec)
	}
}

// TestWaitForWhatIsTakenAway: a process that can never end any more is not waited for.
func TestWaitForWhatIsTakenAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newTestSet(t)
		exec := newTestProcess(t, s, "c1", "e1", Created)
		var err error
		go func() { _, err = s.Wait(t.Context(), "c1", "e1") }()
		synctest.Wait() // until it waits
		if err != nil {
			t.Errorf("before: %v", err)
		}
		s.remove(exec.c)
		s.remove(exec.c) // of one that is not there any more
		synctest.Wait()
		if !errdefs.IsNotFound(err) {
			t.Error(err)
		}
	})
}

func TestTagsAndNames(t *testing.T) {
	s := newTestSet(t)
	for _, execID := range []string{"", "e", "e.json"} {
		p := newTestProcess(t, s, "c", execID, Created)
		if id, got := splitTag(p.tag()); id != "c" || got != execID {
			t.Errorf("tag %q is of %q, %q", p.tag(), id, got)
		}
		if !strings.HasPrefix(p.kept(stdio.Stdin), p.keptPrefix()) {
			t.Errorf("kept %q, prefix %q", p.kept(stdio.Stdin), p.keptPrefix())
		}
		if strings.HasPrefix(p.tag(), loggerTag) {
			t.Errorf("tag %q is a logger's", p.tag())
		}
	}
	for _, bad := range []string{"", "..", ".c", "a/b", "logger:x", "a..b", strings.Repeat("x", 77)} {
		if err := validID("task", bad); !errdefs.IsInvalidArgument(err) {
			t.Errorf("ID %q: %v", bad, err)
		}
	}
	// The longest names fit the monitor's.
	long := newTestProcess(t, s, strings.Repeat("c", 76), strings.Repeat("e", 76), Created)
	if n := max(len(loggerTag+long.tag()), len(long.kept(masterStream))); n > 200 {
		t.Errorf("%d bytes", n)
	}
}

func TestKeysOfEvents(t *testing.T) {
	s := newTestSet(t)
	p, e := newTestProcess(t, s, "c", "", Created), newTestProcess(t, s, "c", "e", Created)
	keys := []string{p.key("exit", 1), p.key("exit", 2), p.key("start", 1), e.key("exit", 1)}
	p.c.CreatedAt = time.Unix(6, 0)
	keys = append(keys, p.key("exit", 1))
	slices.Sort(keys)
	if n := len(slices.Compact(slices.Clone(keys))); n != 5 {
		t.Errorf("keys %q are not all different", keys)
	}
}

// gone is the place where no process runs.
type gone struct{ isolation.Host }

func TestRuntimesAreExpectedAndAbandoned(t *testing.T) {
	s := newTestSet(t)
	if _, err := s.expect("c"); !errors.Is(err, ErrMonitorGone) {
		t.Errorf("without a monitor: %v", err)
	}
	s.host = &acker{}
	told, err := s.expect("c")
	if err != nil {
		t.Fatal(err)
	}
	s.runEnded(monitor.Exit{Tag: "other", Process: monitor.Process{Serial: 1}})
	s.runEnded(monitor.Exit{Tag: "c", Process: monitor.Process{Serial: 2}})
	if e := <-told; e.Serial != 2 {
		t.Errorf("told %+v", e)
	}
	forgotten, _ := s.expect("d")
	s.unexpect("d")
	s.runEnded(monitor.Exit{Tag: "d", Process: monitor.Process{Serial: 3}})
	select {
	case e := <-forgotten:
		t.Errorf("told %+v", e)
	default:
	}
	if acked := s.host.(*acker).serials; !slices.Equal(acked, []uint64{1, 2, 3}) {
		t.Errorf("acknowledged %v", acked)
	}
	abandoned, _ := s.expect("e")
	s.Gone()
	if _, ok := <-abandoned; ok {
		t.Error("an exit without a monitor")
	}
	if err := s.End(t.Context(), time.Hour); !errors.Is(err, ErrMonitorGone) {
		t.Errorf("end: %v", err)
	}
}

// acker keeps what is acknowledged.
type acker struct {
	gone
	serials []uint64
}

func (a *acker) Ack(_ context.Context, serial uint64) error {
	a.serials = append(a.serials, serial)
	return nil
}

func TestExitsOfWhatIsNotThereAreAcknowledged(t *testing.T) {
	s := newTestSet(t)
	host := &acker{}
	s.host = host
	p := newTestProcess(t, s, "c", "", Running)
	p.rec.Serial = 4
	for _, e := range []monitor.Exit{
		{Kind: monitor.Adopted, Tag: "none", Process: monitor.Process{Serial: 1}},
		{Kind: monitor.Adopted, Tag: "c/none", Process: monitor.Process{Serial: 2}},
		{Kind: monitor.Adopted, Tag: "c", Process: monitor.Process{Serial: 3}}, // of a start that was undone
	} {
		s.Exited(e)
		s.wg.Wait()
	}
	if !slices.Equal(host.serials, []uint64{1, 2, 3}) || p.snapshot().State != Running {
		t.Errorf("acknowledged %v, %s", host.serials, p.snapshot().State)
	}
}

func TestProcessSpec(t *testing.T) {
	p := newProcess(newContainer(newTestSet(t), containerRecord{ID: "c"}), "e", stdio.Config{Terminal: true}, Created)
	for name, bad := range map[string]typeurl.Any{
		"none": nil, "torn": value(`{"args":`), "no command": value(`{"args":[]}`), "kind": value(`{"args":"x"}`),
	} {
		if _, err := processSpec(p, bad); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	data, err := processSpec(p, value(`{"args":["a"],"terminal":false}`))
	var spec specs.Process
	if err := errors.Join(err, json.Unmarshal(data, &spec)); err != nil || !spec.Terminal {
		t.Errorf("the request did not decide on the terminal: %s, %v", data, err)
	}
	same := `{"args":["a"],"terminal":true,"unknown":1}`
	if data, err := processSpec(p, value(same)); err != nil || string(data) != same {
		t.Errorf("%s, %v, want it as it was", data, err)
	}
}

type value string

func (value) GetTypeUrl() string { return "spec" }
func (v value) GetValue() []byte { return []byte(v) }

func TestRuncOptions(t *testing.T) {
	want := &options.Options{BinaryName: "crun", IoUid: 5}
	any, err := typeurl.MarshalAny(want)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := runcOptions("c", any); err != nil || got.BinaryName != "crun" || got.IoUid != 5 {
		t.Errorf("%v, %v", got, err)
	}
	if got, err := runcOptions("c", nil); err != nil || got == nil {
		t.Errorf("none: %v, %v", got, err)
	}
	other, err := typeurl.MarshalAny(&options.CheckpointOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for name, bad := range map[string]typeurl.Any{"another kind": other, "unknown kind": value("x")} {
		if _, err := runcOptions("c", bad); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestSharesPID(t *testing.T) {
	pid := func(path string) *specs.Spec {
		return &specs.Spec{Linux: &specs.Linux{Namespaces: []specs.LinuxNamespace{{Type: specs.PIDNamespace, Path: path}}}}
	}
	for name, tc := range map[string]struct {
		spec *specs.Spec
		want bool
	}{
		"own":      {pid(""), false},
		"joined":   {pid("/proc/1/ns/pid"), true},
		"host's":   {&specs.Spec{Linux: &specs.Linux{}}, true},
		"no linux": {&specs.Spec{}, true},
	} {
		if got := sharesPID(tc.spec); got != tc.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func TestExitStatus(t *testing.T) {
	for ws, want := range map[unix.WaitStatus]uint32{0: 0, 3 << 8: 3, 9: 137, 15: 143, unknownExit << 8: 255, 11 | 0x80: 139} {
		if got := exitStatus(ws); got != want {
			t.Errorf("%#x: %d, want %d", ws, got, want)
		}
	}
}

func TestRecordsSurviveTheDaemon(t *testing.T) {
	s := newTestSet(t)
	at := time.Now().UTC()
	rec := containerRecord{
		ID: "c", Bundle: "/b", CreatedAt: at, CheckpointPath: "/cp", CriuWorkPath: "/w", IoUID: 1, IoGID: 2, KillAll: true,
		Runtime: oci.Runtime{Binary: "/runc", Root: "/r", SystemdCgroup: true, NoPivotRoot: true, NoNewKeyring: true},
		Rootfs:  []mount.Mount{{Type: "overlay", Source: "o", Target: "t", Options: []string{"ro"}}},
		Restore: &oci.Restore{ImagePath: "/i", ParentPath: "/p", WorkPath: "/w"},
	}
	process := record{
		State: Stopped, Pid: 1, Serial: 1 << 63, ExitStatus: 3, ExitedAt: at, CgroupPath: "/cg", OOMKills: 4,
		Stdio: stdio.Config{Stdin: "/0", Stdout: "/1", Stderr: "/2", Terminal: true},
	}
	c := newContainer(s, rec)
	c.init = newProcess(c, "", stdio.Config{}, Adding)
	e := newProcess(c, "e.json", stdio.Config{}, Adding)
	c.init.rec, e.rec = process, process
	if err := errors.Join(c.save(), c.init.save(), e.save(), os.WriteFile(e.path+".pid", []byte("7"), 0o600)); err != nil {
		t.Fatal(err)
	}
	got, err := s.loadContainer("c")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(rec, got.containerRecord); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(process, got.init.rec); diff != "" {
		t.Error(diff)
	}
	if len(got.execs) != 1 || got.execs["e.json"] == nil {
		t.Fatalf("execs %v", got.execs)
	}
	if diff := cmp.Diff(process, got.execs["e.json"].rec); diff != "" {
		t.Error(diff)
	}
	if err := os.Rename(c.dir(), s.dir("other")); err != nil {
		t.Fatal(err)
	}
	if _, err := s.loadContainer("other"); !errdefs.IsDataLoss(err) {
		t.Errorf("the record of another: %v", err)
	}
}

func FuzzLoadContainer(f *testing.F) {
	f.Add([]byte(`{"ID":"c"}`), []byte(`{"State":"running","Pid":1,"Serial":2}`))
	f.Add([]byte(`{"ID":"c","Rootfs":[{"Type":"bind"}],"Restore":{}}`), []byte(`{"State":"","ExitedAt":"2020-01-01T00:00:00Z"}`))
	f.Add([]byte(`{"ID":"../c"}`), []byte(`[]`))
	f.Add([]byte(`null`), []byte(`{"Pid":-1,"Serial":-1}`))
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, containerJSON, processJSON []byte) {
		s := NewSet(Config{Dir: dir})
		c := newContainer(s, containerRecord{ID: "c"})
		if err := os.MkdirAll(c.dir(), 0o700); err != nil {
			t.Fatal(err)
		}
		for name, data := range map[string][]byte{"container.json": containerJSON, "init.json": processJSON, "exec-e.json": processJSON} {
			if err := os.WriteFile(filepath.Join(c.dir(), name), data, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		got, err := s.loadContainer("c")
		if err != nil {
			return
		}
		if _, ok := allowed[got.init.rec.State]; got.ID != "c" || got.init == nil || !ok {
			t.Errorf("loaded %+v with a state %q", got.containerRecord, got.init.rec.State)
		}
	})
}
