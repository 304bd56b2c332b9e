package cgroup

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	stats1 "github.com/containerd/cgroups/v3/cgroup1/stats"
	stats2 "github.com/containerd/cgroups/v3/cgroup2/stats"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	"github.com/opencontainers/runtime-spec/specs-go"

	"caisson/internal/ceiling"
)

func contextForCleanup(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func ptr[T any](v T) *T { return &v }

// needs skips on hosts without a controller.
func needs(t *testing.T, controllers ...string) {
	t.Helper()
	h, err := currentHost()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range controllers {
		if !h.has(c) {
			t.Skipf("this host has no %s controller (%s)", c, h.mode)
		}
	}
}

// control reads a control file of the group, by its name in v1 and in v2.
func control(t *testing.T, g *Group, controller, v1, v2 string) string {
	t.Helper()
	file := filepath.Join(g.host.unifiedDir(g.path), v2)
	if g.host.mode != Unified {
		file = filepath.Join(g.host.dirOf(controller, g.path), v1)
	}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

func TestCreateLoadDelete(t *testing.T) {
	needs(t, "memory", "pids", "cpu")
	g := newGroup(t, &specs.LinuxResources{
		Memory: &specs.LinuxMemory{Limit: ptr(int64(64 << 20))},
		Pids:   &specs.LinuxPids{Limit: ptr(int64(50))},
		CPU:    &specs.LinuxCPU{Shares: ptr(uint64(512)), Quota: ptr(int64(50_000)), Period: ptr(uint64(100_000))},
	})
	for _, dir := range g.host.dirs(g.path) {
		if _, err := os.Stat(dir); err != nil {
			t.Error(err)
		}
	}
	if got := control(t, g, "memory", "memory.limit_in_bytes", "memory.max"); got != "67108864" {
		t.Errorf("memory limit %s", got)
	}
	// The same again, with other values: raising and lifting must both work.
	again, err := Create(g.Path(), &specs.LinuxResources{
		Memory: &specs.LinuxMemory{Limit: ptr(int64(128 << 20)), Swap: ptr(int64(128 << 20))},
		Pids:   &specs.LinuxPids{Limit: ptr(int64(-1))},
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := control(t, again, "memory", "memory.limit_in_bytes", "memory.max"); got != "134217728" {
		t.Errorf("memory limit %s", got)
	}
	if got := control(t, again, "pids", "pids.max", "pids.max"); got != "max" {
		t.Errorf("pids limit %s", got)
	}
	if err := again.Update(&specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(-1))}}); err != nil {
		t.Fatal(err)
	}
	if got := control(t, g, "memory", "memory.limit_in_bytes", "memory.max"); got != "max" && len(got) < 18 {
		t.Errorf("memory limit %s after lifting it", got)
	}
	loaded, err := Load(g.Path())
	if err != nil {
		t.Fatal(err)
	}
	leaf(t, loaded, "a")
	leaf(t, loaded, "b")
	for range 2 { // idempotent
		if err := loaded.Delete(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Load(g.Path()); !errdefs.IsNotFound(err) {
		t.Errorf("load after delete: %v", err)
	}
	if _, err := loaded.Stats(); !errdefs.IsNotFound(err) {
		t.Errorf("stats after delete: %v", err)
	}
	if err := loaded.Update(&specs.LinuxResources{}); !errdefs.IsNotFound(err) {
		t.Errorf("update after delete: %v", err)
	}
	if err := loaded.Kill(t.Context()); err != nil {
		t.Errorf("kill after delete: %v", err)
	}
	if err := loaded.Freeze(t.Context()); !errdefs.IsNotFound(err) {
		t.Errorf("freeze after delete: %v", err)
	}
	if pids, err := loaded.Pids(); err != nil || len(pids) != 0 {
		t.Errorf("pids after delete: %v, %v", pids, err)
	}
}

func TestCreateFailureLeavesNothing(t *testing.T) {
	needs(t, "cpuset")
	path := filepath.Join(base, t.Name(), "deep", "er")
	_, err := Create(path, &specs.LinuxResources{CPU: &specs.LinuxCPU{Cpus: "no cpu"}})
	if !errdefs.IsInvalidArgument(err) {
		t.Fatalf("got %v", err)
	}
	h, _ := currentHost()
	for _, dir := range h.dirs(filepath.Join(base, t.Name())) {
		if _, err := os.Lstat(dir); err == nil {
			t.Errorf("%s is still there", dir)
		}
	}
}

func TestRefusals(t *testing.T) {
	root, err := Load("/")
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	for verb, err := range map[string]error{
		"kill": root.Kill(ctx), "freeze": root.Freeze(ctx), "delete": root.Delete(ctx),
		"update": root.Update(&specs.LinuxResources{}),
	} {
		if !errdefs.IsFailedPrecondition(err) {
			t.Errorf("%s the root group: %v", verb, err)
		}
	}
	if _, err := OfProcess(1 << 30); !errdefs.IsNotFound(err) {
		t.Errorf("of a process that is none: %v", err)
	}
	g := newGroup(t, nil)
	if err := g.Add(1 << 30); !errdefs.IsNotFound(err) && !errdefs.IsInvalidArgument(err) {
		t.Errorf("add a process that is none: %v", err)
	}
	if err := g.Add(0); !errdefs.IsInvalidArgument(err) {
		t.Errorf("add process 0: %v", err)
	}
}

func TestMembers(t *testing.T) {
	g := newGroup(t, nil)
	a, b := leaf(t, g, "a"), leaf(t, g, "b")
	one, _ := started(t, a, "wait")
	two, _ := started(t, b, "wait")
	want := []int{one.Process.Pid, two.Process.Pid}
	slices.Sort(want)
	got, err := g.Pids()
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("pids %v, want %v (%v)", got, want, err)
	}
	of, err := OfProcess(one.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	if of.Path() != a.Path() {
		t.Errorf("process is in %s, want %s", of.Path(), a.Path())
	}
	if err := g.removeDirs(); err == nil {
		t.Error("removed a group that is in use")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := g.Delete(ctx); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("delete a group in use: %v", err)
	}
}

func TestOfProcessInMixedGroups(t *testing.T) {
	if CurrentMode() == Unified {
		t.Skip("a process has only one group on a unified host")
	}
	needs(t, "memory", "pids")
	g := newGroup(t, nil)
	a, b := leaf(t, g, "a"), leaf(t, g, "b")
	cmd, _ := started(t, a, "wait")
	pid := cmd.Process.Pid
	err := os.WriteFile(filepath.Join(b.host.dirOf("memory", b.path), "cgroup.procs"), []byte(strconv.Itoa(pid)), 0)
	if err != nil {
		t.Fatal(err)
	}
	of, err := OfProcess(pid)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := of.Stats(); err != nil {
		t.Error(err)
	}
	if err := of.Kill(t.Context()); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("kill: %v", err)
	}
	// It is found in both groups, so neither can be emptied without it.
	for _, g := range []*Group{a, b} {
		if pids, err := g.Pids(); err != nil || !slices.Contains(pids, pid) {
			t.Errorf("%s has %v, %v", g.Path(), pids, err)
		}
	}
}

func TestStats(t *testing.T) {
	needs(t, "memory", "pids")
	g := newGroup(t, &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(256 << 20))}})
	child := leaf(t, g, "a")
	started(t, child, "wait")
	m, err := g.Stats()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := typeurl.MarshalAny(m); err != nil {
		t.Error(err)
	}
	switch m := m.(type) {
	case *stats1.Metrics:
		if m.Memory.Usage.Limit != 256<<20 || m.Pids.Current < 1 || m.CPU == nil {
			t.Errorf("metrics %+v", m)
		}
	case *stats2.Metrics:
		if m.Memory.UsageLimit != 256<<20 || m.Pids.Current < 1 || m.CPU == nil {
			t.Errorf("metrics %+v", m)
		}
	default:
		t.Fatalf("metrics of type %T", m)
	}
}

