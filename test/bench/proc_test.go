package bench

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// machineTime is the processor time that the whole machine has used, this program
// excepted, in milliseconds.
func machineTime(t testing.TB) float64 {
	t.Helper()
	sum, err := scheduled()
	if errors.Is(err, os.ErrNotExist) {
		sum, err = sampled()
	}
	var own unix.Timespec
	if err = errors.Join(err, unix.ClockGettime(unix.CLOCK_PROCESS_CPUTIME_ID, &own)); err != nil {
		t.Fatal(err)
	}
	return sum - milliseconds(own)
}

// scheduled is what cgroup v1 counts, to the nanosecond.
func scheduled() (float64, error) {
	text, err := os.ReadFile("/sys/fs/cgroup/cpuacct/cpuacct.usage")
	if err != nil {
		return 0, err
	}
	ns, err := strconv.ParseFloat(strings.TrimSpace(string(text)), 64)
	return ns / 1e6, err
}

// sampled is what is counted with every tick of the clock, which may miss what runs
// between two.
func sampled() (sum float64, err error) {
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, err
	}
	line, _, _ := strings.Cut(string(text), "\n")
	// user nice system idle iowait irq softirq steal
	for i, field := range strings.Fields(line)[1:9] {
		n, err := strconv.ParseFloat(field, 64)
		if err != nil {
			return 0, err
		}
		if i != 3 && i != 4 && i != 7 {
			sum += n
		}
	}
	return sum * 10, nil // USER_HZ is 100
}

func milliseconds(t unix.Timespec) float64 { return float64(t.Nano()) / 1e6 }

// overhead are the programs that run because of pods, and are not what pods run.
var overhead = []string{"containerd", "containerd-shim-runc-v2", "caissond", "caisson-monitor", "pause"}

// processes are those of the side's servers, of its shims and monitors, and of its
// pause containers: the program of each.
func (s side) processes(t testing.TB) map[int]string {
	t.Helper()
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	programs := map[int]string{}
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
		if !s.ours() && strings.HasPrefix(name, "caisson") {
			continue // it waits for the side that shares this containerd
		}
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil {
			t.Fatal(err)
		}
		programs[pid] = name
	}
	return programs
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
	for pid := range s.processes(t) {
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

// spent is processor time by program, in milliseconds.
type spent map[string]float64

// sum is that of all programs.
func (sp spent) sum() (ms float64) {
	for _, one := range sp {
		ms += one
	}
	return ms
}

// spending begins to count the processor time of the side's processes, and returns
// what ends it. What their children use is not theirs: a container is a monitor's
// child, or a shim's.
func (s side) spending(t testing.TB) func() spent {
	t.Helper()
	before := map[int]float64{}
	for pid := range s.processes(t) {
		before[pid], _ = ownTime(pid) // 0: it has ended
	}
	return func() spent {
		t.Helper()
		used := spent{}
		for pid, program := range s.processes(t) {
			if now, err := ownTime(pid); err == nil {
				used[program] += now - before[pid]
			}
		}
		return used
	}
}

// childTime is the processor time of the children that the side's processes have
// waited for, in milliseconds.
func (s side) childTime(t testing.TB) (sum float64) {
	t.Helper()
	for pid := range s.processes(t) {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			continue // it has ended
		}
		_, rest, _ := strings.Cut(string(text), ") ")
		for _, field := range strings.Fields(rest)[13:15] { // cutime and cstime
			n, err := strconv.ParseFloat(field, 64)
			if err != nil {
				t.Fatal(err)
			}
			sum += n * 10 // USER_HZ is 100
		}
	}
	return sum
}

// ownTime is the processor time of a process and its threads, in milliseconds: to the
// nanosecond, unlike that in its stat file.
func ownTime(pid int) (float64, error) {
	var at unix.Timespec
	const scheduled = 2                                     // CPUCLOCK_SCHED, of the kernel's posix-timers.h
	err := unix.ClockGettime(int32(^pid<<3|scheduled), &at) // as clock_getcpuclockid(3) does
	return milliseconds(at), err
}
