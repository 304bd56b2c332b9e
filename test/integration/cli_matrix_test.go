package integration

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"caisson/internal/cli"
	"caisson/test/daemon"
	"caisson/test/harness"
	"caisson/test/image"
)

// TestCLIMatrix runs every command there is under every condition. A command without a
// trial fails it.
func TestCLIMatrix(t *testing.T) {
	m := newMatrix(t)
	var wg sync.WaitGroup
	slots := make(chan struct{}, 8) // they mostly wait
	var leaf func(*cobra.Command)
	known := map[string]bool{}
	leaf = func(cmd *cobra.Command) {
		for _, sub := range cmd.Commands() {
			leaf(sub)
		}
		path := strings.TrimPrefix(cmd.CommandPath(), "caisson ")
		if cmd.HasSubCommands() || path == "help" {
			return
		}
		known[path] = true
		trial, ok := trials[path]
		if !ok {
			t.Errorf("%s: say in trials how it is run, or why it cannot be", path)
			return
		}
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			m.tryAll(path, trial, false)
		})
	}
	leaf(cli.Command())
	for path := range trials {
		if !known[path] {
			t.Errorf("there is no command %q any more", path)
		}
	}
	wg.Wait()
	for path, trial := range trials {
		m.tryAll(path, trial, true)
	}
	m.check()
	m.fillDaemon()
}

// scripts are what containers run.
var scripts = map[string]string{
	"box":    "echo line; exec sleep 1000",
	"chatty": "while usleep 20000; do echo hi; done",
	"wait":   "trap 'exit 3' INT; echo ready; sleep 1000 >/dev/null 2>&1 & wait",
}

// matrix is what is there for all runs.
type matrix struct {
	t     *testing.T
	h     *harness.Host
	words map[string]string
	env   []string
	// program is where everybody may execute it.
	program string
	noCRIU  error // why the runs that need CRIU are left out
	names   atomic.Int64
}

// daemonSpace is what the daemon has on each of its file systems: more than it needs here.
const daemonSpace = 64 << 20

func newMatrix(t *testing.T) *matrix {
	noCRIU := checkCRIU() // first, since it leaves a file in /run
	if noCRIU != nil {
		t.Logf("CRIU does not work here, so nothing that needs it is run: %v", noCRIU)
	}
	h := harness.Start(t, daemon.Options{Engine: daemon.EngineEmbedded, Space: daemonSpace})
	m := &matrix{t: t, h: h, noCRIU: noCRIU, words: map[string]string{
		"{image}": harness.Image, "{dir}": filepath.Join(h.Dir, "m"), "{tiny}": filepath.Join(h.Dir, "tiny"), "{fixed}": filepath.Join(h.Dir, "fixed"),
		"{archive}": filepath.Join(h.Dir, "image.tar"), "{pod}": filepath.Join(h.Dir, "pod.yaml"), "{state}": h.State,
	}}
	r := startRegistry(t, h, func(string) (string, error) { return "", nil })
	m.words["{registry}"] = r.Host
	m.env = append(os.Environ(), "DOCKER_CONFIG="+filepath.Join(h.Dir, "docker"))
	mustWrite(t, filepath.Join(h.Dir, "docker", "config.json"), 0o600, "{}")
	for name, script := range scripts {
		mustWrite(t, filepath.Join(m.words["{dir}"], name), 0o600, script)
	}
	mustWrite(t, m.words["{pod}"], 0o644, strings.NewReplacer("{}", "pod2", "{image}", harness.Image).Replace(pod))
	m.mount("{tiny}", "size=64k")
	mustWrite(t, m.fill("{tiny}/docker/config.json"), 0o600, tinyConfig)
	if err := os.WriteFile(m.fill("{tiny}/filler"), make([]byte, 1<<20), 0o600); !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("fill: %v", err)
	}
	m.mount("{fixed}", "ro")
	m.copyProgram()
	if err := image.WriteFile(m.words["{archive}"], image.Options{Ref: "docker.io/library/imported:1"}); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for _, lines := range []string{
		"image tag {image} {registry}/demo:1;image push {registry}/demo:1",
		"sandbox create pod;sandbox start pod;run -d --name box --sandbox pod -v {dir}:/m {image} sh /m/box",
		"sandbox create stopped;sandbox start stopped;sandbox stop stopped",
		"run -d --name chatty --net none -v {dir}:/m {image} sh /m/chatty",
		"run -d --name long --net none {image} seq 20000;wait long",
		"run --name done --net none {image} true",
	} {
		wg.Go(func() {
			if err := m.all(lines, m.replacer("none")); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	return m
}

// mount makes a file system of its own.
func (m *matrix) mount(word, options string) {
	dir := m.words[word]
	err := os.Mkdir(dir, 0o700)
	if err == nil {
		err = unix.Mount(m.h.Token, dir, "tmpfs", 0, options)
	}
	if err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			m.t.Error(err)
		}
	})
}

