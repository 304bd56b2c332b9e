package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/errdefs"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

func (a *app) logsCommand() *cobra.Command {
	var follow bool
	var tail string
	cmd := &cobra.Command{
		Use:     "logs [flags] CONTAINER",
		Short:   "Show what a detached container wrote",
		Example: "  caisson logs web\n  caisson logs -f --tail 20 web",
		Args:    exactly(1, "one container"),
		RunE: func(cmd *cobra.Command, args []string) error {
			lines, err := parseTail(tail)
			if err != nil {
				return err
			}
			return a.logs(cmd.Context(), args[0], lines, follow)
		},
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on until the container has ended")
	cmd.Flags().StringVarP(&tail, "tail", "n", "all", "how many lines of the end to show")
	return cmd
}

// allLines is the whole log.
const allLines = -1

func parseTail(s string) (int, error) {
	if s == "all" {
		return allLines, nil
	}
	n, err := strconv.Atoi(s)
	if err != nil || n < 0 {
		return 0, advise(errdefs.ErrInvalidArgument, "--tail %q is not a number of lines: write it like 20, or all", s)
	}
	return n, nil
}

func (a *app) logs(ctx context.Context, id string, lines int, follow bool) error {
	ctx, c, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	ctr, err := c.load(ctx, id)
	if err != nil {
		return err
	}
	labels, err := ctr.Labels(ctx)
	if err != nil {
		return fmt.Errorf("container %q: %w", id, err)
	}
	path := labels[labelLog]
	if path == "" {
		return advise(errdefs.ErrNotFound, "container %q keeps no log: it ran in the foreground, or with --log-driver none; `caisson run -d` keeps one", id)
	}
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return advise(errdefs.ErrNotFound, "the log of container %q is gone from %s", id, path)
	}
	if err != nil {
		return fmt.Errorf("container %q: log: %w", id, err)
	}
	defer f.Close()
	if err := seekTail(f, lines); err != nil {
		return fmt.Errorf("container %q: log: %w", id, err)
	}
	if !follow {
		_, err = io.Copy(a.sys.Stdout, f)
		return err
	}
	task, _, err := taskOf(ctx, ctr)
	if err != nil {
		return err
	}
	ended := make(chan struct{})
	if task == nil {
		close(ended)
	} else {
		exited, err := task.Wait(ctx)
		if err != nil {
			return fmt.Errorf("container %q: wait: %w", id, err)
		}
		go func() {
			defer close(ended)
			// Whatever the answer is: without a process there is no more to follow.
			_, _ = awaitExit(ctx, containerd.Process(task), exited)
		}()
	}
	return a.whileRead(ctx, func(ctx context.Context) error { return followFile(ctx, a.sys.Stdout, f, ended) })
}

// seekTail moves to where the last lines of a file begin.
func seekTail(f io.ReadSeeker, lines int) error {
	if lines == allLines {
		return nil
	}
	end, err := f.Seek(0, io.SeekEnd)
	if err != nil || lines == 0 {
		return err
	}
	const chunk = 64 << 10
	buf := make([]byte, chunk)
	newlines := 0
	for at := end; at > 0; {
		n := min(at, chunk)
		at -= n
		if _, err := f.Seek(at, io.SeekStart); err != nil {
			return err
		}
		if _, err := io.ReadFull(f, buf[:n]); err != nil {
			return err
		}
		for part := buf[:n]; ; {
			i := bytes.LastIndexByte(part, '\n')
			if i < 0 {
				break
			}
			part = part[:i]
			if at+int64(i) == end-1 {
				continue // the end of the last line
			}
			if newlines++; newlines == lines {
				_, err := f.Seek(at+int64(i)+1, io.SeekStart)
				return err
			}
		}
	}
	_, err = f.Seek(0, io.SeekStart)
	return err
}

// followFile copies a file as it grows, until ended is closed and all is copied.
func followFile(ctx context.Context, w io.Writer, f *os.File, ended <-chan struct{}) error {
	watch, err := watchWrites(f.Name())
	if err != nil {
		return fmt.Errorf("follow: %w", err)
	}
	changed := make(chan struct{}, 1)
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 4096)
		for {
			if _, err := watch.Read(buf); err != nil {
				return // closed below
			}
			select {
			case changed <- struct{}{}:
			default: // one is enough: the reader reads to the end
			}
		}
	}()
	defer func() {
		watch.Close()
		<-done
	}()
	for {
		if _, err := io.Copy(w, f); err != nil {
			return err
		}
		select {
		case <-changed:
		case <-ended:
			_, err := io.Copy(w, f)
			return err
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// watchWrites opens an inotify descriptor on a file. It goes through the
// runtime's poller, so that Close ends a Read.
func watchWrites(path string) (*os.File, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, os.NewSyscallError("inotify_init1", err)
	}
	watch := os.NewFile(uintptr(fd), "inotify")
	if _, err := unix.InotifyAddWatch(fd, path, unix.IN_MODIFY|unix.IN_CLOSE_WRITE); err != nil {
		watch.Close()
		return nil, os.NewSyscallError("inotify_add_watch", err)
	}
	return watch, nil
}
