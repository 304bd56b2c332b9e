package daemon

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	api "github.com/containerd/containerd/api/services/sandbox/v1"
	core "github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/containerd/v2/core/sandbox/proxy"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"caisson/internal/config"
	"caisson/internal/undo"
)

// shortDir is a directory whose sockets stay below the limit.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "c")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("the daemon needs root")
	}
}

// sandboxerConfig is a daemon without an engine.
func sandboxerConfig(t *testing.T) config.Config {
	t.Helper()
	dir := shortDir(t)
	c := config.Default()
	c.Root, c.State, c.Engine = filepath.Join(dir, "root"), filepath.Join(dir, "state"), config.EngineNone
	c.Containerd.Address = filepath.Join(dir, "nobody.sock")
	c.Log.Level = "error"
	if err := c.Complete(); err != nil {
		t.Fatal(err)
	}
	return c
}

// start runs a daemon until the returned function is called, which returns its error.
func start(t *testing.T, cfg config.Config) (stop func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	// The daemon says READY as it does to systemd.
	notify := filepath.Join(shortDir(t), "n")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: notify, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("NOTIFY_SOCKET", notify)
	ended := make(chan error, 1)
	go func() { ended <- Run(ctx, cfg) }()
	ready := make(chan string, 1)
	go func() {
		buf := make([]byte, 100)
		n, err := l.Read(buf)
		if err != nil {
			return // closed below
		}
		ready <- string(buf[:n])
	}()
	defer l.Close() //nolint:errcheck // nothing is lost
	select {
	case err := <-ended:
		cancel()
		t.Fatalf("the daemon ended: %v", err)
	case msg := <-ready:
		if msg != "READY=1" {
			t.Errorf("systemd is told %q", msg)
		}
	}
	stop = func() error {
		cancel()
		err := <-ended
		ended <- nil
		return err
	}
	t.Cleanup(func() { _ = stop() }) // a test that cares has stopped it
	return stop
}

func TestSandboxer(t *testing.T) {
	needRoot(t)
	cfg := sandboxerConfig(t)
	stop := start(t, cfg)
	for name, mode := range map[string]os.FileMode{
		cfg.Root: rootMode, cfg.State: stateMode,
		cfg.State + "/sandboxer.sock": 0o600, cfg.State + "/sandboxer.sock.ttrpc": 0o600, cfg.State + "/shim.sock": 0o600,
		cfg.State + "/debug.sock": 0o600,
	} {
		if st, err := os.Stat(name); err != nil || st.Mode().Perm() != mode {
			t.Errorf("%s: %v, %v, want %#o", name, st, err, mode)
		}
	}

	ctx, cancel := context.WithTimeout(namespaces.WithNamespace(context.Background(), "test"), 20*time.Second)
	defer cancel()
	conn, err := grpc.NewClient("unix:"+cfg.State+"/sandboxer.sock", grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close() //nolint:errcheck // nothing is lost
	ctl := proxy.NewSandboxController(api.NewControllerClient(conn), "caisson")
	if _, err := ctl.Status(ctx, "unknown", false); !errdefs.IsNotFound(err) {
		t.Errorf("status of an unknown sandbox: %v", err)
	}
	store := proxy.NewSandboxStore(api.NewStoreClient(conn))
	if _, err := store.Create(ctx, core.Sandbox{ID: "kept", Runtime: core.RuntimeOpts{Name: "r"}, Labels: map[string]string{"a": "b"}}); err != nil {
		t.Fatal(err)
	}

	second := cfg
	second.State += "2"
	if err := Run(ctx, second); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), cfg.Root) {
		t.Errorf("a second daemon on the root directory: %v", err)
	}
	second = cfg
	second.Root += "2"
	if err := Run(ctx, second); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), cfg.State) {
		t.Errorf("a second daemon on the state directory: %v", err)
	}
	for _, dir := range []string{cfg.Root + "2", cfg.State + "2"} {
		if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("a refused daemon left %s: %v", dir, err)
		}
	}

	if err := stop(); err != nil {
		t.Fatal(err)
	}
	stop = start(t, cfg)
	if sb, err := store.Get(ctx, "kept"); err != nil || sb.Labels["a"] != "b" {
		t.Errorf("record after a restart: %v, %v", sb, err)
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
}

func TestDirectoriesThatCannotBe(t *testing.T) {
	needRoot(t)
	for name, spoil := range map[string]func(*config.Config) error{
		"root is a file":   func(c *config.Config) error { return os.WriteFile(c.Root, nil, 0o600) },
		"state is a file":  func(c *config.Config) error { return os.WriteFile(c.State, nil, 0o600) },
		"state below file": func(c *config.Config) error { c.State += "/x"; return os.WriteFile(filepath.Dir(c.State), nil, 0o600) },
		"lock is a link": func(c *config.Config) error {
			return errors.Join(os.Mkdir(c.Root, 0o700), os.Symlink("/dev/null", c.Root+"/lock"))
		},
		"no write": func(c *config.Config) error { c.State = "/proc/caisson"; return nil },
	} {
		t.Run(name, func(t *testing.T) {
			cfg := sandboxerConfig(t)
			if err := spoil(&cfg); err != nil {
				t.Fatal(err)
			}
			err := Run(context.Background(), cfg)
			if err == nil || errdefs.Resolve(err) == errdefs.ErrUnknown && name != "no write" {
				t.Errorf("got %v", err)
			}
			if err != nil && !strings.Contains(err.Error(), "directory") {
				t.Errorf("%v does not say what is wrong", err)
			}
		})
	}
}

