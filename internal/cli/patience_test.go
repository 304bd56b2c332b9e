package cli

import (
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func openPipe(t *testing.T) (r, w *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close(); w.Close() })
	return r, w
}

func TestOutputEndsWithItsContext(t *testing.T) {
	r, w := openPipe(t)
	ctx, cancel := context.WithCancel(t.Context())
	out := &outStream{ctx: ctx, w: w}
	wrote := make(chan error, 1)
	go func() {
		_, err := out.Write(make([]byte, 1<<20)) // more than a pipe takes
		wrote <- err
	}()
	if _, err := r.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-wrote; !errors.Is(err, context.Canceled) {
		t.Errorf("a write that nobody reads: %v", err)
	}
	if err := out.verdict(nil); !errors.Is(err, context.Canceled) {
		t.Errorf("the verdict: %v", err)
	}
	in := inStream{ctx, r}
	if n, err := io.ReadFull(in, make([]byte, 4096)); n != 4096 || err != nil {
		t.Errorf("what is there: %d bytes, %v", n, err)
	}
	empty, _ := openPipe(t)
	if _, err := (inStream{ctx, empty}).Read(make([]byte, 1)); !errors.Is(err, context.Canceled) {
		t.Errorf("a read of nothing: %v", err)
	}
}

func TestVerdict(t *testing.T) {
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	r, w := openPipe(t)
	r.Close()
	failed := errors.New("failed")
	for _, c := range []struct {
		name      string
		w         io.Writer
		err, want error
	}{
		{"written", io.Discard, nil, nil},
		{"full", full, nil, unix.ENOSPC},
		{"full, and a process that succeeded", full, exitStatus(137), unix.ENOSPC},
		{"full, and another failure", full, failed, failed},
		{"unread", w, failed, errUnread},
	} {
		out := &outStream{ctx: t.Context(), w: c.w}
		if n, err := (lossy{out}).Write([]byte("text")); n != 4 || err != nil {
			t.Errorf("%s: %d bytes, %v", c.name, n, err)
		}
		if err := out.verdict(c.err); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
	}
}

func TestHelpThatIsLost(t *testing.T) {
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	var stderr strings.Builder
	if code := Main(t.Context(), System{Args: []string{"--help"}, Env: noEnv, Stdout: full, Stderr: &stderr}); code != 1 || stderr.String() != "caisson: write /dev/full: no space left on device\n" {
		t.Errorf("code %d, %q", code, stderr.String())
	}
}

func TestWhileRead(t *testing.T) {
	r, w := openPipe(t)
	a := &app{sys: System{Stdout: w}}
	if err := a.whileRead(t.Context(), func(ctx context.Context) error { return ctx.Err() }); err != nil {
		t.Errorf("with a reader: %v", err)
	}
	err := a.whileRead(t.Context(), func(ctx context.Context) error {
		r.Close()
		<-ctx.Done()
		return nil
	})
	if !errors.Is(err, errUnread) {
		t.Errorf("without a reader: %v", err)
	}
}
