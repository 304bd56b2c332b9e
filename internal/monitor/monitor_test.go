package monitor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func TestSpawn(t *testing.T) {
	c := startMonitor(t)
	exits := mustSubscribe(t, c)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	before := time.Now()
	p := mustSpawn(t, c, SpawnRequest{
		Tag:   "one",
		Args:  sh(`echo "$A $(pwd) $(readlink /proc/self/fd/0)"; exit 7`),
		Env:   []string{"A=b", "PATH=/usr/bin:/bin"},
		Dir:   "/usr",
		Files: []*os.File{nil, w},
	})
	w.Close()
	out, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	if got := string(out); got != "b /usr /dev/null\n" {
		t.Errorf("output %q", got)
	}
	e := nextExit(t, exits)
	if diff := cmp.Diff(p, e.Process); diff != "" {
		t.Error(diff)
	}
	if e.Tag != "one" || e.Kind != Spawned || e.Status.ExitStatus() != 7 || e.Adopted != nil {
		t.Errorf("exit %+v", e)
	}
	if e.ExitedAt.Before(before) || e.ExitedAt.After(time.Now()) || e.MaxRSS == 0 || p.StartTime == 0 {
		t.Errorf("exit %+v of %+v", e, p)
	}
	list, err := c.List(testContext(t))
	if err != nil || len(list) != 1 || list[0].Running || list[0].Serial != p.Serial {
		t.Errorf("list %+v, %v", list, err)
	}
	if err := c.Ack(testContext(t), p.Serial); err != nil {
		t.Error(err)
	}
	if err := c.Ack(testContext(t), p.Serial); !errdefs.IsNotFound(err) {
		t.Errorf("second ack: %v", err)
	}
}

func TestSpawnErrors(t *testing.T) {
	c := startMonitor(t)
	for name, tc := range map[string]struct {
		r     SpawnRequest
		class error
		errno unix.Errno
		text  string
	}{
		"no program":   {SpawnRequest{Args: []string{"/nonexistent"}}, errdefs.ErrNotFound, unix.ENOENT, "exec /nonexistent"},
		"a directory":  {SpawnRequest{Args: []string{"/usr"}}, errdefs.ErrPermissionDenied, unix.EACCES, "exec /usr"},
		"no directory": {SpawnRequest{Args: sh("true"), Dir: "/nonexistent"}, errdefs.ErrNotFound, unix.ENOENT, "chdir /nonexistent"},
		"relative":     {SpawnRequest{Args: []string{"sh"}}, errdefs.ErrInvalidArgument, unix.EINVAL, "absolute"},
		"relative dir": {SpawnRequest{Args: sh("true"), Dir: "usr"}, errdefs.ErrInvalidArgument, unix.EINVAL, "absolute"},
		"nothing":      {SpawnRequest{}, errdefs.ErrInvalidArgument, unix.EINVAL, "absolute"},
		"pid file":     {SpawnRequest{Args: sh("true"), PidFile: "pid"}, errdefs.ErrInvalidArgument, unix.EINVAL, "pid file"},
		"long tag":     {SpawnRequest{Args: sh("true"), Tag: strings.Repeat("x", 201)}, errdefs.ErrInvalidArgument, unix.ENAMETOOLONG, "tag"},
		"NUL":          {SpawnRequest{Args: []string{"/bin/sh", "a\x00b"}}, errdefs.ErrInvalidArgument, unix.EINVAL, "NUL"},
		"too big":      {SpawnRequest{Args: []string{"/bin/sh", strings.Repeat("x", 65000), strings.Repeat("x", 1000)}}, errdefs.ErrInvalidArgument, unix.EMSGSIZE, "limit"},
		"many files":   {SpawnRequest{Args: sh("true"), Files: make([]*os.File, 254)}, errdefs.ErrInvalidArgument, unix.E2BIG, "files"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := c.Spawn(testContext(t), tc.r)
			if !errors.Is(err, tc.class) || !errors.Is(err, tc.errno) || !strings.Contains(err.Error(), tc.text) {
				t.Errorf("got %v", err)
			}
		})
	}
	if list, err := c.List(testContext(t)); err != nil || len(list) != 0 {
		t.Errorf("list %v, %v", list, err)
	}
	if left := childrenOf(c.Pid()); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

