package bench

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"caisson/test/apart"
)

var (
	output = flag.String("o", "", "`file` for the results; without one TestBench is left out")
	rounds = flag.Int("rounds", 40, "how many `pods` each side runs, one after the other, for the latencies of calls")
	pods   = flag.String("pods", "1,50,200,1000", "at how many pods memory and restarts are measured")
	logMiB = flag.Int("log", 256, "how many `MiB` the container writes whose log is measured")
	idle   = flag.String("idle", "100", "at how many `pods` that do nothing their processor time is measured")
	minute = flag.Duration("idle-time", time.Minute, "for how long that is measured, each time")
	parts  = flag.String("parts", "", "the parts to run, all if empty: "+strings.Join(partNames(), ","))
	only   = flag.String("sides", "", "the sides to run, all if empty: "+strings.Join(sideNames(), ","))
)

// part is one thing that is measured.
type part struct {
	name string
	run  func(*testing.T, *recorder)
}

var allParts = []part{
	{"calls", benchCalls},
	{"parallel", benchParallel},
	{"memory", benchMemory},
	{"idle", benchIdle},
	{"logs", benchLogs},
	{"api", benchAPI},
	{"stats", benchStats},
	{"floors", benchFloors},
	{"store", benchStore},
}

func partNames() (names []string) {
	for _, p := range allParts {
		names = append(names, p.name)
	}
	return names
}

func chosen(list, name string) bool {
	return list == "" || slices.Contains(strings.Split(list, ","), name)
}

// checkNames ends the test if a list of chosen names has one that does not exist.
func checkNames(t *testing.T, list string, names []string) {
	t.Helper()
	for name := range strings.SplitSeq(list, ",") {
		if list != "" && !slices.Contains(names, name) {
			t.Fatalf("%q is none of %q", name, names)
		}
	}
}

func TestMain(m *testing.M) {
	apart.Main(m, func(context.Context) (func(context.Context, bool) error, error) {
		return nil, hideUnified()
	})
}

// hideUnified takes the v2 hierarchy of a hybrid host out of the way, for all sides:
// crun does not start on such a host. Runtimes that write there all the same write into
// a file system that goes with the run.
func hideUnified() error {
	const dir = "/sys/fs/cgroup/unified"
	err := unix.Unmount(dir, unix.MNT_DETACH)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
		return nil // The host is not hybrid.
	}
	if err != nil {
		return err
	}
	return unix.Mount("unified", dir, "tmpfs", 0, "mode=0755")
}

// TestBench runs the parts and writes what they have measured.
func TestBench(t *testing.T) {
	if *output == "" {
		t.Skip("takes long, on a machine that does nothing else: make bench")
	}
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	checkNames(t, *parts, partNames())
	checkNames(t, *only, sideNames())
	r := &recorder{}
	for _, p := range allParts {
		if !chosen(*parts, p.name) {
			continue
		}
		start := time.Now()
		if !t.Run(p.name, func(t *testing.T) { p.run(t, r) }) {
			continue // The others are worth something all the same.
		}
		fmt.Printf("%s took %s\n", p.name, time.Since(start).Round(time.Second))
	}
	results, err := r.results()
	if err == nil {
		err = results.write(*output)
	}
	if err != nil {
		t.Fatal(err)
	}
	fmt.Print(results.Text())
}