const tinyConfig = `{"auths": {"kept.example": {"auth": "ZGV2OnNlY3JldA=="}}}`

func (m *matrix) copyProgram() {
	path, err := m.h.Binary("caisson")
	if err != nil {
		m.t.Fatal(err)
	}
	content, err := os.ReadFile(path)
	m.program = filepath.Join(m.h.Dir, "caisson")
	if err = errors.Join(err, os.WriteFile(m.program, content, 0o755)); err != nil {
		m.t.Fatal(err)
	}
}

// check looks at what is left when all have run.
func (m *matrix) check() {
	if text, err := os.ReadFile(m.fill("{tiny}/docker/config.json")); err != nil || string(text) != tinyConfig {
		m.t.Errorf("the configuration in the full file system: %q, %v", text, err)
	}
	// Whatever was begun there is taken back; the directory of volumes itself stays.
	for pattern, want := range map[string]int{"{tiny}/*": 3, "{tiny}/volumes/*/*": 0, "{dir}/*": len(scripts)} {
		found, err := filepath.Glob(m.fill(pattern))
		if err != nil || len(found) != want {
			m.t.Errorf("%s: %q, %v", pattern, found, err)
		}
	}
	m.h.Caisson(append([]string{"sandbox", "rm", "-f"}, strings.Fields(m.h.Caisson("sandbox", "ls", "-q"))...)...)
}

// fillDaemon leaves the daemon no space: what needs some says so and is taken back, what
// needs none works, also to make room, and everything does when there is some again.
func (m *matrix) fillDaemon() {
	m.h.Caisson("run", "-d", "--name", "box", harness.Image, "sleep", "1000")
	var fillers []string
	for _, dir := range []string{m.h.Root, m.h.State} {
		filler := filepath.Join(dir, "filler")
		fillers = append(fillers, filler)
		if err := os.WriteFile(filler, make([]byte, daemonSpace), 0o600); !errors.Is(err, unix.ENOSPC) {
			m.t.Fatalf("fill: %v", err)
		}
	}
	for _, line := range []string{
		"image import {archive}", "run --name new {image} true", "run -d --name new {image} true",
		"sandbox create new", "sandbox apply --net none -f {pod}", "exec box true", "pause box",
	} {
		if res := m.h.TryCaisson(strings.Fields(m.fill(line))...); res.Code == 0 || !strings.Contains(res.Stderr, "no space left on device") {
			m.t.Errorf("%s, without space: %+v", line, res)
		}
	}
	m.h.Caisson("logs", "box")
	if out := m.h.Caisson("ps", "-aq") + m.h.Caisson("sandbox", "ls", "-q"); out != "box\nbox\n" {
		m.t.Errorf("without space there are %q", out)
	}
	m.h.Caisson("rm", "-f", "box")
	m.h.Caisson("image", "rm", m.fill("{registry}/demo:1"))
	for _, filler := range fillers {
		if err := os.Remove(filler); err != nil {
			m.t.Error(err)
		}
	}
	m.h.Caisson("run", "--rm", harness.Image, "true")
}