func TestModesAreCorrected(t *testing.T) {
	cfg := sandboxerConfig(t)
	for _, dir := range []string{cfg.Root, cfg.State} {
		if err := os.Mkdir(dir, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	var steps undo.Stack
	if err := takeDirectories(&steps, cfg); err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(cfg.Root); err != nil || st.Mode().Perm() != rootMode {
		t.Errorf("root: %v, %v", st, err)
	}
	if err := steps.Run(context.Background()); err != nil {
		t.Fatal(err)
	}
}

// Wherever a daemon is killed, it leaves no file that tried a directory out.
func TestDirectoriesAreNotTriedOut(t *testing.T) {
	dir := t.TempDir()
	watch, err := unix.InotifyInit1(unix.IN_NONBLOCK | unix.IN_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(watch) //nolint:errcheck // nothing is lost
	if _, err := unix.InotifyAddWatch(watch, dir, unix.IN_CREATE|unix.IN_MOVED_TO); err != nil {
		t.Fatal(err)
	}
	if err := makeDirectory("root", dir, rootMode); err != nil {
		t.Fatal(err)
	}
	if n, err := unix.Read(watch, make([]byte, 4096)); !errors.Is(err, unix.EAGAIN) {
		t.Errorf("something was made in it: %d bytes, %v", n, err)
	}
}

// A lock that is there says nothing about a file system that has become read-only.
func TestDirectoryIsReadOnly(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_RDONLY, "mode=0700"); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	}()
	if err := makeDirectory("root", dir, rootMode); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "not writable") {
		t.Errorf("got %v", err)
	}
}

// The socket of somebody else must stay theirs.
func TestAddressInUse(t *testing.T) {
	cfg := sandboxerConfig(t)
	cfg.Engine = config.EngineEmbedded
	cfg.Address = filepath.Join(shortDir(t), "a")
	l, err := net.Listen("unix", cfg.Address)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() //nolint:errcheck // nothing is lost
	var steps undo.Stack
	defer steps.Run(context.Background()) //nolint:errcheck // locks only
	if err := takeDirectories(&steps, cfg); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), cfg.Address) {
		t.Fatalf("got %v", err)
	}
}

func TestFlagsGoOverTheFile(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "c.toml")
	if err := os.WriteFile(file, []byte("root = \"/file/root\"\nstate = \"/file/state\"\n[log]\nlevel = \"warn\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	parse := func(args ...string) (config.Config, error) {
		var f flags
		cmd := command(System{Dir: dir})
		cmd.ResetFlags()
		f.add(cmd)
		if err := cmd.ParseFlags(args); err != nil {
			return config.Config{}, err
		}
		return f.config(cmd, dir)
	}
	c, err := parse("--config", "c.toml", "--state", "rel/state", "--engine", "none", "--log-format", "json")
	if err != nil {
		t.Fatal(err)
	}
	if c.Root != "/file/root" || c.State != dir+"/rel/state" || c.Address != dir+"/rel/state/caissond.sock" {
		t.Errorf("root %s, state %s, address %s", c.Root, c.State, c.Address)
	}
	if c.Engine != config.EngineNone || c.Log.Level != "warn" || c.Log.Format != config.LogJSON {
		t.Errorf("engine %s, log %+v", c.Engine, c.Log)
	}
	for _, args := range [][]string{
		{"--config", "none.toml"}, {"--engine", "steam"}, {"--log-level", "loud"}, {"--root", ""}, {"--root", "/x", "--state", "/x"},
	} {
		if _, err := parse(args...); err == nil {
			t.Errorf("%q is accepted", args)
		}
	}
}

func TestMainSpeaks(t *testing.T) {
	for _, tc := range []struct {
		args     []string
		code     int
		out, err string
	}{
		{[]string{"--version"}, 0, "caissond version dev (commit ", ""},
		{[]string{"--help"}, 0, "--engine", ""},
		{[]string{"--nonsense"}, 1, "", "nonsense"},
		{[]string{"extra"}, 1, "", "extra"},
		{[]string{"--engine", "steam"}, exitConfig, "", "embedded"},
	} {
		var out, errs bytes.Buffer
		code := Main(context.Background(), System{Args: tc.args, Dir: t.TempDir(), Stdout: &out, Stderr: &errs})
		if code != tc.code || !strings.Contains(out.String(), tc.out) || !strings.Contains(errs.String(), tc.err) {
			t.Errorf("%q: code %d, %q, %q", tc.args, code, out.String(), errs.String())
		}
	}
}

// A daemon that was killed holds its locks for a moment yet.
func TestLockOfADyingDaemonIsWaitedFor(t *testing.T) {
	dir := t.TempDir()
	dying, err := lockDirectory("root", dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lockDirectory("root", dir); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("a second one: %v", err)
	}
	time.AfterFunc(50*time.Millisecond, func() { dying.Close() })
	lock, err := lockDirectory("root", dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := lock.Close(); err != nil {
		t.Error(err)
	}
}

// TestStopWhileItStarts: a daemon that was told to stop has not failed.
func TestStopWhileItStarts(t *testing.T) {
	for name, cause := range map[string]error{"cancelled": nil, "by a signal": errors.New("terminated signal received")} {
		ctx, cancel := context.WithCancelCause(context.Background())
		cancel(cause)
		if err := Run(ctx, sandboxerConfig(t)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}