func TestSpawnManyFilesAndArguments(t *testing.T) {
	c := startMonitor(t)
	exits := mustSubscribe(t, c)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	files := make([]*os.File, 253)
	files[1], files[252] = w, w
	args := append(sh(`ls /proc/self/fd | wc -l; echo $#; echo end >&252`), "sh")
	for range 3000 {
		args = append(args, "argument")
	}
	// dash only takes single-digit descriptors.
	args[0] = "/bin/bash"
	mustSpawn(t, c, SpawnRequest{Args: args, Env: []string{"PATH=/usr/bin:/bin"}, Files: files})
	w.Close()
	out, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	if got := string(out); got != "254\n3000\nend\n" { // one more: the directory that ls reads
		t.Errorf("output %q", got)
	}
	nextExit(t, exits)
	if diff := cmp.Diff(4+2, len(openFDs(fmt.Sprint(c.Pid())))); diff != "" {
		t.Errorf("the monitor's descriptors: %v", openFDs(fmt.Sprint(c.Pid())))
	}
}

func TestChildIsReset(t *testing.T) {
	c := startMonitor(t)
	exits := mustSubscribe(t, c)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	p := mustSpawn(t, c, SpawnRequest{
		Args:  sh(`grep -E '^Sig(Blk|Ign)' /proc/self/status; cat /proc/self/oom_score_adj; ulimit -n; cut -d' ' -f6 /proc/$$/stat`),
		Env:   []string{"PATH=/usr/bin:/bin"},
		Files: []*os.File{nil, w},
	})
	w.Close()
	out, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	nextExit(t, exits)
	adj, err := os.ReadFile("/proc/self/oom_score_adj")
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	want := []string{"SigBlk:\t0000000000000000", "SigIgn:\t0000000000000000", strings.TrimSpace(string(adj))}
	if diff := cmp.Diff(want, lines[:3]); diff != "" {
		t.Error(diff)
	}
	if lines[4] != fmt.Sprint(p.Pid) {
		t.Errorf("session %s of process %d", lines[4], p.Pid)
	}
}

func TestSignal(t *testing.T) {
	c := startMonitor(t)
	ctx := testContext(t)
	exits := mustSubscribe(t, c)
	p := mustSpawn(t, c, SpawnRequest{Args: []string{"/bin/sleep", "1000"}})
	if err := c.Signal(ctx, p.Serial, 0); err != nil {
		t.Error(err)
	}
	if err := c.Ack(ctx, p.Serial); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("ack of a running process: %v", err)
	}
	if err := c.Signal(ctx, p.Serial, 65); !errdefs.IsInvalidArgument(err) {
		t.Errorf("signal 65: %v", err)
	}
	if err := c.Signal(ctx, p.Serial, unix.SIGTERM); err != nil {
		t.Error(err)
	}
	if e := nextExit(t, exits); !e.Status.Signaled() || e.Status.Signal() != unix.SIGTERM {
		t.Errorf("exit %+v", e)
	}
	for _, serial := range []uint64{p.Serial, 0, 999} {
		if err := c.Signal(ctx, serial, unix.SIGKILL); !errdefs.IsNotFound(err) || !errors.Is(err, unix.ESRCH) {
			t.Errorf("signal to %d: %v", serial, err)
		}
	}
}

