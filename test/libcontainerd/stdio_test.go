package libcontainerd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/oci"
)

// console is the engine's end of a process's stdio: it keeps what the process
// writes.
type console struct {
	dio     *cio.DirectIO
	Stdin   io.WriteCloser
	copying sync.WaitGroup
	done    chan struct{} // closed when the output has ended

	mu       sync.Mutex
	out, err bytes.Buffer
	changed  chan struct{}
}

var _ cio.IO = (*console)(nil)

func (c *console) attach(dio *cio.DirectIO) (cio.IO, error) {
	c.dio, c.Stdin, c.done = dio, dio.Stdin, make(chan struct{})
	c.copy(&c.out, dio.Stdout)
	c.copy(&c.err, dio.Stderr)
	go func() {
		c.copying.Wait()
		close(c.done)
	}()
	return c, nil
}

func (c *console) copy(to *bytes.Buffer, from io.Reader) {
	if from == nil {
		return
	}
	c.copying.Go(func() {
		_, _ = io.Copy(writer{c, to}, from) // it ends with the FIFO, however that does
	})
}

type writer struct {
	c  *console
	to *bytes.Buffer
}

func (w writer) Write(p []byte) (int, error) {
	w.c.mu.Lock()
	defer w.c.mu.Unlock()
	if w.c.changed != nil {
		close(w.c.changed)
		w.c.changed = nil
	}
	return w.to.Write(p)
}

func (c *console) Config() cio.Config { return c.dio.Config() }
func (c *console) Cancel()            { c.dio.Cancel() }
func (c *console) Wait()              { <-c.done }
func (c *console) Close() error       { return c.dio.Close() }

func (c *console) stdout() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.out.String()
}

func (c *console) stderr() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err.String()
}

// await waits until the output has the text.
func (c *console) await(ctx context.Context, text string) error {
	for {
		c.mu.Lock()
		found := strings.Contains(c.out.String(), text)
		if c.changed == nil {
			c.changed = make(chan struct{})
		}
		changed := c.changed
		c.mu.Unlock()
		if found {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("no %q in %q: %w", text, c.stdout(), context.Cause(ctx))
		}
	}
}

// write is for a process that may not read.
func (c *console) write(ctx context.Context, text string) error {
	written := make(chan error, 1)
	go func() { // until the FIFO is closed, if nobody reads
		_, err := io.WriteString(c.Stdin, text)
		written <- err
	}()
	select {
	case err := <-written:
		return err
	case <-ctx.Done():
		return fmt.Errorf("nobody reads %q: %w", text, context.Cause(ctx))
	}
}

// ended waits for the end of the output.
func (c *console) ended(ctx context.Context) error {
	select {
	case <-c.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("the output does not end after %q: %w", c.stdout(), context.Cause(ctx))
	}
}

// discard is for processes whose output does not matter.
func discard(dio *cio.DirectIO) (cio.IO, error) { return new(console).attach(dio) }

// TestOutput: what a process writes comes whole, although it is more than a FIFO
// holds, and is there when Delete has returned.
func TestOutput(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		e := s.engine(nil)
		c, id := e.container("seq 1 100000; seq 1 50000 >&2; exit 4")
		var con console
		task, err := c.NewTask(e.ctx(), "", false, con.attach)
		must(t, "NewTask", err)
		must(t, "Start", task.Start(e.ctx()))
		if exit := e.await(id, "exit 4"); exit.Info.ExitedAt.IsZero() {
			t.Error("the exit has no time")
		}
		st, err := task.Delete(e.ctx())
		must(t, "Delete", err)
		if st.ExitCode() != 4 {
			t.Errorf("Delete says %d", st.ExitCode())
		}
		checkSeq(t, con.stdout(), 100000)
		checkSeq(t, con.stderr(), 50000)
	})
}

func checkSeq(t *testing.T, got string, last int) {
	t.Helper()
	var want strings.Builder
	for i := 1; i <= last; i++ {
		fmt.Fprintln(&want, i)
	}
	if got != want.String() {
		t.Errorf("%d bytes of output, want %d", len(got), want.Len())
	}
}

