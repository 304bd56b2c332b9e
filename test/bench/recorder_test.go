package bench

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"caisson/test/bench/results"
)

// recorder collects samples.
type recorder struct {
	mu      sync.Mutex // guards samples
	samples []results.Samples
	index   map[string]int
}

// add adds a sample. The unit says whether less is better: it is, of everything that
// is not per second.
func (r *recorder) add(group, measure, unit, side string, value float64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.index == nil {
		r.index = map[string]int{}
	}
	key := strings.Join([]string{group, measure, side}, "\x00")
	i, ok := r.index[key]
	if !ok {
		i = len(r.samples)
		r.index[key] = i
		r.samples = append(r.samples, results.Samples{Group: group, Measure: measure, Unit: unit, Side: side})
	}
	r.samples[i].Values = append(r.samples[i].Values, value)
}

// took adds the time since then, in milliseconds.
func (r *recorder) took(group, measure, side string, since time.Time) time.Time {
	now := time.Now()
	r.add(group, measure, "ms", side, float64(now.Sub(since).Microseconds())/1000)
	return now
}

type runResults struct{ results.Run }

func (r *recorder) results() (*runResults, error) {
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return nil, err
	}
	run := results.Run{
		Rounds:  *rounds,
		Date:    time.Now().UTC().Format(time.DateOnly),
		Machine: fmt.Sprintf("%d processors (%s), Linux %s", runtime.NumCPU(), processor(), unix.ByteSliceToString(uts.Release[:])),
		Versions: map[string]string{
			"go": runtime.Version(), "runc": versionOf("runc"), "crun": versionOf("crun"),
			"containerd": versionOf("../../build/containerd"), "caisson": versionOf("../../bin/caissond"),
		},
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, s := range r.samples {
		run.Stats = append(run.Stats, s.Sum())
	}
	return &runResults{run}, nil
}

func (r *runResults) write(path string) error {
	data, err := json.MarshalIndent(r.Run, "", "\t")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(data, '\n'), 0o644)
}

// versionOf is the first line that a program prints with --version.
func versionOf(program string) string {
	out, err := exec.Command(program, "--version").Output()
	if err != nil {
		return err.Error()
	}
	line, _, _ := strings.Cut(string(out), "\n")
	return strings.TrimSpace(line)
}

func processor() string {
	text, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return err.Error()
	}
	_, rest, _ := strings.Cut(string(text), "model name\t: ")
	name, _, _ := strings.Cut(rest, "\n")
	return name
}
