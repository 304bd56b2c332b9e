package bench

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/containerd/containerd/api/types/runc/options"
	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/oci"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"caisson/test/harness"
)

const (
	logLine  = "2026-01-01 12:00:00 INFO a line of a log, which is about as long as they often are: id=0123456789\n"
	logLines = (8 << 20) / len(logLine) // of the file that is written again and again
	lastLine = "that was all"
	logPath  = "/log" // of that file in a container
)

// benchLogs lets a container write many lines: to CRI's log file, and to FIFOs that
// this program reads.
func benchLogs(t *testing.T, r *recorder) {
	file := filepath.Join(t.TempDir(), "log")
	if err := os.WriteFile(file, bytes.Repeat([]byte(logLine), logLines), 0o600); err != nil {
		t.Fatal(err)
	}
	times := max(*logMiB/8, 1)
	script := fmt.Sprintf("i=0; while [ $i -lt %d ]; do cat %s; i=$((i+1)); done; echo %s", times, logPath, lastLine)
	size := float64(times*logLines*len(logLine)) / (1 << 20)
	sides := startSides(t, "runc")
	for round := range max(*rounds/4, 2) {
		for _, s := range sides {
			for _, way := range []struct {
				name string
				run  func(*testing.T, string, string, int) (time.Duration, spent)
			}{{"CRI's log file", s.logFile}, {"a client's FIFOs", s.logFIFO}} {
				took, used := way.run(t, file, script, times*logLines+1)
				if round == 0 {
					continue // what comes first has others' costs, too
				}
				r.add("log of one container", way.name, "MiB/s", s.name, size/took.Seconds())
				what := "processor time outside of a container that writes a GiB to " + way.name
				r.add(what, "all", "ms", s.name, used.sum()/size*1024)
				for _, program := range slices.Sorted(maps.Keys(used)) {
					if used[program] > 0 { // a pause container sleeps
						r.add(what, program, "ms", s.name, used[program]/size*1024)
					}
				}
			}
		}
	}
}

// logFile lets CRI write the log of a container; it takes until the log is complete
// and the container has ended.
func (s side) logFile(t *testing.T, file, script string, lines int) (time.Duration, spent) {
	t.Helper()
	cfg := s.cri.PodConfig(networks[0].mode)
	pod := s.runPod(t, cfg)
	ctr := s.containerConfig(cfg, script)
	ctr.Mounts = []*runtime.Mount{{HostPath: file, ContainerPath: logPath, Readonly: true}}
	id := s.create(t, pod, cfg, ctr)
	log := filepath.Join(cfg.LogDirectory, ctr.LogPath)
	end, used, begin := []byte(lastLine+"\n"), s.spending(t), time.Now()
	s.startContainer(t, id)
	// The file is looked at first: answers of the server would cost it time.
	await(t, s.Context(5*time.Minute), func() error { return endsWith(log, end) })
	await(t, s.Context(time.Minute), func() error { return s.exited(id) })
	took, sum := time.Since(begin), used()
	if n, err := countLines(log); n != lines || err != nil {
		t.Fatalf("%s: %d of %d lines in the log, %v", s.name, n, lines, err)
	}
	if err := os.Remove(log); err != nil {
		t.Fatal(err)
	}
	s.removePods(t, []string{pod})
	return took, sum
}

// await waits for something that cannot be waited for, to the millisecond.
func await(t *testing.T, ctx context.Context, f func() error) {
	t.Helper()
	for err := f(); err != nil; err = f() {
		if ctx.Err() != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Millisecond)
	}
}

func (s side) exited(id string) error {
	resp, err := s.cri.ContainerStatus(s.Context(time.Minute), &runtime.ContainerStatusRequest{ContainerId: id})
	if state := resp.GetStatus().GetState(); err == nil && state != runtime.ContainerState_CONTAINER_EXITED {
		err = fmt.Errorf("%s: container is %s", s.name, state)
	}
	return err
}

func endsWith(path string, end []byte) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	seen := make([]byte, len(end))
	at, err := f.Seek(-int64(len(end)), io.SeekEnd)
	if err == nil {
		_, err = f.ReadAt(seen, at)
	}
	if err == nil && !bytes.Equal(seen, end) {
		err = fmt.Errorf("%s ends with %q", path, seen)
	}
	return err
}

func countLines(path string) (n int, err error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	counter := &counter{}
	_, err = bufio.NewReaderSize(f, 1<<20).WriteTo(counter)
	return counter.lines, err
}

// counter counts lines, and notes when the first came.
type counter struct {
	lines int
	begin time.Time
}

func (c *counter) Write(p []byte) (int, error) {
	if c.begin.IsZero() {
		c.begin = time.Now()
	}
	c.lines += bytes.Count(p, []byte{'\n'})
	return len(p), nil
}

// logFIFO reads the output of a container itself; it takes from the first line until
// all of them are read and the container has ended.
func (s side) logFIFO(t *testing.T, file, script string, lines int) (time.Duration, spent) {
	t.Helper()
	ctx, client := s.In(5*time.Minute), s.Client("")
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", s.name, err)
		}
	}
	image, err := client.GetImage(ctx, harness.Image)
	must(err)
	c, err := client.NewContainer(ctx, "log", s.taskRuntime(), containerd.WithNewSnapshot("log", image), containerd.WithNewSpec(
		oci.WithImageConfig(image), oci.WithProcessArgs("/bin/sh", "-c", script), oci.WithHostNamespace(specs.NetworkNamespace),
		oci.WithCgroup("/"+s.Token+"/log"),
		oci.WithMounts([]specs.Mount{{Type: "bind", Source: file, Destination: logPath, Options: []string{"rbind", "ro"}}}),
	))
	must(err)
	seen := &counter{}
	task, err := c.NewTask(ctx, cio.NewCreator(cio.WithStreams(nil, seen, io.Discard), cio.WithFIFODir(filepath.Join(s.Dir, "fifo"))))
	must(err)
	exited, err := task.Wait(ctx)
	must(err)
	used := s.spending(t)
	must(task.Start(ctx))
	exit := <-exited
	task.IO().Wait()
	took, sum := time.Since(seen.begin), used()
	if exit.ExitCode() != 0 || exit.Error() != nil || seen.lines != lines {
		t.Fatalf("%s: %d of %d lines, exit code %d, %v", s.name, seen.lines, lines, exit.ExitCode(), exit.Error())
	}
	_, err = task.Delete(ctx)
	must(err)
	must(c.Delete(ctx, containerd.WithSnapshotCleanup))
	return took, sum
}

// taskRuntime is what a client of containerd's API names to get the side's tasks.
func (s side) taskRuntime() containerd.NewContainerOpts {
	if s.ours() {
		return containerd.WithRuntime(harness.Runtime, nil)
	}
	return containerd.WithRuntime("io.containerd.runc.v2", &options.Options{BinaryName: "runc", Root: filepath.Join(s.Dir, "containerd", "runc")})
}