func TestMonitorIgnoresSignals(t *testing.T) {
	c := startMonitor(t)
	for _, sig := range []unix.Signal{unix.SIGTERM, unix.SIGINT, unix.SIGHUP, unix.SIGPIPE, unix.SIGQUIT, unix.SIGUSR1, unix.SIGUSR2} {
		if err := unix.Kill(c.Pid(), sig); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := c.List(testContext(t)); err != nil {
		t.Error(err)
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", c.Pid()))
	if err != nil || string(b) != "caisson-monitor\x00"+t.Name()+"\x00" {
		t.Errorf("cmdline %q, %v", b, err)
	}
	b, err = os.ReadFile(fmt.Sprintf("/proc/%d/comm", c.Pid()))
	if err != nil || string(b) != "caisson-monitor\n" {
		t.Errorf("comm %q, %v", b, err)
	}
}

func TestReconnect(t *testing.T) {
	c := startMonitor(t)
	ctx := testContext(t)
	var want []uint64
	for i := range 3 {
		p := mustSpawn(t, c, SpawnRequest{Tag: fmt.Sprint(i), Args: sh("exit 3")})
		eventually(t, "exit", func() bool {
			list, err := c.List(ctx)
			return err == nil && !list[i].Running
		})
		want = append(want, p.Serial)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	late := mustSpawn(t, c, SpawnRequest{Tag: "late", Args: sh("read x; exit 3"), Files: []*os.File{r}})
	want = append(want, late.Serial)
	if err := errors.Join(c.Close(), w.Close(), r.Close()); err != nil {
		t.Fatal(err)
	}
	if _, err := c.List(ctx); !errdefs.IsUnavailable(err) {
		t.Errorf("after Close: %v", err)
	}
	if err := c.Err(); !errdefs.IsUnavailable(err) {
		t.Errorf("Err: %v", err)
	}
	for range 20 { // any number of reconnects
		d, err := Dial(ctx, c.dir)
		if err != nil {
			t.Fatal(err)
		}
		if d.Pid() != c.Pid() {
			t.Errorf("pid %d, was %d", d.Pid(), c.Pid())
		}
		exits := mustSubscribe(t, d)
		for _, serial := range want {
			if e := nextExit(t, exits); e.Serial != serial || e.Status.ExitStatus() != 3 {
				t.Errorf("exit %+v", e)
			}
		}
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestLaggingSubscriber(t *testing.T) {
	c := startMonitor(t)
	ctx := testContext(t)
	lagging, err := Dial(ctx, c.dir)
	if err != nil {
		t.Fatal(err)
	}
	defer lagging.Close()
	slow := mustSubscribe(t, lagging)
	raw := dialRaw(t, c.dir)
	raw.send(t, header{version: protocolVersion, typ: msgSubscribe, id: 1}, nil)
	const n = 1500
	tag := strings.Repeat("t", maxTag)
	for range n {
		mustSpawn(t, c, SpawnRequest{Tag: tag, Args: []string{"/bin/true"}})
	}
	// The raw one has not read a single packet so far.
	h, _ := raw.receive(t)
	if h.typ != msgSubscribe|msgReply {
		t.Fatalf("reply %+v", h)
	}
	for i := range uint64(n) {
		if e := nextExit(t, slow); e.order != i+1 {
			t.Fatalf("exit %d is %+v", i, e)
		}
		h, d := raw.receive(t)
		if r := d.record(); h.typ != msgExit || r.order != i+1 || d.bad {
			t.Fatalf("exit %d is %+v %+v", i, h, r)
		}
	}
	// A consumer that does not read can still ask.
	if list, err := lagging.List(ctx); err != nil || len(list) != n {
		t.Errorf("%d records, %v", len(list), err)
	}
}

func TestKeep(t *testing.T) {
	c := startMonitor(t)
	ctx := testContext(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	base := len(openFDs(fmt.Sprint(c.Pid())))
	for _, name := range []string{"a/1", "a/2", "b", "a/1"} {
		if err := c.Keep(ctx, name, r, w); err != nil {
			t.Fatal(err)
		}
	}
	w.Close()
	names, err := c.Kept(ctx)
	if diff := cmp.Diff([]string{"a/2", "b", "a/1"}, names); diff != "" || err != nil {
		t.Error(diff, err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	d, err := Dial(ctx, c.dir)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	files, err := d.Fetch(ctx, "b")
	if err != nil || len(files) != 2 {
		t.Fatal(files, err)
	}
	if _, err := files[1].WriteString("hello"); err != nil {
		t.Fatal(err)
	}
	closeFiles(files)
	buf := make([]byte, 10)
	if n, err := r.Read(buf); err != nil || string(buf[:n]) != "hello" {
		t.Fatal(string(buf[:n]), err)
	}
	if err := errors.Join(d.Drop(ctx, "b"), d.Drop(ctx, "b"), d.Drop(ctx, "a")); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Fetch(ctx, "b"); !errdefs.IsNotFound(err) {
		t.Errorf("after drop: %v", err)
	}
	if names, err := d.Kept(ctx); err != nil || len(names) != 2 {
		t.Error(names, err)
	}
	if err := d.DropPrefix(ctx, "a/"); err != nil {
		t.Fatal(err)
	}
	if n, err := r.Read(buf); n != 0 || err != io.EOF {
		t.Errorf("the pipe is still open: %d, %v", n, err)
	}
	if now := openFDs(fmt.Sprint(c.Pid())); len(now) != base {
		t.Errorf("descriptors: %v, at first %d", now, base)
	}
}

func TestKeepLimits(t *testing.T) {
	c := startMonitor(t)
	ctx := testContext(t)
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	for _, files := range [][]*os.File{nil, make([]*os.File, 9)} {
		if err := c.Keep(ctx, "x", files...); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%d files: %v", len(files), err)
		}
	}
	for _, name := range []string{"", strings.Repeat("x", 201)} {
		if err := c.Keep(ctx, name, null); !errdefs.IsInvalidArgument(err) {
			t.Errorf("name %q: %v", name, err)
		}
	}
	base := len(openFDs(fmt.Sprint(c.Pid())))
	n := 0
	for ; ; n += 8 {
		err := c.Keep(ctx, fmt.Sprintf("%0200d", n), null, null, null, null, null, null, null, null)
		if errdefs.IsResourceExhausted(err) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if n > 32768 || n < 256 {
		t.Errorf("%d descriptors kept", n)
	}
	if names, err := c.Kept(ctx); err != nil || len(names) != n/8 { // in several pages
		t.Errorf("%d names, %v", len(names), err)
	}
	// Replacing needs no room, and what runs is not disturbed.
	if err := c.Keep(ctx, fmt.Sprintf("%0200d", 0), null, null); err != nil {
		t.Error(err)
	}
	mustSpawn(t, c, SpawnRequest{Args: sh("true")})
	if err := c.DropPrefix(ctx, "0"); err != nil {
		t.Error(err)
	}
	if now := openFDs(fmt.Sprint(c.Pid())); len(now) != base {
		t.Errorf("descriptors: %v, at first %d", now, base)
	}
}

func TestEnd(t *testing.T) {
	c := startMonitor(t)
	ctx := testContext(t)
	holder, err := c.Hold(ctx, HoldRequest{})
	if err != nil {
		t.Fatal(err)
	}
	exits := mustSubscribe(t, c)
	// An orphan of a child that is gone: known to nobody.
	mustSpawn(t, c, SpawnRequest{Args: sh("/bin/sleep 1000 & exit 0")})
	nextExit(t, exits)
	if err := c.End(ctx, false); !errdefs.IsFailedPrecondition(err) || !errors.Is(err, unix.EBUSY) {
		t.Fatalf("End: %v", err)
	}
	p := mustSpawn(t, c, SpawnRequest{Args: []string{"/bin/sleep", "1000"}})
	if err := c.End(ctx, true); err != nil {
		t.Fatal(err)
	}
	var killed []uint64
	for e := range exits { // the last exits come before the end
		killed = append(killed, e.Serial)
	}
	if diff := cmp.Diff([]uint64{p.Serial, holder.Serial}, killed); diff != "" {
		t.Error(diff)
	}
	if _, err := Dial(ctx, c.dir); !errdefs.IsNotFound(err) {
		t.Errorf("Dial: %v", err)
	}
	if err := unix.Kill(c.Pid(), 0); err != unix.ESRCH {
		t.Errorf("the monitor: %v", err)
	}
}

func TestEndOfIdleMonitor(t *testing.T) {
	c := startMonitor(t)
	ctx := testContext(t)
	if _, err := c.Hold(ctx, HoldRequest{NewPID: true}); err != nil {
		t.Fatal(err)
	}
	if err := c.End(ctx, false); err != nil {
		t.Fatal(err)
	}
}

func TestStartAndDialErrors(t *testing.T) {
	ctx := testContext(t)
	path := installed(t)
	dir := shortDir(t)
	if _, err := Dial(ctx, dir); !errdefs.IsNotFound(err) {
		t.Errorf("no socket: %v", err)
	}
	if _, err := Dial(ctx, dir+"/nonexistent"); !errdefs.IsNotFound(err) {
		t.Errorf("no directory: %v", err)
	}
	if _, err := Start(ctx, Config{Binary: dir + "/nonexistent", Dir: dir, Name: "x"}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no binary: %v", err)
	}
	if _, err := Start(ctx, Config{Binary: "/bin/false", Dir: dir, Name: "x"}); !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "exit status 1") {
		t.Errorf("a binary that fails: %v", err)
	}
	if _, err := Start(ctx, Config{Binary: path, Dir: dir}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("no name: %v", err)
	}
	canceled, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := Start(canceled, Config{Binary: path, Dir: dir, Name: "x"}); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: %v", err)
	}
	if list, err := os.ReadDir(dir); err != nil || len(list) != 0 {
		t.Errorf("left: %v, %v", list, err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := Start(ctx, Config{Binary: path, Dir: dir, Name: "x"}); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("open directory: %v", err)
	}
}

func TestStartTwiceAndAfterDeath(t *testing.T) {
	ctx := testContext(t)
	c := startMonitor(t)
	path := installed(t)
	cfg := Config{Binary: path, Dir: c.dir, Name: "x"}
	if _, err := Start(ctx, cfg); !errdefs.IsAlreadyExists(err) {
		t.Errorf("second start: %v", err)
	}
	holder, err := c.Hold(ctx, HoldRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(c.Pid(), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-c.Done()
	if err := c.Err(); !errdefs.IsUnavailable(err) {
		t.Errorf("Err: %v", err)
	}
	if err := c.Signal(ctx, 1, 0); !errdefs.IsUnavailable(err) {
		t.Errorf("request: %v", err)
	}
	if _, err := Dial(ctx, c.dir); !errdefs.IsUnavailable(err) {
		t.Errorf("Dial: %v", err)
	}
	// The holder dies with the monitor; we are the subreaper that gets it.
	eventually(t, "the holder is ours", func() bool {
		pid, err := unix.Wait4(holder.Pid, nil, unix.WALL, nil)
		return err == nil && pid == holder.Pid
	})
	d, err := Start(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	endMonitor(t, d)
}

func TestLongDirectory(t *testing.T) {
	dir := filepath.Join(shortDir(t), strings.Repeat("d", 200), strings.Repeat("e", 200))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	c, err := Start(testContext(t), Config{Binary: installed(t), Dir: dir, Name: "long"})
	if err != nil {
		t.Fatal(err)
	}
	endMonitor(t, c)
}

func TestInstall(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "libexec")
	first, err := Install(dir)
	if err != nil {
		t.Fatal(err)
	}
	second, err := Install(dir)
	if err != nil || first != second {
		t.Fatal(first, second, err)
	}
	if err := os.WriteFile(first, []byte("damaged"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Install(dir); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(first)
	if err != nil || !bytes.Equal(b, program) {
		t.Error("not repaired", err)
	}
	list, err := os.ReadDir(dir)
	if err != nil || len(list) != 1 {
		t.Error(list, err)
	}
}

func TestPeers(t *testing.T) {
	c := startMonitor(t)
	exits := mustSubscribe(t, c)
	// Let nobody reach the socket, so that only the monitor refuses.
	if err := errors.Join(os.Chmod(c.dir, 0o755), os.Chmod(filepath.Join(c.dir, socketName), 0o777)); err != nil {
		t.Fatal(err)
	}
	mustSpawn(t, c, self(t, "peer", filepath.Join(c.dir, socketName)))
	if e := nextExit(t, exits); e.Status != 0 {
		t.Errorf("status %#x", e.Status)
	}
}

func TestTooManyConnections(t *testing.T) {
	c := startMonitor(t)
	ctx := testContext(t)
	for range 7 {
		d, err := Dial(ctx, c.dir)
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
	}
	if _, err := Dial(ctx, c.dir); !errdefs.IsUnavailable(err) {
		t.Errorf("ninth connection: %v", err)
	}
	if _, err := c.List(ctx); err != nil {
		t.Error(err)
	}
}

func TestContext(t *testing.T) {
	c := startMonitor(t)
	if err := unix.Kill(c.Pid(), unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(testContext(t), 20*time.Millisecond)
	defer cancel()
	if _, err := c.List(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("List: %v", err)
	}
	// Until the socket is full, and then still.
	canceled := errors.New("")
	for i := 0; i < 10000 && canceled != nil; i++ {
		_, canceled = c.Spawn(ctx, SpawnRequest{Args: []string{"relative", strings.Repeat("x", 60000)}})
		if !errors.Is(canceled, context.DeadlineExceeded) {
			t.Fatalf("Spawn: %v", canceled)
		}
		if i > 100 {
			break
		}
	}
	if err := unix.Kill(c.Pid(), unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if _, err := c.List(testContext(t)); err != nil {
		t.Error(err)
	}
}
