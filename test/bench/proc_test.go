package bench

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// machineTime is the processor time that the whole machine has used, in milliseconds.
func machineTime(t testing.TB) float64 {
	t.Helper()
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		t.Fatal(err)
	}
	line, _, _ := strings.Cut(string(text), "\n")
	sum := 0.0
	// user nice system idle iowait irq softirq steal
	for i, field := range strings.Fields(line)[1:9] {
		n, err := strconv.ParseFloat(field, 64)
		if err != nil {
			t.Fatal(err)
		}
		if i != 3 && i != 4 && i != 7 {
			sum += n
		}
	}
	return sum * 10 // USER_HZ is 100
}

// overhead are the programs that run because of pods, and are not what pods run.
var overhead = []string{"containerd", "containerd-shim-runc-v2", "caissond", "caisson-monitor", "pause"}

// processes are those of the side's servers, of its shims and monitors, and of its
// pause containers.
func (s side) processes(t testing.TB) (pids []int) {
	t.Helper()
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range dirs {
		exe, err := os.Readlink(dir + "/exe")
		if err != nil {
			continue // it has ended, or is the kernel's
		}
		name := filepath.Base(exe)
		if strings.HasPrefix(name, "caisson-monitor") {
			name = "caisson-monitor"
		}
		if !slices.Contains(overhead, name) || !s.owns(dir, exe) {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil {
			t.Fatal(err)
		}
		pids = append(pids, pid)
	}
	return pids
}

// owns tells whether a process belongs to the side's servers: it has their directory
// in its command line or program, or is in one of their cgroups.
func (s side) owns(dir, exe string) bool {
	line, err := os.ReadFile(dir + "/cmdline")
	if err != nil {
		return false
	}
	group, err := os.ReadFile(dir + "/cgroup")
	return err == nil && (strings.Contains(exe, s.Dir) || bytes.Contains(line, []byte(s.Dir)) || bytes.Contains(group, []byte("/"+s.Token+"/")))
}

// pss is the memory of the side's processes, in KiB. What several share is divided.
func (s side) pss(t testing.TB) (sum float64) {
	t.Helper()
	for _, pid := range s.processes(t) {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
		if err != nil {
			continue // it has ended
		}
		_, rest, _ := strings.Cut(string(text), "\nPss:")
		var n float64
		if _, err := fmt.Sscan(rest, &n); err != nil {
			t.Fatalf("memory of process %d: %v", pid, err)
		}
		sum += n
	}
	return sum
}
