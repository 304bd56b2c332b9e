package integration

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"caisson/test/daemon"
	"caisson/test/harness"
)

// killsEnv is how often TestStockKilledUnderLoad kills the daemon, 10 times unless
// it is set; seedEnv what it decides by.
const (
	killsEnv = "CAISSON_TEST_KILLS"
	seedEnv  = "CAISSON_TEST_SEED"
)

func envNumber(t *testing.T, name string, otherwise uint64) uint64 {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n
}

// killLoad is what runs while the daemon is killed. Whatever goes through the
// connections of tasks must not notice; what goes through the controller's may
// have to be repeated by the client, as a kubelet does.
type killLoad struct {
	t    *testing.T
	h    *harness.Host
	cri  *harness.CRI
	pod  *stockPod
	stop chan struct{}
	wg   sync.WaitGroup

	execs, containers, pods, repeated atomic.Int64
}

// TestStockKilledUnderLoad kills caissond at random moments while a stock
// containerd works with it, and lets it be away for up to some seconds. containerd
// must not notice: no task is lost, no container changes its state, every exit code
// and every byte of output is right, and what is asked for meanwhile only waits.
func TestStockKilledUnderLoad(t *testing.T) {
	kills := envNumber(t, killsEnv, 10)
	seed := envNumber(t, seedEnv, uint64(time.Now().UnixNano()))
	t.Logf("%d kills, %s=%d", kills, seedEnv, seed)
	random := rand.New(rand.NewPCG(seed, 1))
	h := harness.Start(t, stock)
	cri := h.CRI()
	l := &killLoad{t: t, h: h, cri: cri, pod: startStockPod(t, h, cri, runtime.NamespaceMode_NODE), stop: make(chan struct{})}
	for range 3 {
		l.wg.Go(func() { l.every(l.exec) })
	}
	for i := range 2 {
		l.wg.Go(func() { l.every(func(n int) { l.container(fmt.Sprintf("w%d", i), n) }) })
	}
	l.wg.Go(func() { l.every(l.podLife) })

	for i := range kills {
		if t.Failed() {
			break
		}
		l.pause(time.Duration(random.Int64N(int64(time.Second))))
		if err := h.Kill(); err != nil {
			t.Fatal(err)
		}
		// Mostly as an init system does it, sometimes later.
		away := time.Duration(random.Int64N(int64(200 * time.Millisecond)))
		if i%5 == 4 {
			away = time.Duration(random.Int64N(int64(5 * time.Second)))
		}
		l.pause(away)
		h.StartDaemon()
	}
	close(l.stop)
	l.wg.Wait()
	t.Logf("%d execs, %d containers, %d pods; %d calls were repeated", l.execs.Load(), l.containers.Load(), l.pods.Load(), l.repeated.Load())
	if l.execs.Load() == 0 || l.containers.Load() == 0 || l.pods.Load() == 0 {
		t.Error("there was no load")
	}
	l.expectNoLostTasks()
	l.expectUntouched()
	l.expectNoOtherPods()
}

// pause is a moment that the test is about: nothing is waited for.
func (l *killLoad) pause(d time.Duration) {
	select {
	case <-time.After(d):
	case <-l.t.Context().Done():
	}
}

func (l *killLoad) every(f func(n int)) {
	for n := 0; !l.t.Failed(); n++ {
		select {
		case <-l.stop:
			return
		default:
			f(n)
		}
	}
}

// exec runs a command whose output and exit code say which it was.
func (l *killLoad) exec(n int) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	size, code := 1+n*7919%20000, n%5
	script := fmt.Sprintf(`i=0; while [ $i -lt %d ]; do echo -n %09d,; i=$((i+10)); done; echo end >&2; exit %d`, size, n, code)
	resp, err := l.cri.ExecSync(ctx, &runtime.ExecSyncRequest{ContainerId: l.pod.writer, Cmd: []string{"/bin/sh", "-c", script}})
	if tooLate(err) {
		l.repeated.Add(1)
		return
	}
	if err != nil {
		l.t.Errorf("exec %d: %v", n, err)
		return
	}
	want := strings.Repeat(fmt.Sprintf("%09d,", n), (size+9)/10)
	if resp.ExitCode != int32(code) || string(resp.Stdout) != want || string(resp.Stderr) != "end\n" {
		l.t.Errorf("exec %d: exit code %d, want %d; %d bytes of output, want %d; stderr %q", n, resp.ExitCode, code, len(resp.Stdout), len(want), resp.Stderr)
	}
	l.execs.Add(1)
}

