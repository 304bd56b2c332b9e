package libcontainerd_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/opencontainers/runtime-spec/specs-go"

	"caisson/libcontainerd"
)

// engine is told what happens to its containers.
type engine struct {
	address, namespace, stateDir string

	exits chan libcontainerd.EventInfo
}

func (e *engine) ProcessEvent(id string, event libcontainerd.EventType, ei libcontainerd.EventInfo) error {
	if event == libcontainerd.EventExit {
		e.exits <- ei
	}
	return nil // had it been an error, the event would come again
}

// open is what an engine does when it starts, again or for the first time.
func (e *engine) open(ctx context.Context) (*containerd.Client, libcontainerd.Client, error) {
	conn, err := containerd.New(e.address)
	if err != nil {
		return nil, nil, err
	}
	lib, err := libcontainerd.New(ctx, conn, libcontainerd.Options{Namespace: e.namespace, StateDir: e.stateDir, Backend: e})
	return conn, lib, err
}

// output passes on what a process writes.
type output struct {
	*cio.DirectIO
	copying sync.WaitGroup
}

// Wait returns when all of it was passed on, which the deletion of the process waits
// for: a DirectIO's own would return at once.
func (o *output) Wait() { o.copying.Wait() }

func attach(dio *cio.DirectIO) (cio.IO, error) {
	o := &output{DirectIO: dio}
	for from, to := range map[io.Reader]io.Writer{dio.Stdout: os.Stdout, dio.Stderr: os.Stderr} {
		o.copying.Go(func() { io.Copy(to, from) }) // ends with the process
	}
	return o, nil
}

// run runs a container of an image, restarts the engine meanwhile, and says how the
// container ended.
func (e *engine) run(ctx context.Context, image, runtime string) (err error) {
	conn, lib, err := e.open(ctx)
	if err != nil {
		return err
	}
	ctx = namespaces.WithNamespace(ctx, e.namespace) // for containerd's own client
	img, err := conn.GetImage(ctx, image)
	if err != nil {
		return err
	}
	script := `trap 'echo bye; exit 7' TERM; echo hello; while :; do sleep 0.1; done`
	spec, err := oci.GenerateSpec(ctx, conn, &containers.Container{ID: "web"}, oci.WithProcessArgs("/bin/sh", "-c", script))
	if err != nil {
		return err
	}
	ctr, err := lib.NewContainer(ctx, "web", spec, runtime, nil, containerd.WithNewSnapshot("web", img))
	if err != nil {
		return err
	}
	ready := make(chan string, 1)
	task, err := ctr.Start(ctx, "", false, func(dio *cio.DirectIO) (cio.IO, error) {
		go func() {
			line, _ := bufio.NewReader(dio.Stdout).ReadString('\n')
			ready <- line
		}()
		return dio, nil
	})
	if err != nil {
		return err
	}
	fmt.Print("the container says ", <-ready)

	process := &specs.Process{Args: []string{"/bin/sh", "-c", "exit 3"}, Cwd: "/"}
	if _, err := task.Exec(ctx, "job", process, false, attach); err != nil {
		return err
	}
	job := <-e.exits
	fmt.Println(job.ProcessID, "ended with", job.ExitCode)

	// The engine is restarted; the container runs on.
	if err := errors.Join(lib.Close(), conn.Close()); err != nil {
		return err
	}
	if conn, lib, err = e.open(ctx); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lib.Close(), conn.Close()) }()
	if ctr, err = lib.LoadContainer(ctx, "web"); err != nil {
		return err
	}
	if task, err = ctr.AttachTask(ctx, attach); err != nil {
		return err
	}
	if err := task.Kill(ctx, syscall.SIGTERM); err != nil {
		return err
	}
	exit := <-e.exits // had it come while the engine was away, it would be told now
	fmt.Println(exit.ProcessID, "ended with", exit.ExitCode)
	if _, err := task.Delete(ctx); err != nil {
		return err
	}
	return ctr.Delete(ctx)
}

func Example() {
	e := &engine{
		address: "/run/containerd/containerd.sock", namespace: "engine", stateDir: "/run/engine",
		exits: make(chan libcontainerd.EventInfo, 1),
	}
	if err := e.run(context.Background(), "docker.io/library/busybox:latest", "io.containerd.runc.v2"); err != nil {
		log.Fatal(err)
	}
}

// TestExample runs the example on a real server; test/libcontainerd calls it with
// the address, the namespace, the state directory, the image and the runtime.
func TestExample(t *testing.T) {
	args := strings.Fields(os.Getenv("CAISSON_TEST_EXAMPLE"))
	if len(args) != 5 {
		t.Skip("left out: it needs a server; make test-libcontainerd runs it")
	}
	e := &engine{address: args[0], namespace: args[1], stateDir: args[2], exits: make(chan libcontainerd.EventInfo, 1)}
	if err := e.run(t.Context(), args[3], args[4]); err != nil {
		t.Fatal(err)
	}
}

// TestExampleIsInTheDocs: the guide quotes the example.
func TestExampleIsInTheDocs(t *testing.T) {
	source, err := os.ReadFile("example_test.go")
	if err != nil {
		t.Fatal(err)
	}
	guide, err := os.ReadFile("../docs/libcontainerd.md")
	if err != nil {
		t.Fatal(err)
	}
	_, example, _ := strings.Cut(string(source), "\n// engine is told")
	example, _, found := strings.Cut("// engine is told"+example, "\nfunc Example()")
	if !found || !strings.Contains(string(guide), "```go\n"+example+"```\n") {
		t.Error("docs/libcontainerd.md does not quote the example")
	}
}