func (m *matrix) fill(text string) string {
	for word, value := range m.words {
		text = strings.ReplaceAll(text, word, value)
	}
	return text
}

// replacer puts in what is there for all, and the name.
func (m *matrix) replacer(name string, more ...string) func(string) string {
	own := strings.NewReplacer(append(more, "{}", name)...)
	return func(text string) string { return m.fill(own.Replace(text)) }
}

// all runs command lines, which must succeed.
func (m *matrix) all(lines string, fill func(string) string) error {
	for line := range strings.SplitSeq(lines, ";") {
		cmd, err := m.command(fill(line))
		if err != nil {
			return err
		}
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w: %s", line, err, out)
		}
	}
	return nil
}

func (m *matrix) command(line string) (*exec.Cmd, error) {
	words := strings.Fields(line)
	args := words
	for len(args) > 0 && strings.Contains(args[0], "=") {
		args = args[1:]
	}
	cmd, err := m.h.Command(m.h.Context(time.Minute), "caisson", args...)
	if err == nil {
		cmd.Env = slices.Concat(m.env, words[:len(words)-len(args)])
	}
	return cmd, err
}

// tryAll does those runs of a command that are alone, or those that are not, one after the
// other: of some, such as debug dump, the daemon takes no two at once.
func (m *matrix) tryAll(path string, trial trial, alone bool) {
	for _, c := range []condition{interrupted, unread, full, denied, noTerminal} {
		runs := trial.runs[c]
		if runs == nil {
			runs = like(trial.usual(path, c))
		}
		for _, r := range runs {
			if r.never != "" || r.alone != alone || r.criu && m.noCRIU != nil {
				continue
			}
			if err := m.try(c, r); err != nil {
				m.t.Errorf("%s, %s: %v", r.args, c, err)
			}
		}
	}
}

// try is one run.
func (m *matrix) try(c condition, r run) error {
	name := fmt.Sprintf("m%d", m.names.Add(1))
	line, more := r.args, []string(nil)
	var waits *hung
	if r.waits == "daemon" {
		var err error
		if waits, err = listen(filepath.Join(m.h.Dir, name)); err != nil {
			return err
		}
		defer waits.close()
		more = append(more, "{tcp}", waits.tcp)
		switch {
		case strings.HasPrefix(line, "debug dump"):
			line += " --socket " + waits.unix
		case !strings.Contains(line, "{tcp}"):
			line = "--address " + waits.unix + " " + line
		}
	}
	fill := m.replacer(name, more...)
	if r.first != "" {
		if err := m.all(r.first, fill); err != nil {
			return err
		}
	}
	cmd, err := m.command(fill(line))
	if err != nil {
		return err
	}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if r.input != "" {
		cmd.Stdin = strings.NewReader(fill(r.input))
	}
	ready := func() error { return nil }
	switch c {
	case interrupted:
		var done func()
		if ready, done, err = arrange(cmd, r.waits, waits); err != nil {
			return err
		}
		defer done()
	case unread:
		r, w, err := os.Pipe()
		if err != nil {
			return err
		}
		defer w.Close()
		r.Close()
		cmd.Stdout = w
	case full:
		if !strings.Contains(line, "{tiny}") {
			device, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
			if err != nil {
				return err
			}
			defer device.Close()
			cmd.Stdout = device
		}
	case denied:
		if strings.Contains(line, "{fixed}") {
			break // as root, who may write wherever something can be written
		}
		const nobody = 65534
		cmd.Path, cmd.SysProcAttr = m.program, &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	if r.meanwhile != "" {
		defer m.repeat(r.meanwhile, fill)()
	}
	limit := time.AfterFunc(runLimit(), func() { _ = cmd.Process.Kill() })
	err = ready()
	if c == interrupted && err == nil {
		err = cmd.Process.Signal(os.Interrupt)
	}
	_ = cmd.Wait() // what judge tells
	if !limit.Stop() {
		return fmt.Errorf("it did not end: %w: %s", err, out.String())
	}
	return errors.Join(err, judge(cmd, r, c, out.String()))
}

// runLimit is for what takes a second or two.
func runLimit() time.Duration { return 30 * time.Second * time.Duration(harness.Slow()) }

// repeat runs command lines again and again until stop is called.
func (m *matrix) repeat(lines string, fill func(string) string) (stop func()) {
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
			}
			if err := m.all(lines, fill); err != nil {
				m.t.Error(err)
				return
			}
		}
	})
	return func() { close(done); wg.Wait() }
}

