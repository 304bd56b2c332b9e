package integration

import (
	"bytes"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/oci"

	"caisson/test/daemon"
	"caisson/test/harness"
)

// outputEnv is how many MiB TestNoisyContainers writes to a slow reader, a few
// unless it is set.
const outputEnv = "CAISSON_TEST_OUTPUT"

// calmExecs is how many execs make a median.
const calmExecs = 15

// TestNoisyContainers: containers that write as fast as they can, with nobody
// reading or somebody slow, to FIFOs and to terminals, lose nothing and hurt nobody:
// neither their own sandbox nor another. Execs take as long as before, and another
// container's output arrives.
func TestNoisyContainers(t *testing.T) {
	size := int(envNumber(t, outputEnv, 16)) << 20
	h := harness.Start(t, daemon.Options{Engine: daemon.EngineStock})
	startSandbox(t, h, "noisy", nil)
	startSandbox(t, h, "calm", nil)
	calm := []containerd.Task{
		startNoise(t, h, "noisy", "beside", "sleep 100000", false, io.Discard),
		startNoise(t, h, "calm", "apart", "sleep 100000", false, io.Discard),
	}
	median := func() time.Duration {
		var took []time.Duration
		for i := range calmExecs {
			for _, task := range calm {
				took = append(took, timeExec(t, h, task, fmt.Sprint(i)))
			}
		}
		slices.Sort(took)
		return took[len(took)/2]
	}
	median() // the first ones take longer
	before := median()

	unread := blockedWriter{release: make(chan struct{})}
	defer unread.free() // else their streams never end
	for i, terminal := range []bool{false, true} {
		startNoise(t, h, "noisy", fmt.Sprintf("unread%d", i), "yes", terminal, &unread)
	}
	slow := []*slowReader{newSlowReader(size, "0123456789abcdef\n"), newSlowReader(size/16, "0123456789abcdef\r\n")}
	for _, reader := range slow {
		defer reader.hurry()
	}
	for i, reader := range slow {
		lines := reader.size / len(reader.line)
		startNoise(t, h, "noisy", fmt.Sprintf("slow%d", i), fmt.Sprintf("yes 0123456789abcdef | head -n %d; sleep 100000", lines), i == 1, reader)
	}
	for _, reader := range slow {
		reader.await(t, h, 0) // it has begun
	}
	during := median()
	var count strings.Builder
	out := member(t, h, "noisy", "counter", "seq 1 100000")
	for i := range 100000 {
		fmt.Fprintln(&count, i+1)
	}
	if out != count.String() {
		t.Errorf("the output of another container: %d bytes, want %d", len(out), count.Len())
	}
	t.Logf("an exec takes %v, and %v while others are noisy (medians of %d)", before.Round(time.Millisecond), during.Round(time.Millisecond), 2*calmExecs)
	// What is noisy takes processor time, too: that is no fault of ours.
	if during > 3*before+50*time.Millisecond {
		t.Errorf("an exec takes %v, and %v while others are noisy", before, during)
	}
	start := time.Now()
	for _, reader := range slow {
		reader.hurry()
		reader.await(t, h, reader.size/len(reader.line)*len(reader.line))
	}
	t.Logf("the rest of %d MiB came in %v", size>>20, time.Since(start).Round(time.Millisecond))
}

// startNoise starts a container whose output goes to a writer. It is removed when
// the test ends.
func startNoise(t *testing.T, h *harness.Host, sandboxID, id, script string, terminal bool, out io.Writer) containerd.Task {
	t.Helper()
	ctx := h.In(time.Minute)
	opts := []oci.SpecOpts{oci.WithProcessArgs("/bin/sh", "-c", script)}
	streams := []cio.Opt{cio.WithStreams(nil, out, io.Discard), fifos(h)}
	if terminal {
		opts, streams = append(opts, oci.WithTTY), append(streams, cio.WithTerminal)
	}
	c, err := newContainer(h, id, []containerd.NewContainerOpts{containerd.WithSandbox(sandboxID)}, opts...)
	if err != nil {
		t.Fatal(err)
	}
	task, err := taskIn(ctx, h, sandboxID, c, cio.NewCreator(streams...))
	if err != nil {
		t.Fatalf("container %s: create: %v", id, err)
	}
	t.Cleanup(func() {
		ctx, cancel := detached(h, time.Minute)
		defer cancel()
		if _, err := task.Delete(ctx, containerd.WithProcessKill); err != nil {
			t.Errorf("container %s: delete task: %v", id, err)
		}
		if err := c.Delete(ctx, containerd.WithSnapshotCleanup); err != nil {
			t.Errorf("container %s: delete: %v", id, err)
		}
	})
	if err := task.Start(ctx); err != nil {
		t.Fatalf("container %s: start: %v", id, err)
	}
	return task
}

