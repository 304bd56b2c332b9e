package integration

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/ttrpc"
	"golang.org/x/sys/unix"

	"caisson/test/daemon"
	"caisson/test/harness"
)

// socketsOf lists the daemon's own sockets, and fails for a directory or file of
// the daemon's that others may use. What containerd makes in its directory is
// containerd's to judge.
func socketsOf(t *testing.T, h *harness.Host) (sockets []string) {
	t.Helper()
	err := filepath.WalkDir(h.State, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		name := strings.TrimPrefix(path, h.State)
		switch {
		case name == "/containerd" || path == h.Address || path == h.Address+".ttrpc":
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		case name == "": // a way through, for containers with a user namespace
			if info.Mode().Perm() != 0o711 {
				t.Errorf("the state directory has mode %v", info.Mode())
			}
			return nil
		case d.Type() == fs.ModeSocket:
			sockets = append(sockets, path)
			if info.Mode().Perm() != 0o600 {
				t.Errorf("%s has mode %v", path, info.Mode())
			}
		case d.IsDir() && filepath.Dir(path) == h.State && info.Mode().Perm() != 0o700:
			t.Errorf("%s has mode %v", path, info.Mode())
		case !d.IsDir() && filepath.Dir(path) == h.State && info.Mode().Perm()&0o077 != 0:
			t.Errorf("%s has mode %v", path, info.Mode())
		}
		if st := info.Sys().(*syscall.Stat_t); st.Uid != 0 {
			t.Errorf("%s belongs to %d", path, st.Uid)
		}
		if filepath.Dir(path) == filepath.Join(h.State, "s") && info.Mode().Perm() != 0o700 {
			t.Errorf("%s has mode %v", path, info.Mode())
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return sockets
}

// asNobody runs f as a user without any rights.
func asNobody(f func() error) error {
	const nobody = 65534
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with this goroutine
		// The C library's and Go's would change all threads.
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESGID, nobody, nobody, nobody); errno != 0 {
			done <- errno
		} else if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, nobody, nobody, nobody); errno != 0 {
			done <- errno
		} else {
			done <- f()
		}
	}()
	return <-done
}

// knock connects to a socket and tells whether whoever listens stays connected:
// it is sent something that it must answer, or wait for the rest of.
func knock(path string) (open bool, err error) {
	kind := unix.SOCK_STREAM
	if filepath.Base(path) == "monitor.sock" {
		kind = unix.SOCK_SEQPACKET
	}
	fd, err := unix.Socket(unix.AF_UNIX, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return false, err
	}
	defer unix.Close(fd)
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		return false, err
	}
	if _, err := unix.Write(fd, []byte{1, 0}); err != nil {
		return false, nil // closed already
	}
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(fds, 500)
		if err == unix.EINTR {
			continue
		}
		if err != nil || n == 0 {
			return true, err
		}
		n, _ = unix.Read(fd, make([]byte, 100)) // a reset connection is closed, too
		return n > 0, nil
	}
}