func TestFreezeAndKillFrozen(t *testing.T) {
	needs(t, map[Mode]string{Unified: "pids"}[CurrentMode()]+map[Mode]string{Hybrid: "freezer", Legacy: "freezer"}[CurrentMode()])
	g := newGroup(t, nil)
	child := leaf(t, g, "a")
	cmd, _ := started(t, child, "wait")
	ctx := t.Context()
	for range 2 { // repeating is harmless
		if err := child.Freeze(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if frozen, err := child.Frozen(); err != nil || !frozen {
		t.Errorf("frozen %v, %v", frozen, err)
	}
	if err := child.Thaw(ctx); err != nil {
		t.Fatal(err)
	}
	if frozen, err := child.Frozen(); err != nil || frozen {
		t.Errorf("frozen %v, %v", frozen, err)
	}
	if err := g.Freeze(ctx); err != nil {
		t.Fatal(err)
	}
	if err := child.Thaw(ctx); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("thaw below a frozen group: %v", err)
	}
	if err := g.Thaw(ctx); err != nil {
		t.Fatal(err)
	}
	if err := child.Freeze(ctx); err != nil {
		t.Fatal(err)
	}
	if err := g.Kill(ctx); err != nil {
		t.Fatal(err)
	}
	var exit interface{ ExitCode() int }
	err := cmd.Wait()
	if !errors.As(err, &exit) || cmd.ProcessState.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Errorf("ended with %v", err)
	}
}