// timeExec runs an exec to its end, checks its output, and tells how long it took.
func timeExec(t *testing.T, h *harness.Host, task containerd.Task, word string) time.Duration {
	t.Helper()
	ctx := h.In(time.Minute)
	spec, err := task.Spec(ctx)
	if err != nil {
		t.Fatal(err)
	}
	spec.Process.Args = []string{"/bin/echo", word}
	var out bytes.Buffer
	start := time.Now()
	exec, err := task.Exec(ctx, "e", spec.Process, cio.NewCreator(cio.WithStreams(nil, &out, io.Discard), fifos(h)))
	if err != nil {
		t.Fatal(err)
	}
	exited, err := exec.Wait(ctx)
	if err == nil {
		err = exec.Start(ctx)
	}
	if err != nil {
		t.Fatal(err)
	}
	if exit := <-exited; exit.ExitCode() != 0 || exit.Error() != nil {
		t.Errorf("exec in %s: exit code %d, %v", task.ID(), exit.ExitCode(), exit.Error())
	}
	exec.IO().Wait() // for the last output
	took := time.Since(start)
	if _, err := exec.Delete(ctx); err != nil {
		t.Error(err)
	}
	if out.String() != word+"\n" {
		t.Errorf("exec in %s wrote %q, not %q", task.ID(), out.String(), word)
	}
	return took
}

// blockedWriter takes nothing until it is released, and then everything.
type blockedWriter struct {
	release chan struct{}
	once    sync.Once
}

func (w *blockedWriter) free() { w.once.Do(func() { close(w.release) }) }

func (w *blockedWriter) Write(p []byte) (int, error) {
	<-w.release
	return len(p), nil
}

// slowReader takes the same line again and again, and rests after each piece. It
// takes the second half of its bytes only when it is told to hurry.
type slowReader struct {
	line string
	size int
	over chan struct{} // closed by hurry
	once sync.Once

	mu    sync.Mutex // guards what follows
	seen  int
	wrong error
	more  chan struct{} // closed and replaced when seen grows
}

func newSlowReader(size int, line string) *slowReader {
	return &slowReader{line: line, size: size, over: make(chan struct{}), more: make(chan struct{})}
}

func (r *slowReader) hurry() { r.once.Do(func() { close(r.over) }) }

// rest is how long a slow reader does nothing after each piece, 32 KiB or less.
const rest = time.Millisecond

func (r *slowReader) Write(p []byte) (int, error) {
	time.Sleep(rest) // slowness itself
	if r.read() > r.size/2 {
		<-r.over
	}
	want := strings.Repeat(r.line, len(p)/len(r.line)+2)
	r.mu.Lock()
	defer r.mu.Unlock()
	at := r.seen % len(r.line)
	if string(p) != want[at:at+len(p)] && r.wrong == nil {
		r.wrong = fmt.Errorf("output differs from what was written near byte %d", r.seen)
	}
	r.seen += len(p)
	close(r.more)
	r.more = make(chan struct{})
	return len(p), nil
}

func (r *slowReader) read() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.seen
}

// await waits until so much was read, or anything at all, and right.
func (r *slowReader) await(t *testing.T, h *harness.Host, n int) {
	t.Helper()
	ctx := h.In(5 * time.Minute)
	for {
		r.mu.Lock()
		seen, wrong, more := r.seen, r.wrong, r.more
		r.mu.Unlock()
		if wrong != nil || n > 0 && seen > n {
			t.Fatalf("%d bytes of %d: %v", seen, n, wrong)
		}
		if seen >= max(n, 1) {
			return
		}
		select {
		case <-more:
		case <-ctx.Done():
			t.Fatalf("%d bytes of %d were read", seen, n)
		}
	}
}
