package libcontainerd_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/errdefs"

	"caisson/libcontainerd"
	"caisson/libcontainerd/eventtest"
)

// world is a fake server and a program that uses it. Tests that make no FIFOs run
// it in a bubble of package synctest: time passes at once, and every goroutine must
// have ended.
type world struct {
	t   *testing.T
	ctx context.Context
	f   *fake
	dir string
	log *eventtest.Log
	c   libcontainerd.Client
}

func newWorld(t *testing.T, next libcontainerd.Backend) *world {
	ctx, cancel := context.WithTimeout(testContext(), 10*time.Hour)
	t.Cleanup(cancel)
	w := &world{t: t, ctx: ctx, f: newFake(1), dir: filepath.Join(t.TempDir(), "state"), log: &eventtest.Log{Next: next}}
	w.begin(w.log)
	return w
}

// begin starts the program and waits until it hears events.
func (w *world) begin(b libcontainerd.Backend) {
	w.t.Helper()
	w.c = newClient(w.t, w.f, w.dir, b)
	w.hears()
}

func (w *world) hears() {
	w.t.Helper()
	select {
	case <-w.f.heard:
	case <-w.ctx.Done():
		w.t.Fatal("nobody subscribed")
	}
}

func (w *world) end() {
	w.t.Helper()
	w.must(w.c.Close())
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// has has the server have containers of the ids.
func (w *world) has(ids ...string) {
	w.t.Helper()
	for _, id := range ids {
		_, err := (&records{f: w.f.other()}).Create(w.ctx, containers.Container{ID: id})
		w.must(err)
	}
}

func (w *world) load(id string) libcontainerd.Container {
	w.t.Helper()
	ctr, err := w.c.LoadContainer(w.ctx, id)
	w.must(err)
	return ctr
}

// do has another program do things to the container, one letter each: create, start,
// pause, resume, delete the task; x ends it with code 9, o has it run out of memory;
// A, S, X are of the exec e, which ends with code 7.
func (w *world) do(id, letters string) {
	w.t.Helper()
	o := w.f.other()
	for _, c := range letters {
		var err error
		switch c {
		case 'c':
			_, err = o.Create(w.ctx, &tasks.CreateTaskRequest{ContainerID: id})
		case 's':
			_, err = o.Start(w.ctx, &tasks.StartRequest{ContainerID: id})
		case 'p':
			_, err = o.Pause(w.ctx, &tasks.PauseTaskRequest{ContainerID: id})
		case 'r':
			_, err = o.Resume(w.ctx, &tasks.ResumeTaskRequest{ContainerID: id})
		case 'd':
			_, err = o.Delete(w.ctx, &tasks.DeleteTaskRequest{ContainerID: id})
		case 'x':
			w.f.end(id, "", 9)
		case 'o':
			w.f.oom(id)
		case 'A':
			_, err = o.Exec(w.ctx, &tasks.ExecProcessRequest{ContainerID: id, ExecID: "e"})
		case 'S':
			_, err = o.Start(w.ctx, &tasks.StartRequest{ContainerID: id, ExecID: "e"})
		case 'X':
			w.f.end(id, "e", 7)
		case 'D':
			_, err = o.DeleteProcess(w.ctx, &tasks.DeleteProcessRequest{ContainerID: id, ExecID: "e"})
		case 'K':
			err = (&records{f: o}).Delete(w.ctx, id)
		}
		if err != nil {
			w.t.Fatalf("%c: %v", c, err)
		}
	}
}

// told are the id's events in short.
func (w *world) told(id string) []string {
	var told []string
	for _, e := range w.log.Events(id) {
		told = append(told, short(e))
	}
	return told
}

func short(e eventtest.Event) string {
	s := string(e.Type)
	if e.Info.ProcessID != e.ID {
		s += " " + e.Info.ProcessID
	}
	if e.Type == libcontainerd.EventExit {
		s += fmt.Sprint(" ", e.Info.ExitCode)
	}
	if e.Info.Error != nil {
		s += " lost"
		if !errdefs.IsDataLoss(e.Info.Error) {
			s += " of a wrong class"
		}
	}
	return s
}

// expect waits for exactly these events of the id.
func (w *world) expect(id string, want ...string) {
	w.t.Helper()
	_, err := w.log.Wait(w.ctx, func(eventtest.Event) bool { return len(w.told(id)) >= len(want) })
	if got := w.told(id); len(want) > 0 && err != nil || !slices.Equal(got, want) {
		w.t.Fatalf("told %q, want %q: %v", got, want, err)
	}
}

// empty says whether nothing is left in the state directory.
func (w *world) empty() bool {
	left, err := filepath.Glob(filepath.Join(w.dir, "*", "*"))
	w.must(err)
	return len(left) == 0
}

// move gives the directory another name, as a copy at this instant for the next
// program: what the one before still writes is not seen.
func (w *world) move() {
	w.must(os.Rename(w.dir, w.dir+"'"))
	w.dir += "'"
}
