package cgroup

import (
	"bufio"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/cgroups/v3/cgroup1"
	stats1 "github.com/containerd/cgroups/v3/cgroup1/stats"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/testing/protocmp"
)

// sameAsLibrary reads a group's counters, which must be what the library reads.
func sameAsLibrary(t *testing.T, g *Group) *stats1.Metrics {
	t.Helper()
	theirs, err := cgroup1.Load(cgroup1.StaticPath(g.path))
	if err != nil {
		t.Fatal(err)
	}
	var got *stats1.Metrics
	var diff string
	for range 20 { // counters may move between the two
		want, err := theirs.Stat(cgroup1.IgnoreNotExist)
		if err != nil {
			t.Fatal(err)
		}
		if got, err = g.statsV1(); err != nil {
			t.Fatal(err)
		}
		if diff = cmp.Diff(want, got, protocmp.Transform()); diff == "" {
			return got
		}
	}
	t.Fatalf("%s (-library +own):\n%s", g.path, diff)
	return nil
}

// needsV1 skips on hosts whose counters are not read here, but by the library.
func needsV1(t *testing.T) {
	t.Helper()
	if CurrentMode() == Unified {
		t.Skip("the v2 counters are the library's own")
	}
	needs(t, "memory", "blkio", "pids")
}

// TestStatsAreTheLibrarys: in a group with limits, in one below that has none of its own,
// and in one without any.
func TestStatsAreTheLibrarys(t *testing.T) {
	needsV1(t)
	g := newGroup(t, &specs.LinuxResources{
		Memory: &specs.LinuxMemory{Limit: ptr(int64(64 << 20))},
		Pids:   &specs.LinuxPids{Limit: ptr(int64(100))},
		CPU:    &specs.LinuxCPU{Quota: ptr(int64(50000)), Period: ptr(uint64(100000))},
	})
	// The first is refused by hosts that do not account for swap; the second by some
	// kernels since 5.16, of which the others ignore it.
	dir := g.host.dirOf("memory", g.path)
	_ = writeFile(filepath.Join(dir, "memory.memsw.limit_in_bytes"), "134217728")
	_ = writeFile(filepath.Join(dir, "memory.kmem.limit_in_bytes"), "33554432")
	work(t, g)
	got := sameAsLibrary(t, g)
	if got.CPU.Usage.Total == 0 || got.Pids.Limit != 100 || got.Memory.PgFault == 0 {
		t.Errorf("nothing was counted: %v", got)
	}
	child := leaf(t, g, "a")
	work(t, child)
	if got := sameAsLibrary(t, child).Memory; got.Usage.Limit != unlimited || got.HierarchicalMemoryLimit != 64<<20 {
		t.Errorf("below a group with a limit of 64 MiB: %v", got)
	}
	if err := g.Update(&specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(-1))}}); err != nil {
		t.Fatal(err)
	}
	if got := sameAsLibrary(t, g).Memory; got.Usage.Limit != unlimited || got.Usage.Max == 0 {
		t.Errorf("after its limit was lifted: %v", got)
	}
}

// TestStatsOfTCP: a group without a limit counts what those below it have in buffers that
// are limited.
func TestStatsOfTCP(t *testing.T) {
	needsV1(t)
	g := newGroup(t, nil)
	child := leaf(t, g, "a")
	limit := filepath.Join(g.host.dirOf("memory", child.path), "memory.kmem.tcp.limit_in_bytes")
	if err := writeFile(limit, "16777216"); errors.Is(err, os.ErrNotExist) {
		t.Skip("this kernel does not account for TCP's memory")
	} else if err != nil {
		t.Fatal(err)
	}
	cmd, in := helper(t, "sender")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := errors.Join(in.Close(), cmd.Wait()); err != nil {
			t.Error(err)
		}
	}()
	if err := child.Add(cmd.Process.Pid); err != nil {
		t.Fatal(err)
	}
	if _, err := in.Write([]byte("\n")); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatalf("the sender says %q: %v", line, err)
	}
	for of, limit := range map[*Group]uint64{g: unlimited, child: 16 << 20} {
		if got := sameAsLibrary(t, of).Memory.KernelTCP; got.Usage == 0 || got.Max == 0 || got.Limit != limit {
			t.Errorf("%s: %v", of.path, got)
		}
	}
}

// work has something counted in a group: it writes through to the disk, and ends.
func work(t *testing.T, g *Group) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "f")
	writer := exec.Command("/bin/sh", "-c", "read word; dd if=/dev/zero of="+file+" bs=64k count=32 conv=fsync status=none")
	hold, err := writer.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := writer.Start(); err != nil {
		t.Fatal(err)
	}
	if err := g.Add(writer.Process.Pid); err != nil {
		t.Error(err)
	}
	if err := errors.Join(hold.Close(), writer.Wait()); err != nil {
		t.Error(err)
	}
}

// TestBlockDevice: devices have the names that the kernel lists them by.
func TestBlockDevice(t *testing.T) {
	table, err := os.ReadFile("/proc/partitions")
	if err != nil {
		t.Fatal(err)
	}
	devices := 0
	for line := range strings.Lines(string(table)) {
		f := strings.Fields(line) // "254 0 264241152 vda"
		if len(f) != 4 || f[0] == "major" {
			continue
		}
		devices++
		if got := blockDevice(f[0] + ":" + f[1]); got != "/dev/"+f[3] {
			t.Errorf("%s:%s is %q, want /dev/%s", f[0], f[1], got, f[3])
		}
	}
	if devices == 0 {
		t.Skip("the kernel lists no block devices")
	}
	if got := blockDevice("4095:0"); got != "" {
		t.Errorf("a device that is not there is %q", got)
	}
}