// TestStdin: input reaches a process whole, and its end too, whether it is closed
// before the process is started or after.
func TestStdin(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		e := s.engine(nil)
		for _, early := range []bool{true, false} {
			c, id := e.container("cat; exit 5")
			var con console
			task, err := c.NewTask(e.ctx(), "", true, con.attach)
			must(t, "NewTask", err)
			must(t, "write", con.write(e.ctx(), "one "))
			if !early {
				must(t, "Start", task.Start(e.ctx()))
				must(t, "output", con.await(e.ctx(), "one "))
			}
			must(t, "write", con.write(e.ctx(), "two"))
			must(t, "close", con.Stdin.Close())
			must(t, "close again", con.Stdin.Close())
			if early {
				must(t, "Start", task.Start(e.ctx()))
			}
			e.expect(id, "create", "start", "exit 5")
			_, err = task.Delete(e.ctx())
			must(t, "Delete", err)
			if con.stdout() != "one two" {
				t.Errorf("closed before the start=%t: %q came back", early, con.stdout())
			}
		}
	})
}

// TestStdinClosedByTheCallback: an engine without input closes it at once, when
// there is no process yet.
func TestStdinClosedByTheCallback(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		e := s.engine(nil)
		closing := func(dio *cio.DirectIO) (cio.IO, error) {
			return discardAfter(dio, dio.Stdin.Close())
		}
		c, id := e.container("cat; exit 6")
		task, err := c.NewTask(e.ctx(), "", true, closing)
		must(t, "NewTask", err)
		must(t, "Start", task.Start(e.ctx()))
		e.await(id, "exit 6")
		task2, id2 := e.run("exec sleep 1000")
		_, err = task2.Exec(e.ctx(), "x", shell("cat; exit 7"), true, closing)
		must(t, "Exec", err)
		e.await(id2, "exit x 7")
	})
}

func discardAfter(dio *cio.DirectIO, err error) (cio.IO, error) {
	if err != nil {
		return nil, err
	}
	return discard(dio)
}

func TestTerminal(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		e := s.engine(nil)
		size := `stty size; while read -r line; do case "$line" in size) stty size;; *) exit 8;; esac; done`
		c, id := e.container(size, oci.WithTTY)
		talk(t, e, func(con *console) (resizer, error) { return c.Start(e.ctx(), "", true, con.attach) })
		e.await(id, "exit 8")

		task, id := e.run("exec sleep 1000")
		process := shell(size)
		process.Terminal = true
		talk(t, e, func(con *console) (resizer, error) { return task.Exec(e.ctx(), "x", process, true, con.attach) })
		e.await(id, "exit x 8")
	})
}

type resizer interface {
	Resize(ctx context.Context, width, height uint32) error
}

// talk types at the terminal of a process.
func talk(t *testing.T, e *engine, start func(*console) (resizer, error)) {
	t.Helper()
	var con console
	p, err := start(&con)
	must(t, "start", err)
	must(t, "Resize", p.Resize(e.ctx(), 123, 45))
	must(t, "write", con.write(e.ctx(), "size\n"))
	must(t, "output", con.await(e.ctx(), "45 123\r\n"))
	must(t, "write", con.write(e.ctx(), "end\n"))
	must(t, "end of the output", con.ended(e.ctx()))
	if con.stderr() != "" {
		t.Errorf("a terminal has no stderr, but: %q", con.stderr())
	}
}

// TestFIFOs: those of each process are in a directory of their own, which goes with
// the process; a failed start leaves none.
func TestFIFOs(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		e := s.engine(nil)
		task, id := e.run("exec sleep 1000")
		dirs := func() (names []string) {
			found, err := filepath.Glob(filepath.Join(e.dir, "c", id, "io", "*"))
			must(t, "Glob", err)
			for _, f := range found {
				name, _, _ := strings.Cut(filepath.Base(f), "@")
				names = append(names, name)
			}
			return names
		}
		check := func(what string, want ...string) {
			t.Helper()
			if got := dirs(); strings.Join(got, " ") != strings.Join(want, " ") {
				t.Errorf("%s: directories of %q, want %q", what, got, want)
			}
		}
		check("started", id)
		x, err := task.Exec(e.ctx(), "x", shell("exit 0"), false, discard)
		must(t, "Exec", err)
		check("with an exec", id, "x")
		e.await(id, "exit x 0")
		_, err = x.Delete(e.ctx())
		must(t, "Delete", err)
		check("exec deleted", id)
		_, err = task.Exec(e.ctx(), "bad", command("/no/such/program"), false, discard)
		if err == nil {
			t.Fatal("a program that is not there was started")
		}
		check("exec failed", id)
		failing := errors.New("no stdio today")
		_, err = task.Exec(e.ctx(), "y", shell("exit 0"), false, func(*cio.DirectIO) (cio.IO, error) { return nil, failing })
		if !errors.Is(err, failing) {
			t.Errorf("Exec: %v, want the callback's error", err)
		}
		check("callback failed", id)
		must(t, "ForceDelete", task.ForceDelete(e.ctx()))
		check("deleted")
	})
}