// TestKillForkers kills a crowd whose members start a successor and end, all
// the time, so that a list of them is outdated when it is read.
func TestKillForkers(t *testing.T) {
	for name, kill := range map[string]func(*Group, context.Context) error{
		"kill": (*Group).Kill,
		// Without cgroup.kill, which is what older kernels have.
		"each": (*Group).killEach,
	} {
		t.Run(name, func(t *testing.T) {
			needs(t, "pids")
			g := newGroup(t, &specs.LinuxResources{Pids: &specs.LinuxPids{Limit: ptr(int64(300))}})
			child := leaf(t, g, "a")
			cmd, in := helper(t, "reaper")
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			cmd.ExtraFiles = []*os.File{r}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			r.Close()
			defer in.Close()
			defer w.Close()
			line, err := bufio.NewReader(out).ReadString('\n')
			if err != nil {
				t.Fatal(err)
			}
			pid, _ := strconv.Atoi(strings.TrimSpace(line))
			if err := child.Add(pid); err != nil {
				t.Fatal(err)
			}
			fmt.Fprintln(w, "go")
			var b backoff
			for { // until the crowd is there and the first one has ended
				pids, err := g.Pids()
				if err != nil {
					t.Fatal(err)
				}
				if len(pids) > 10 && !slices.Contains(pids, pid) {
					break
				}
				if err := b.wait(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			begin := time.Now()
			if err := kill(g, t.Context()); err != nil {
				t.Fatal(err)
			}
			t.Logf("killed in %v", time.Since(begin))
			if pids, err := g.Pids(); err != nil || len(pids) > 0 {
				t.Errorf("left: %v, %v", pids, err)
			}
			if err := g.Delete(t.Context()); err != nil {
				t.Error(err)
			}
			if err := cmd.Wait(); err != nil {
				t.Errorf("reaper: %v", err)
			}
		})
	}
}

func TestKillHonoursContext(t *testing.T) {
	g := newGroup(t, nil)
	child := leaf(t, g, "a")
	started(t, child, "wait")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := child.killEach(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestMissingControllers(t *testing.T) {
	missing, err := Missing()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s, missing %v", CurrentMode(), missing)
	if CurrentMode() == Unavailable {
		t.Error("no mode although groups can be made")
	}
}

func BenchmarkStats(b *testing.B) {
	g, err := Create(base+"/bench", nil)
	if err != nil {
		b.Fatal(err)
	}
	defer func() {
		if err := g.Delete(context.Background()); err != nil {
			b.Error(err)
		}
	}()
	defer ceiling.Allocs(b, 60)() // some of them for each hierarchy
	for b.Loop() {
		if _, err := g.Stats(); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkCreateDelete(b *testing.B) {
	defer ceiling.Allocs(b, 700)()
	for b.Loop() {
		g, err := Create(base+"/bench", nil)
		if err != nil {
			b.Fatal(err)
		}
		if err := g.Delete(context.Background()); err != nil {
			b.Fatal(err)
		}
	}
}

// TestAnticipate: the wait is had, and this process is where it was.
func TestAnticipate(t *testing.T) {
	before, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	if err := moveNowhere(); err != nil {
		t.Error(err)
	}
	for range 3 {
		Anticipate()
	}
	if after, err := os.ReadFile("/proc/self/cgroup"); err != nil || !bytes.Equal(after, before) {
		t.Errorf("it was moved from %s to %s: %v", before, after, err)
	}
}