// TestSocketsAreRoots: nobody but root can connect to a socket of ours, and if
// somebody could, as after a chmod, nothing would be read from them.
func TestSocketsAreRoots(t *testing.T) {
	h := harness.Start(t, daemon.Options{})
	startSandbox(t, h, "box", nil)
	sockets := socketsOf(t, h)
	kinds := map[string]int{}
	for _, path := range sockets {
		kinds[filepath.Base(path)]++
	}
	for _, name := range []string{"sandboxer.sock", "sandboxer.sock.ttrpc", "shim.sock", "debug.sock", "task.sock", "monitor.sock"} {
		if kinds[name] != 1 {
			t.Errorf("%d sockets %s", kinds[name], name)
		}
	}
	for _, path := range sockets {
		t.Run(filepath.Base(path), func(t *testing.T) {
			err := asNobody(func() error { _, err := knock(path); return err })
			if !errors.Is(err, unix.EACCES) {
				t.Errorf("connect as nobody: %v", err)
			}
			// The doors are opened to see the guard behind them.
			for dir := path; dir != h.State; dir = filepath.Dir(dir) {
				info, err := os.Stat(dir)
				if err != nil {
					t.Fatal(err)
				}
				if err := os.Chmod(dir, 0o777); err != nil {
					t.Fatal(err)
				}
				defer os.Chmod(dir, info.Mode().Perm()) //nolint:errcheck // it is removed soon
			}
			var open bool
			if err := asNobody(func() (err error) { open, err = knock(path); return err }); err != nil || open {
				t.Errorf("as nobody: open %t, %v", open, err)
			}
			if open, err := knock(path); err != nil || !open {
				t.Errorf("as root: open %t, %v", open, err)
			}
		})
	}
	checkNoAbstractSockets(t, h)
	for _, path := range append(sockets, h.Address, h.Address+".ttrpc") { // those of the engine have no guard
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", path, info, err)
		}
	}
	if info, err := os.Stat(h.Root); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the root directory: %v, %v", info.Mode(), err)
	}
}

// TestNamespacesAreApart: the same IDs in two namespaces of containerd are
// different things down to the kernel, and neither namespace reaches the other's.
func TestNamespacesAreApart(t *testing.T) {
	h := harness.Start(t, daemon.Options{})
	ctl := controller(h)
	names := []string{h.Token, h.Token + "b"}
	in := func(ns string) context.Context { return namespaces.WithNamespace(h.Context(time.Minute), ns) }
	if err := h.AddCgroup("/" + names[1]); err != nil {
		t.Fatal(err)
	}
	h.Import(names[1], harness.Image)
	tasks := map[string]containerd.Task{}
	for _, ns := range names {
		ctx := in(ns)
		if _, err := h.Client(ns).SandboxStore().Create(ctx, record("same")); err != nil {
			t.Fatal(err)
		}
		if err := ctl.Create(ctx, record("same")); err != nil {
			t.Fatal(err)
		}
		if _, err := ctl.Start(ctx, "same"); err != nil {
			t.Fatal(err)
		}
		sandbox, err := ctl.Status(ctx, "same", false)
		if err != nil {
			t.Fatal(err)
		}
		for _, id := range []string{"member", "single"} {
			client := h.Client(ns)
			image, err := client.GetImage(ctx, harness.Image)
			if err != nil {
				t.Fatal(err)
			}
			opts := []containerd.NewContainerOpts{
				containerd.WithRuntime(harness.Runtime, nil), containerd.WithNewSnapshot(id, image),
				containerd.WithNewSpec(oci.WithImageConfig(image), oci.WithProcessArgs("sleep", "1000")),
			}
			var at []containerd.NewTaskOpts
			if id == "member" {
				opts = append(opts, containerd.WithSandbox("same"))
				at = append(at, containerd.WithTaskAPIEndpoint(sandbox.Address, sandbox.Version))
			}
			c, err := client.NewContainer(ctx, id, opts...)
			if err != nil {
				t.Fatal(err)
			}
			task, err := c.NewTask(ctx, cio.NullIO, at...)
			if err != nil {
				t.Fatal(err)
			}
			if err := task.Start(ctx); err != nil {
				t.Fatal(err)
			}
			tasks[ns+"/"+id] = task
		}
	}

	stranger := in(h.Token + "c")
	for name, call := range map[string]func() error{
		"status":   func() error { _, err := ctl.Status(stranger, "same", true); return err },
		"wait":     func() error { _, err := ctl.Wait(stranger, "same"); return err },
		"metrics":  func() error { _, err := ctl.Metrics(stranger, "same"); return err },
		"update":   func() error { return ctl.Update(stranger, "same", record("same"), "labels") },
		"stop":     func() error { return ctl.Stop(stranger, "same") },
		"shutdown": func() error { return ctl.Shutdown(stranger, "same") },
	} {
		if err := call(); !errdefs.IsNotFound(err) {
			t.Errorf("%s from a namespace without sandboxes: %v", name, err)
		}
	}
	checkSocketsOwnNamespace(t, h, names)
	for _, id := range []string{"member", "single"} {
		a, b := tasks[names[0]+"/"+id], tasks[names[1]+"/"+id]
		if a.Pid() == b.Pid() {
			t.Fatalf("%s: both have pid %d", id, a.Pid())
		}
		if _, err := a.Delete(in(names[0]), containerd.WithProcessKill); err != nil {
			t.Error(err)
		}
		if status, err := b.Status(in(names[1])); err != nil || status.Status != containerd.Running {
			t.Errorf("%s of the other namespace: %v, %v", id, status, err)
		}
	}
	if err := errors.Join(ctl.Stop(in(names[0]), "same"), ctl.Shutdown(in(names[0]), "same")); err != nil {
		t.Error(err)
	}
	if status, err := ctl.Status(in(names[1]), "same", false); err != nil || status.State != "SANDBOX_READY" {
		t.Errorf("the other's sandbox: %+v, %v", status, err)
	}
	for _, id := range []string{"member", "single"} {
		task := tasks[names[1]+"/"+id]
		if status, err := task.Status(in(names[1])); err != nil || status.Status != containerd.Running {
			t.Errorf("%s of the other namespace: %v, %v", id, status, err)
		}
		if _, err := task.Delete(in(names[1]), containerd.WithProcessKill); err != nil {
			t.Error(err)
		}
	}
	if err := ctl.Shutdown(in(names[1]), "same"); err != nil {
		t.Error(err)
	}
}

