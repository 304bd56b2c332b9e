package cli

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/api/types/task"
	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	sandboxapi "caisson/api/caisson/sandbox/v1"
)

// must runs a command that has to succeed, and returns what it printed.
func (d *fakeDaemon) must(t *testing.T, args ...string) string {
	t.Helper()
	code, out, errs := d.run(t, args...)
	if code != 0 {
		t.Fatalf("caisson %v: code %d, %s", args, code, errs)
	}
	return out
}

// refused runs a command that has to fail with 1 and say something.
func (d *fakeDaemon) refused(t *testing.T, want string, args ...string) {
	t.Helper()
	if code, _, errs := d.run(t, args...); code != 1 || !strings.Contains(errs, want) {
		t.Errorf("caisson %v: code %d, %q, want %q in it", args, code, errs, want)
	}
}

func TestSandboxLife(t *testing.T) {
	d := startFake(t)
	out := d.must(t, "sandbox", "create", "--net", "host", "--hostname", "box", "--label", "a=b", "--annotation", "n=v", "-m", "64m", "pod1")
	if out != "pod1\n" {
		t.Errorf("create printed %q", out)
	}
	record := d.records["pod1"]
	if record.GetRuntime().GetName() != runtimeName || record.GetSandboxer() != sandboxer || record.GetLabels()["a"] != "b" {
		t.Errorf("record: %v", record)
	}
	request := d.creates[0]
	var got sandboxapi.Options
	if err := proto.Unmarshal(request.GetOptions().GetValue(), &got); err != nil || request.GetOptions().GetTypeUrl() != "caisson.sandbox.v1.Options" {
		t.Fatalf("options: %v, %v", request.GetOptions(), err)
	}
	want := &sandboxapi.Options{Hostname: "box", Network: sandboxapi.Network_NETWORK_HOST, Resources: &sandboxapi.Resources{MemoryLimit: 64 << 20}}
	if diff := cmp.Diff(want, &got, protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
	if request.GetAnnotations()["n"] != "v" || request.GetSandbox().GetSandboxID() != "pod1" {
		t.Errorf("create request: %v", request)
	}

	d.refused(t, `sandbox "pod1" exists already`, "sandbox", "create", "pod1")
	d.must(t, "sandbox", "start", "pod1")
	d.must(t, "sandbox", "start", "pod1")
	d.addContainer("web", "pod1", task.Status_STOPPED, nil)
	var rows []sandboxRow
	if err := json.Unmarshal([]byte(d.must(t, "sandbox", "ls", "--format", "json")), &rows); err != nil {
		t.Fatal(err)
	}
	if len(rows) != 1 || rows[0].State != stateReady || rows[0].PID != 7 || !slices.Equal(rows[0].Containers, []string{"web"}) {
		t.Errorf("ls: %+v", rows)
	}
	if out := d.must(t, "sandbox", "wait", "pod1"); out != "3\n" {
		t.Errorf("wait printed %q", out)
	}
	var details []map[string]any
	if err := json.Unmarshal([]byte(d.must(t, "sandbox", "inspect", "pod1")), &details); err != nil || details[0]["address"] != "ttrpc+unix:///run/x" {
		t.Errorf("inspect: %v, %v", details, err)
	}
	d.refused(t, "holds containers; remove them first: caisson rm web", "sandbox", "rm", "pod1")
	d.containers = nil
	d.refused(t, `sandbox "pod1" is running; stop it first: caisson sandbox stop pod1`, "sandbox", "rm", "pod1")
	d.must(t, "sandbox", "stop", "-t", "2", "pod1")
	if d.stops[0].GetTimeoutSecs() != 2 {
		t.Errorf("stop request: %v", d.stops[0])
	}
	d.must(t, "sandbox", "rm", "pod1")
	if len(d.records) != 0 || len(d.states) != 0 {
		t.Errorf("left: %v, %v", d.records, d.states)
	}
	d.refused(t, `no sandbox "pod1"`, "sandbox", "rm", "pod1")
	d.must(t, "sandbox", "rm", "-f", "pod1")
}

func TestSandboxCreateUndoesItself(t *testing.T) {
	d := startFake(t)
	d.fail["create"] = fmt.Errorf("no memory left: %w", errdefs.ErrResourceExhausted)
	d.refused(t, "no memory left", "sandbox", "create", "pod1")
	if len(d.records) != 0 {
		t.Errorf("records left: %v", d.records)
	}
	// Both what failed and what could not be undone is told.
	d.fail["shutdown"] = fmt.Errorf("stuck: %w", errdefs.ErrInternal)
	d.refused(t, "undo sandbox: stuck", "sandbox", "create", "pod1")
	if len(d.records) != 0 {
		t.Errorf("records left: %v", d.records)
	}
	// Somebody else's sandbox is not shut down.
	delete(d.fail, "shutdown")
	d.fail["create"], d.states["pod1"] = errdefs.ErrAlreadyExists, "SANDBOX_READY"
	d.refused(t, "already exists", "sandbox", "create", "pod1")
	if len(d.records) != 0 || d.states["pod1"] == "" {
		t.Errorf("after a clash: %v, %v", d.records, d.states)
	}
	d.fail["create"] = errdefs.ErrNotFound
	d.refused(t, `has no sandboxer "caisson"`, "sandbox", "create", "pod1")
}

func TestSandboxStartOfNothing(t *testing.T) {
	d := startFake(t)
	d.must(t, "sandbox", "create", "pod1")
	delete(d.states, "pod1") // as after a reboot
	d.refused(t, "remove it with `caisson sandbox rm pod1`", "sandbox", "start", "pod1")
	d.must(t, "sandbox", "stop", "pod1")
	d.must(t, "sandbox", "rm", "pod1")
}

func TestSandboxRemovalKeepsTheRecordUntilTheEnd(t *testing.T) {
	d := startFake(t)
	d.must(t, "sandbox", "create", "pod1")
	d.fail["shutdown"] = fmt.Errorf("busy: %w", errdefs.ErrUnavailable)
	d.refused(t, "shut down: busy", "sandbox", "rm", "pod1")
	delete(d.fail, "shutdown")
	d.must(t, "sandbox", "rm", "pod1")
}

func TestSandboxForcedRemoval(t *testing.T) {
	d := startFake(t)
	d.must(t, "sandbox", "create", "pod1")
	d.must(t, "sandbox", "start", "pod1")
	d.addContainer("web", "pod1", task.Status_UNKNOWN, map[string]string{labelSandbox: "pod1", labelOwned: "true"})
	d.addContainer("other", "pod2", task.Status_UNKNOWN, nil)
	d.must(t, "sandbox", "rm", "-f", "pod1")
	if len(d.records) != 0 || len(d.containers) != 1 || d.containers[0].GetID() != "other" {
		t.Errorf("left: %v, %v", d.records, d.containers)
	}
}

func TestSandboxUpdate(t *testing.T) {
	d := startFake(t)
	d.must(t, "sandbox", "create", "--label", "old=1", "--label", "keep=1", "pod1")
	d.must(t, "sandbox", "update", "--label", "new=1", "--unlabel", "old", "--annotation", "n=v", "--cpus", "0.5", "pod1")
	request := d.updates[0]
	if diff := cmp.Diff([]string{"labels", "extensions"}, request.GetFields()); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(map[string]string{"new": "1", "keep": "1"}, d.records["pod1"].GetLabels()); diff != "" {
		t.Error(diff)
	}
	var got sandboxapi.Options
	if err := proto.Unmarshal(request.GetSandbox().GetExtensions()[extensionOptions].GetValue(), &got); err != nil {
		t.Fatal(err)
	}
	want := &sandboxapi.Options{Annotations: map[string]string{"n": "v"}, Resources: &sandboxapi.Resources{CpuQuota: 50_000, CpuPeriod: cpuPeriod}}
	if diff := cmp.Diff(want, &got, protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
	// What the sandbox refuses is not promised by the record.
	d.fail["update"] = fmt.Errorf("too much: %w", errdefs.ErrInvalidArgument)
	d.refused(t, "too much", "sandbox", "update", "--label", "x=1", "pod1")
	if d.records["pod1"].GetLabels()["x"] != "" {
		t.Error("the record was changed")
	}
}

func TestForeignSandboxesAreLeftAlone(t *testing.T) {
	d := startFake(t)
	d.must(t, "sandbox", "create", "pod1")
	d.records["pod1"].Sandboxer = "podsandbox"
	if out := d.must(t, "sandbox", "ls", "-q"); out != "" {
		t.Errorf("ls: %q", out)
	}
	d.refused(t, `belongs to the sandboxer "podsandbox"`, "sandbox", "rm", "-f", "pod1")
}

func TestContainers(t *testing.T) {
	d := startFake(t)
	d.addContainer("web", "pod1", task.Status_RUNNING, nil)
	d.addContainer("job", "pod1", task.Status_STOPPED, nil)
	if out := d.must(t, "ps", "-q"); out != "web\n" {
		t.Errorf("ps: %q", out)
	}
	if out := d.must(t, "ps", "-aq"); out != "web\njob\n" {
		t.Errorf("ps -a: %q", out)
	}
	d.refused(t, `container "web" is running; stop it first: caisson stop web`, "rm", "web")
	d.refused(t, `container "job" is not running`, "kill", "job")
	d.refused(t, `no container "nobody"`, "rm", "nobody")
	d.must(t, "rm", "-f", "nobody")
	d.must(t, "stop", "job")
	d.refused(t, "keeps no log", "logs", "web")
	if code, _, errs := d.run(t, "exec", "job", "true"); code != exitOwn || !strings.Contains(errs, "is not running") {
		t.Errorf("exec: %d, %q", code, errs)
	}
	if code, _, errs := d.run(t, "run", "--sandbox", "pod1", "demo"); code != exitOwn {
		t.Errorf("run: %d, %q", code, errs)
	}
}

func TestRemovingAContainerRemovesItsSandboxAndLog(t *testing.T) {
	d := startFake(t)
	d.must(t, "sandbox", "create", "web")
	root := t.TempDir()
	log := filepath.Join(root, "logs", defaultNamespace, "web.log")
	if err := makeLog(log); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(log); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("log: %v, %v", info, err)
	}
	if info, err := os.Stat(filepath.Dir(log)); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("directory of logs: %v, %v", info, err)
	}
	labels := map[string]string{labelSandbox: "web", labelOwned: "true", labelLog: log}
	d.addContainer("web", "web", task.Status_UNKNOWN, labels)
	d.addContainer("guest", "web", task.Status_UNKNOWN, map[string]string{labelSandbox: "web", labelOwned: "false"})
	d.refused(t, `shares its sandbox with "guest"`, "rm", "web")
	d.must(t, "rm", "guest")
	if d.records["web"] == nil {
		t.Fatal("a guest took the sandbox with it")
	}
	if out := d.must(t, "logs", "web"); out != "" {
		t.Errorf("logs: %q", out)
	}
	d.must(t, "rm", "web")
	if len(d.records) != 0 || len(d.containers) != 0 {
		t.Errorf("left: %v, %v", d.records, d.containers)
	}
	if _, err := os.Stat(log); !os.IsNotExist(err) {
		t.Errorf("log: %v", err)
	}
}

func TestOnlyLogsAreRemoved(t *testing.T) {
	victim := filepath.Join(t.TempDir(), "victim")
	if err := os.WriteFile(victim, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	d := startFake(t)
	d.addContainer("web", "", task.Status_UNKNOWN, map[string]string{labelLog: victim})
	d.refused(t, "is not the path of a log", "rm", "web")
	if _, err := os.Stat(victim); err != nil {
		t.Error(err)
	}
	for _, path := range []string{"logs/ns/web.log", "/x/logs/other/web.log", "/x/logs/ns/other.log", "/x/ns/web.log"} {
		if err := removeLog(path, "ns", "web"); !errdefs.IsFailedPrecondition(err) {
			t.Errorf("%s: %v", path, err)
		}
	}
	if err := removeLog("/no/such/logs/ns/web.log", "ns", "web"); err != nil {
		t.Errorf("a log that is gone: %v", err)
	}
}
