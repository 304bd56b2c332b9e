// Command demo shows what Caisson does: two containers in one sandbox that share
// its network, shared memory, host name and resolver, made with the command
// line alone. `make demo` runs it, as root. It fails if the containers do not
// see the same sandbox, or if anything is left on the machine afterwards.
package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"caisson/test/daemon"
	"caisson/test/image"
)

const (
	sandboxID = "demo"
	ref       = "docker.io/library/caisson-demo:latest"
	note      = "a note from the server"

	// server leaves a note in shared memory and serves a page on localhost.
	server = `echo ` + note + ` >/dev/shm/note
mkdir /www && echo "a page from the server" >/www/index.html
exec httpd -f -p 127.0.0.1:8080 -h /www`

	// client fetches the page as soon as the server listens.
	client = `until wget -q -O - http://127.0.0.1:8080/; do usleep 20000; done`

	// look prints what containers of a sandbox have in common.
	look = `echo "shared memory: $(cat /dev/shm/note)"
echo "host name:     $(hostname)"
sed "s/^/resolv.conf:   /" /etc/resolv.conf
for ns in net ipc uts; do echo "namespace:     $(readlink /proc/self/ns/$ns)"; done`
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := demo(ctx); err != nil {
		stop()
		fmt.Fprintln(os.Stderr, "demo: FAILED:", err)
		os.Exit(1)
	}
}

func demo(ctx context.Context) error {
	if os.Getuid() != 0 {
		return errors.New("it needs root, for namespaces, mounts and cgroups")
	}
	d, err := daemon.New(daemon.Options{})
	if err != nil {
		return err
	}
	err = run(ctx, d)
	if err != nil {
		err = fmt.Errorf("%w\n\nthe end of caissond's log:\n%s", err, d.LogTail(4000))
	}
	// Interrupted or not, the machine gets back what it gave.
	left, closeErr := d.Close(context.WithoutCancel(ctx))
	if len(left) > 0 {
		closeErr = errors.Join(closeErr, fmt.Errorf("left behind:\n  %s", strings.Join(left, "\n  ")))
	}
	if err = errors.Join(err, closeErr); err == nil {
		fmt.Println("\nNothing is left: no process, mount, cgroup, network namespace or file.")
	}
	return err
}

// run is what a person would type.
func run(ctx context.Context, d *daemon.Daemon) error {
	archive := filepath.Join(d.Dir, "demo.tar")
	if err := image.WriteFile(archive, image.Options{Ref: ref}); err != nil {
		return err
	}
	fmt.Println("Starting caissond.")
	if err := d.Start(ctx); err != nil {
		return err
	}
	s := shell{ctx: ctx, d: d}
	s.caisson("image", "import", archive)
	s.caisson("sandbox", "create", "--hostname", "box", "--dns", "192.0.2.53", sandboxID)
	s.caisson("sandbox", "start", sandboxID)
	s.caisson("run", "-d", "--name", "server", "--sandbox", sandboxID, ref, "sh", "-c", server)
	s.expect("a page from the server\n", s.caisson("run", "--rm", "--name", "client", "--sandbox", sandboxID, ref, "sh", "-c", client))
	s.caisson("sandbox", "ls")
	s.caisson("ps")

	inServer := s.caisson("exec", "server", "sh", "-c", look)
	inClient := s.caisson("run", "--rm", "--name", "client", "--sandbox", sandboxID, ref, "sh", "-c", look)
	s.expect(inServer, inClient)
	for _, want := range []string{note, "box", "nameserver 192.0.2.53"} {
		if s.err == nil && !strings.Contains(inClient, want) {
			s.err = fmt.Errorf("the client does not see %q", want)
		}
	}

	s.caisson("stop", "-t", "1", "server")
	s.caisson("rm", "server")
	s.caisson("sandbox", "stop", sandboxID)
	s.caisson("sandbox", "rm", sandboxID)
	s.caisson("image", "rm", ref)
	return s.err
}

// shell types commands until one fails.
type shell struct {
	ctx context.Context
	d   *daemon.Daemon
	err error
}

// caisson shows a command and what it prints, which it returns.
func (s *shell) caisson(args ...string) string {
	if s.err != nil {
		return ""
	}
	ctx, cancel := context.WithTimeout(s.ctx, time.Minute)
	defer cancel()
	cmd, err := s.d.Command(ctx, "caisson", args...)
	if err != nil {
		s.err = err
		return ""
	}
	fmt.Printf("\n$ caisson %s\n", quote(args))
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err = cmd.Run()
	for _, text := range []string{stdout.String(), stderr.String()} {
		for line := range strings.Lines(text) {
			fmt.Print("  ", line)
		}
	}
	if err != nil {
		if exit := (*exec.ExitError)(nil); errors.As(err, &exit) && stderr.Len() > 0 {
			err = fmt.Errorf("%w: %s", err, strings.TrimSpace(stderr.String()))
		}
		s.err = fmt.Errorf("caisson %s: %w", args[0], err)
	}
	return stdout.String()
}

// expect compares what two commands printed.
func (s *shell) expect(want, got string) {
	if s.err == nil && want != got {
		s.err = fmt.Errorf("printed was\n%s\nwhere\n%s\nwas expected", got, want)
	}
}

// quote writes arguments as a person types them.
func quote(args []string) string {
	words := make([]string, len(args))
	for i, arg := range args {
		if words[i] = arg; arg == "" || strings.ContainsAny(arg, " \t\n\"$;|&<>()") {
			words[i] = "'" + arg + "'"
		}
	}
	return strings.Join(words, " ")
}