// checkSocketsOwnNamespace calls each sandbox's socket in both namespaces.
func checkSocketsOwnNamespace(t *testing.T, h *harness.Host, names []string) {
	t.Helper()
	for _, of := range names {
		status, err := controller(h).Status(namespaces.WithNamespace(h.Context(time.Minute), of), "same", false)
		if err != nil {
			t.Fatal(err)
		}
		conn, err := net.Dial("unix", strings.TrimPrefix(status.Address, "ttrpc+unix://"))
		if err != nil {
			t.Fatal(err)
		}
		client := ttrpc.NewClient(conn)
		defer client.Close()
		for _, ns := range names {
			ctx := namespaces.WithNamespace(h.Context(time.Minute), ns)
			_, err := taskapi.NewTTRPCTaskClient(client).State(ctx, &taskapi.StateRequest{ID: "member"})
			err = errgrpc.ToNative(err)
			if ns == of && err != nil || ns != of && !errdefs.IsInvalidArgument(err) {
				t.Errorf("namespace %s at the socket of one in %s: %v", ns, of, err)
			}
		}
	}
}

// checkNoAbstractSockets: those have no mode, and every container in the host's
// network namespace reaches them.
func checkNoAbstractSockets(t *testing.T, h *harness.Host) {
	t.Helper()
	table, err := os.ReadFile("/proc/net/unix")
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]string{} // by inode
	for line := range strings.Lines(string(table)) {
		if f := strings.Fields(line); len(f) == 8 {
			names[f[6]] = f[7]
		}
	}
	for name, pids := range programs(t, h) {
		sockets := 0
		for _, pid := range pids {
			files, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
			if err != nil {
				t.Fatal(err)
			}
			for _, file := range files {
				target, _ := os.Readlink(file) // closed meanwhile
				inode, is := strings.CutPrefix(target, "socket:[")
				if !is {
					continue
				}
				sockets++
				if path := names[strings.TrimSuffix(inode, "]")]; strings.HasPrefix(path, "@") {
					t.Errorf("%s has the abstract socket %s", name, path)
				}
			}
		}
		if sockets == 0 {
			t.Errorf("%s has no sockets", name)
		}
	}
}
