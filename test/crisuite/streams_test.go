package crisuite

import (
	"fmt"
	"io"
	"strings"
	"testing"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"caisson/test/harness"
)

// attach attaches to a container as kubectl attach -i does.
func (s *server) attach(id string, tty bool) *harness.Session {
	s.t.Helper()
	resp := ask(s, s.Attach, &runtime.AttachRequest{ContainerId: id, Stdin: true, Stdout: true, Stderr: !tty, Tty: tty})
	return s.Host.Attach(resp.Url, tty)
}

// session runs a program as kubectl exec -i does.
func (s *server) session(id string, tty bool, command ...string) *harness.Session {
	s.t.Helper()
	resp := ask(s, s.Exec, &runtime.ExecRequest{ContainerId: id, Cmd: command, Stdin: true, Stdout: true, Stderr: !tty, Tty: tty})
	return s.Host.Attach(resp.Url, tty)
}

// say writes to a process.
func (s *server) say(w io.Writer, text string) {
	s.t.Helper()
	if _, err := io.WriteString(w, text); err != nil {
		s.t.Fatalf("write: %v", err)
	}
}

// hear reads until a process has said text, no further, and returns what came
// before it.
func (s *server) hear(r io.Reader, text string) (before string) {
	s.t.Helper()
	var got []byte
	for one := make([]byte, 1); !strings.HasSuffix(string(got), text); {
		if _, err := io.ReadFull(r, one); err != nil {
			s.t.Fatalf("no %q but %q: %v", text, got, err)
		}
		got = append(got, one...)
	}
	return string(got[:len(got)-len(text)])
}

// hearAll reads to the end.
func (s *server) hearAll(r io.Reader) string {
	s.t.Helper()
	got, err := io.ReadAll(r)
	if err != nil {
		s.t.Fatalf("after %q: %v", got, err)
	}
	return string(got)
}

// TestExec talks with a program in a container.
func TestExec(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		id := s.pod().sleeper("c")
		for name, tty := range map[string]bool{"pipes": false, "terminal": true} {
			x := s.session(id, tty, "sh", "-c", "while read line; do echo \"heard $line\"; [ \"$line\" != bye ] || exit 9; done")
			for _, line := range []string{"one", "two words", "bye"} {
				s.say(x.Stdin, line+"\n")
				s.hear(x.Stdout, "heard "+line)
			}
			if code := x.Wait(); code != 9 {
				t.Errorf("%s: exit code %d", name, code)
			}
		}

		x := s.session(id, false, "sh", "-c", "cat; echo err >&2; exit 3")
		big := letters(300000)
		go func() {
			_, _ = io.WriteString(x.Stdin, big) // an error shows in what comes back
			_ = x.Stdin.Close()
		}()
		if got := s.hearAll(x.Stdout); got != big {
			t.Errorf("of %d bytes %d came back", len(big), len(got))
		}
		if got := s.hearAll(x.Stderr); got != "err\n" {
			t.Errorf("stderr: %q", got)
		}
		if code := x.Wait(); code != 3 {
			t.Errorf("exit code %d", code)
		}
	})
}

// TestExecOutput runs a program without input and takes its output only.
func TestExecOutput(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		id := s.pod().sleeper("c")
		resp := ask(s, s.Exec, &runtime.ExecRequest{ContainerId: id, Cmd: []string{"sh", "-c", "cat; echo out"}, Stdout: true})
		x := s.Host.Session(resp.Url, "stdout")
		if got := s.hearAll(x.Stdout); got != "out\n" {
			t.Errorf("stdout: %q", got)
		}
		if code := x.Wait(); code != 0 {
			t.Errorf("exit code %d", code)
		}
	})
}

// TestExecResize changes the size of a terminal while the program runs.
func TestExecResize(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		id := s.pod().sleeper("c")
		x := s.session(id, true, "sh", "-c", "trap 'echo \"<$(stty size)>\"' WINCH; echo \"<$(stty size)>\"; tty; while :; do read line && exit; done")
		s.hear(x.Stdout, "/dev/pts/")
		for _, size := range [][2]int{{33, 101}, {5, 200}} {
			x.Resize(size[1], size[0])
			s.hear(x.Stdout, fmt.Sprintf("<%d %d>", size[0], size[1]))
		}
		s.say(x.Stdin, "\n")
		if code := x.Wait(); code != 0 {
			t.Errorf("exit code %d", code)
		}
	})
}

// TestExecInterrupt: a terminal's keys are signals.
func TestExecInterrupt(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		id := s.pod().sleeper("c")
		x := s.session(id, true, "sh", "-c", "echo ready; exec sleep 1000")
		s.hear(x.Stdout, "ready")
		s.say(x.Stdin, "\x03")
		if code := x.Wait(); code != 130 {
			t.Errorf("exit code %d", code)
		}
	})
}

// TestAttach talks with the first process of a container, which logs meanwhile.
func TestAttach(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		for name, tty := range map[string]bool{"pipes": false, "terminal": true} {
			p := s.pod()
			id := p.launch("c", "while read line; do echo \"heard $line\"; echo \"on stderr $line\" >&2; done; sleep 1000",
				func(cfg *runtime.ContainerConfig) { cfg.Stdin, cfg.Tty = true, tty })
			for range 2 { // what it does not say goes on after a client
				x := s.attach(id, tty)
				s.say(x.Stdin, "you\n")
				s.hear(x.Stdout, "heard you")
				if tty {
					s.hear(x.Stdout, "on stderr you")
				} else {
					s.hear(x.Stderr, "on stderr you")
				}
				x.Close()
			}
			other, one := s.attach(id, tty), s.attach(id, tty)
			s.say(other.Stdin, "me\n") // it is attached when it hears itself
			s.hear(other.Stdout, "heard me")
			s.say(one.Stdin, "all\n")
			s.hear(one.Stdout, "heard all")
			s.hear(other.Stdout, "heard all")
			p.awaitLog("c.log", "heard all")
			if got := s.status(id); got.State != stateRunning {
				t.Errorf("%s: %v", name, got)
			}
			s.stopContainer(id, 0)
			s.hearAll(other.Stdout) // it ends
		}
	})
}

// TestAttachOnce: with StdinOnce, the container's input ends with its first
// client's.
func TestAttachOnce(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		p := s.pod()
		id := p.launch("c", "cat; echo end; exit 6", func(cfg *runtime.ContainerConfig) { cfg.Stdin, cfg.StdinOnce = true, true })
		x := s.attach(id, false)
		s.say(x.Stdin, "typed\n")
		s.hear(x.Stdout, "typed\n")
		if err := x.Stdin.Close(); err != nil {
			t.Fatal(err)
		}
		s.hear(x.Stdout, "end\n")
		if got := s.AwaitState(id, stateExited); got.ExitCode != 6 {
			t.Errorf("%v", got)
		}
	})
}