// arrange lets a command wait for something. When ready returns, it does.
func arrange(cmd *exec.Cmd, what string, waits *hung) (ready func() error, done func(), err error) {
	if what == "daemon" {
		return waits.await, func() {}, nil
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, nil, err
	}
	const size = 4096
	if _, err := unix.FcntlInt(w.Fd(), unix.F_SETPIPE_SZ, size); err != nil {
		return nil, nil, err
	}
	done = func() { r.Close(); w.Close() }
	if what == "input" {
		cmd.Stdin = r
		return func() error {
			r.Close() // so that it fails if the command has ended
			_, err := w.Write(make([]byte, 2*size))
			return err
		}, done, nil
	}
	cmd.Stdout = w
	return func() error {
		w.Close()
		_, err := r.Read(make([]byte, 1))
		if what == "output" {
			go func() { _, _ = io.Copy(io.Discard, r) }() // until done
		}
		return err
	}, done, nil
}

// hung is a daemon, or a registry, that takes connections and does not answer.
type hung struct {
	unix, tcp string
	asked     chan struct{} // closed when somebody has asked for something
	once      sync.Once
	wg        sync.WaitGroup

	mu   sync.Mutex // guards open
	open []io.Closer
}

func (h *hung) add(c io.Closer) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.open = append(h.open, c)
}

func listen(path string) (*hung, error) {
	h := &hung{unix: path, asked: make(chan struct{})}
	for network, address := range map[string]string{"unix": path, "tcp": "127.0.0.1:0"} {
		l, err := net.Listen(network, address)
		if err != nil {
			h.close()
			return nil, err
		}
		h.add(l)
		if network == "tcp" {
			h.tcp = l.Addr().String()
		}
		h.wg.Go(func() { h.serve(l) })
	}
	return h, nil
}

func (h *hung) serve(l net.Listener) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		h.add(conn)
		h.wg.Go(func() {
			if n, _ := conn.Read(make([]byte, 1)); n == 0 {
				return // it only knocked
			}
			h.once.Do(func() { close(h.asked) })
			_, _ = io.Copy(io.Discard, conn)
		})
	}
}

func (h *hung) await() error {
	select {
	case <-h.asked:
		return nil
	case <-time.After(runLimit()):
		return errors.New("it asks nobody")
	}
}

func (h *hung) close() {
	h.mu.Lock()
	for _, c := range h.open {
		c.Close()
	}
	h.mu.Unlock()
	h.wg.Wait()
}

func judge(cmd *exec.Cmd, r run, c condition, out string) error {
	code := cmd.ProcessState.ExitCode()
	switch {
	case code != r.code:
		return fmt.Errorf("exit code %d, want %d: %s", code, r.code, out)
	case !strings.Contains(out, r.says):
		return fmt.Errorf("it says %q, want %q in it", out, r.says)
	case c == unread && strings.Contains(out, "caisson: "):
		return fmt.Errorf("it is not quiet: %q", out)
	case strings.Contains(out, "panic:") || strings.Contains(out, "goroutine "):
		return fmt.Errorf("it says %s", out)
	}
	return nil
}