// tooLate tells that containerd gave up before it had asked for anything: it has
// less patience with the question how a task is, 2 s, than the daemon was away.
func tooLate(err error) bool {
	return status.Code(err) == codes.DeadlineExceeded && strings.Contains(err.Error(), "failed to load task")
}

// container runs one to its end.
func (l *killLoad) container(name string, n int) {
	code := n % 7
	cfg := l.cri.ContainerConfig(name, fmt.Sprintf(`i=0; while [ $i -lt 200 ]; do echo %d $i; i=$((i+1)); done; usleep 50000; exit %d`, n, code))
	cfg.Metadata.Attempt = uint32(n)
	cfg.LogPath = fmt.Sprintf("%s-%d.log", name, n)
	var id string
	l.repeat("CreateContainer", func(ctx context.Context) error {
		created, err := l.cri.CreateContainer(ctx, &runtime.CreateContainerRequest{PodSandboxId: l.pod.id, Config: cfg, SandboxConfig: l.pod.cfg})
		if err == nil {
			id = created.ContainerId
		}
		return err
	})
	if id == "" {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if _, err := l.cri.StartContainer(ctx, &runtime.StartContainerRequest{ContainerId: id}); err != nil {
		l.t.Errorf("StartContainer %s %d: %v", name, n, err)
		return
	}
	st := l.ended(ctx, id)
	if st == nil {
		return
	}
	if st.ExitCode != int32(code) {
		l.t.Errorf("container %s %d: exit code %d, want %d: %s %s", name, n, st.ExitCode, code, st.Reason, st.Message)
	}
	var want strings.Builder
	for i := range 200 {
		fmt.Fprintf(&want, "%d %d\n", n, i)
	}
	if got := l.log(cfg.LogPath); got != want.String() {
		l.t.Errorf("container %s %d: log of %d bytes, want %d", name, n, len(got), want.Len())
	}
	l.repeat("RemoveContainer", func(ctx context.Context) error {
		_, err := l.cri.RemoveContainer(ctx, &runtime.RemoveContainerRequest{ContainerId: id})
		return err
	})
	l.containers.Add(1)
}

// ended waits for a container's end.
func (l *killLoad) ended(ctx context.Context, id string) (st *runtime.ContainerStatus) {
	err := daemon.Poll(ctx, time.Minute, func() error {
		resp, err := l.cri.ContainerStatus(ctx, &runtime.ContainerStatusRequest{ContainerId: id})
		if err == nil {
			st = resp.Status
		}
		if err == nil && st.State != runtime.ContainerState_CONTAINER_EXITED {
			err = fmt.Errorf("container %s is %v", id, st.State)
		}
		return err
	})
	if err != nil {
		l.t.Error(err)
		return nil
	}
	return st
}

var logLine = regexp.MustCompile(`(?m)^\S+ stdout [FP] (.*\n)`)

// log is what a container of the pod has written.
func (l *killLoad) log(name string) string {
	data, err := os.ReadFile(filepath.Join(l.pod.cfg.LogDirectory, name))
	if err != nil {
		l.t.Error(err)
	}
	var text bytes.Buffer
	for _, m := range logLine.FindAllSubmatch(data, -1) {
		text.Write(m[1])
	}
	return text.String()
}

// podLife runs a pod to its end.
func (l *killLoad) podLife(n int) {
	cfg := l.cri.PodConfig(runtime.NamespaceMode_NODE)
	var id string
	l.repeat("RunPodSandbox", func(ctx context.Context) error {
		resp, err := l.cri.RunPodSandbox(ctx, &runtime.RunPodSandboxRequest{Config: cfg, RuntimeHandler: harness.Handler})
		if err == nil {
			id = resp.PodSandboxId
		}
		cfg.Metadata.Attempt++
		return err
	})
	l.repeat("StopPodSandbox", func(ctx context.Context) error {
		_, err := l.cri.StopPodSandbox(ctx, &runtime.StopPodSandboxRequest{PodSandboxId: id})
		return err
	})
	l.repeat("RemovePodSandbox", func(ctx context.Context) error {
		_, err := l.cri.RemovePodSandbox(ctx, &runtime.RemovePodSandboxRequest{PodSandboxId: id})
		return err
	})
	l.pods.Add(1)
}

// repeat makes a call that goes through the controller, whose connection breaks
// with the daemon. An answer that says so is the client's cue to call again.
func (l *killLoad) repeat(what string, call func(context.Context) error) {
	err := daemon.Poll(context.Background(), 2*time.Minute, func() error {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		err := call(ctx)
		if err == nil || l.t.Failed() {
			return nil
		}
		l.repeated.Add(1)
		if !repeatable(err) {
			l.t.Errorf("%s: %v", what, err)
			return nil
		}
		return err
	})
	if err != nil {
		l.t.Errorf("%s: %v", what, err)
	}
}

func repeatable(err error) bool {
	return status.Code(err) == codes.Unavailable || strings.Contains(err.Error(), "error reading from server")
}

// expectUntouched: what ran all the time still does, and its log has no gap.
func (l *killLoad) expectUntouched() {
	for id, pid := range map[string]int{l.pod.writer: l.pod.writerPid, l.pod.ender: l.pod.enderPid} {
		resp, err := l.cri.ContainerStatus(l.h.Context(time.Minute), &runtime.ContainerStatusRequest{ContainerId: id})
		if err != nil || resp.Status.State != runtime.ContainerState_CONTAINER_RUNNING {
			l.t.Errorf("container: %v, %v", resp, err)
		}
		if now := containerPid(l.t, l.h, l.cri, id); now != pid {
			l.t.Errorf("process %d, before %d", now, pid)
		}
	}
	l.cri.Shell(l.pod.writer, "touch /stop")
	if st := l.cri.AwaitState(l.pod.writer, runtime.ContainerState_CONTAINER_EXITED); st.ExitCode != 3 {
		l.t.Errorf("exit code %d", st.ExitCode)
	}
	for i, line := range strings.Split(strings.TrimSpace(l.log("writer.log")), "\n") {
		if line != fmt.Sprintf("line %d", i+1) {
			l.t.Errorf("line %d of the log is %q", i+1, line)
			break
		}
	}
}

// expectNoOtherPods: a pod whose start was not answered has no owner, and goes
// after a while.
func (l *killLoad) expectNoOtherPods() {
	err := daemon.Poll(l.h.Context(time.Minute), time.Minute, func() error {
		dirs, err := os.ReadDir(filepath.Join(l.h.State, "s"))
		if err == nil && len(dirs) != 1 {
			err = fmt.Errorf("%d sandboxes are left", len(dirs))
		}
		return err
	})
	if err != nil {
		l.t.Error(err)
	}
}

// lostTask is what containerd logs when it takes a task for dead; it does so as
// well after each orderly deletion.
var lostTask = regexp.MustCompile(`msg="(?:shim disconnected|cleaning up after shim disconnected)" id=(\w+)`)

// deadShim is what it logs when it could not clean up after one.
var deadShim = regexp.MustCompile(`failed to clean up dead shim|failed to delete dead shim|cleanup warnings`)

func (l *killLoad) expectNoLostTasks() {
	data, err := os.ReadFile(filepath.Join(l.h.Dir, "containerd.log"))
	if err != nil {
		l.t.Fatal(err)
	}
	for _, m := range lostTask.FindAllSubmatch(data, -1) {
		if id := string(m[1]); id == l.pod.writer || id == l.pod.ender {
			l.t.Errorf("containerd: %s", m[0])
		}
	}
	if m := deadShim.Find(data); m != nil {
		l.t.Errorf("containerd: %s", m)
	}
}
