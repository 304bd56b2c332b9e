package faults

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/moby/sys/mountinfo"

	"caisson/test/daemon"
	"caisson/test/leak"
)

func pollFor(ctx context.Context, limit time.Duration, f func() error) error {
	return daemon.Poll(ctx, limit, f)
}

// state is all that there is of a world between two lives.
type state struct {
	things  *leak.Snapshot
	files   []string
	records []string
	kept    int // descriptors of the monitor of the sandbox beside
}

func (w *world) look(ctx context.Context) (*state, error) {
	var s state
	var err error
	if s.files, err = w.ownFiles(); err != nil {
		return nil, err
	}
	records, err := w.store().List(w.in(ctx))
	if err != nil {
		return nil, err
	}
	for _, rec := range records {
		s.records = append(s.records, rec.ID)
	}
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", w.monitor))
	s.kept = len(fds)
	return &s, err
}

// ownFiles lists what is in the daemon's directories, which are one for each
// sandbox.
func (w *world) ownFiles() ([]string, error) {
	var files []string
	err := filepath.WalkDir(w.Dir, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		if path == w.rootfs {
			return fs.SkipDir
		}
		files = append(files, path)
		return nil
	})
	return files, err
}

// unchanged waits until nothing is there but what was before the first life, and
// says what is.
func (w *world) unchanged(ctx context.Context) error {
	return pollFor(ctx, 5*time.Second, func() error {
		things, err := w.base.things.New(w.Token)
		if err != nil {
			return err
		}
		// The daemon is new, and what the container beside runs; CNI's bridge stays.
		things = slices.DeleteFunc(things, func(line string) bool {
			return strings.HasPrefix(line, fmt.Sprintf("process %d ", w.Pid())) ||
				strings.Contains(line, fmt.Sprintf("(parent %d)", w.pid)) ||
				strings.HasPrefix(line, "link "+w.Token+" ")
		})
		if len(things) > 0 {
			return fmt.Errorf("left: %s", strings.Join(things, "; "))
		}
		now, err := w.look(ctx)
		if err != nil {
			return err
		}
		for _, d := range []struct {
			what      string
			was, then []string
		}{{"files", w.base.files, now.files}, {"records", w.base.records, now.records}} {
			if left := without(d.then, d.was); len(left) > 0 {
				return fmt.Errorf("%s left: %q", d.what, left)
			}
			if lost := without(d.was, d.then); len(lost) > 0 {
				return fmt.Errorf("%s lost: %q", d.what, lost)
			}
		}
		if now.kept != w.base.kept {
			return fmt.Errorf("the monitor holds %d descriptors, held %d before", now.kept, w.base.kept)
		}
		return nil
	})
}

func without(list, drop []string) []string {
	return slices.DeleteFunc(slices.Clone(list), func(s string) bool { return slices.Contains(drop, s) })
}

// settle makes the sandbox beside, whose container counts, and notes what is there.
func (w *world) settle(ctx context.Context) error {
	w.beside = &run{world: w, id: "beside", opts: bridged, script: "i=0; echo begin; while usleep 10000; do i=$((i+1)); echo $i; done"}
	r := w.beside
	for _, do := range []func(context.Context) error{r.sandboxCreate, r.sandboxStart, r.taskCreate} {
		if err := do(ctx); err != nil {
			return fmt.Errorf("the sandbox beside: %w", err)
		}
	}
	err := r.startOnly(ctx)
	if err != nil {
		return fmt.Errorf("the sandbox beside: %w", err)
	}
	if err := w.events.await(ctx, r.id, "start"); err != nil {
		return err
	}
	st, err := r.state(ctx)
	if err != nil {
		return err
	}
	w.pid = st.Pid
	if w.monitor, err = r.monitorPid(ctx); err != nil {
		return err
	}
	if w.base, err = w.look(ctx); err == nil {
		w.base.things, err = leak.Take()
	}
	return err
}

// unnoticed fails if the container beside noticed anything.
func (w *world) unnoticed(ctx context.Context) error {
	st, err := w.beside.state(ctx)
	if err != nil {
		return fmt.Errorf("the container beside: %w", err)
	}
	if st.Status != tasktypes.Status_RUNNING || st.Pid != w.pid {
		return fmt.Errorf("the container beside is %s, pid %d; it ran with pid %d", st.Status, st.Pid, w.pid)
	}
	words, _, _ := w.events.of(w.beside.id)
	if !slices.Equal(words, []string{"create", "start"}) {
		return fmt.Errorf("events of the container beside: %q", words)
	}
	return poll(ctx, func() error {
		text, err := os.ReadFile(w.beside.path("out"))
		if err != nil {
			return err
		}
		lines := strings.Split(strings.TrimSuffix(string(text), "\n"), "\n")
		for i, line := range lines[min(w.counted, len(lines)):] {
			if n := w.counted + i; n > 0 && line != fmt.Sprint(n) {
				return fmt.Errorf("line %d of the container beside is %q", n, line)
			}
		}
		if len(lines) == w.counted {
			return fmt.Errorf("the container beside stopped counting at %d", w.counted)
		}
		w.counted = len(lines)
		return nil
	})
}

// toldOnce checks the events of a run that was lived to its end.
func (r *run) toldOnce(ctx context.Context) error {
	if r.script == "" || r.untold {
		return nil
	}
	exit := fmt.Sprintf("exit %d", r.status)
	want := []string{"create", "start", exit, fmt.Sprintf("delete %d", r.status)}
	if r.within != "" {
		want = []string{"exec-added", "exec-started", exit}
	}
	if r.want != nil {
		want = r.want
	}
	if len(want) > 0 {
		if err := r.events.await(ctx, r.id, want[len(want)-1]); err != nil {
			return err
		}
	}
	words, again, _ := r.events.of(r.id)
	// What an error ended before it ran was added once more.
	if r.within != "" && r.kills == 0 {
		words = slices.CompactFunc(words, func(a, b string) bool { return a == b && a == "exec-added" })
	}
	// What could not be taken back had to be deleted first.
	if len(words) > 0 && words[0] == "delete 255" && r.kills == 0 {
		words = words[1:]
	}
	if !slices.Equal(words, want) {
		return fmt.Errorf("events %q, want %q", words, want)
	}
	// Containerd's answer to the last can have been lost with the daemon.
	if again > r.kills {
		return fmt.Errorf("%d events came twice", again)
	}
	return nil
}

// limitIs checks a limit of the sandbox's cgroup.
func (r *run) limitIs(file, want string) error {
	return limitIs(filepath.Join("*", r.Token+"--"+r.id, file), want)
}

// containerLimitIs checks a limit of the container's cgroup, which is in that of the
// sandbox beside.
func (r *run) containerLimitIs(file, want string) error {
	return limitIs(filepath.Join("*", r.Token+"--"+r.beside.id, r.id, file), want)
}

func limitIs(pattern, want string) error {
	mounts, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup", "cgroup2"))
	if err != nil {
		return err
	}
	for _, m := range mounts {
		found, err := filepath.Glob(filepath.Join(m.Mountpoint, pattern))
		if err != nil {
			return err
		}
		for _, path := range found {
			text, err := os.ReadFile(path)
			if err == nil && strings.TrimSpace(string(text)) != want {
				err = fmt.Errorf("%s is %q, want %q", path, text, want)
			}
			return err
		}
	}
	return fmt.Errorf("there is no cgroup %s", pattern)
}
