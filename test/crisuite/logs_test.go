package crisuite

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// logLine is a line of a log in CRI's format, without its time.
type logLine struct{ Stream, Tag, Text string }

// log reads a log of the pod, which may have a line at its end that is not whole.
func (p *pod) log(name string) []logLine {
	p.s.t.Helper()
	content, err := os.ReadFile(filepath.Join(p.cfg.LogDirectory, name))
	if err != nil {
		p.s.t.Fatal(err)
	}
	var lines []logLine
	var last time.Time
	for line := range strings.Lines(string(content)) {
		text, whole := strings.CutSuffix(line, "\n")
		if !whole {
			break
		}
		fields := strings.SplitN(text, " ", 4)
		if len(fields) != 4 {
			p.s.t.Fatalf("%s: line %q", name, line)
		}
		at, err := time.Parse(time.RFC3339Nano, fields[0])
		if err != nil || time.Since(at) > time.Hour || at.Before(last.Add(-time.Second)) {
			p.s.t.Fatalf("%s: time %q after %s: %v", name, fields[0], last, err)
		}
		last = at
		lines = append(lines, logLine{fields[1], fields[2], fields[3]})
	}
	return lines
}

// awaitLog waits for a whole line of a log that ends with text.
func (p *pod) awaitLog(name, text string) {
	p.s.t.Helper()
	p.s.poll(func() error {
		content, err := os.ReadFile(filepath.Join(p.cfg.LogDirectory, name))
		if err == nil && !strings.Contains(string(content), text+"\n") {
			err = fmt.Errorf("no line %q in %s: %q", text, name, content)
		}
		return err
	})
}

// TestLog: each stream's lines in their order, partial ones marked.
func TestLog(t *testing.T) {
	long := letters(40000)
	for name, test := range map[string]struct {
		script string
		tty    bool
		want   []logLine
	}{
		"streams": {script: "echo one; echo two; echo oops >&2", want: []logLine{
			{"stdout", "F", "one"}, {"stdout", "F", "two"}, {"stderr", "F", "oops"},
		}},
		"odd lines":  {script: `printf '\n\n  spaces \na b\tc\n\303\244\r\n'`, want: []logLine{{"stdout", "F", ""}, {"stdout", "F", ""}, {"stdout", "F", "  spaces "}, {"stdout", "F", "a b\tc"}, {"stdout", "F", "ä"}}},
		"no newline": {script: "printf 'the end'", want: []logLine{{"stdout", "P", "the end"}}},
		"terminal":   {script: "echo out; echo err >&2", tty: true, want: []logLine{{"stdout", "F", "out"}, {"stdout", "F", "err"}}},
		"nothing":    {script: "exit 0"},
		"long line": {script: "printf '%s\\n' " + long + "; echo next", want: []logLine{
			{"stdout", "P", long[:16384]}, {"stdout", "P", long[16384:32768]}, {"stdout", "F", long[32768:]}, {"stdout", "F", "next"},
		}},
	} {
		t.Run(name, func(t *testing.T) {
			each(t, func(t *testing.T, s *server) {
				p := s.pod()
				id := p.launch("c", test.script, func(cfg *runtime.ContainerConfig) { cfg.Tty = test.tty })
				s.AwaitState(id, stateExited)
				byStream := func(lines []logLine) map[string][]logLine { // between streams there is no order
					got := map[string][]logLine{}
					for _, line := range lines {
						got[line.Stream] = append(got[line.Stream], line)
					}
					return got
				}
				if diff := cmp.Diff(byStream(test.want), byStream(p.log("c.log"))); diff != "" {
					t.Errorf("-want +got\n%s", diff)
				}
			})
		})
	}
}

// TestLogRotation reopens a log again and again while the container writes:
// nothing is lost, doubled or out of order.
func TestLogRotation(t *testing.T) {
	const lines, rotations = 1500, 8
	each(t, func(t *testing.T, s *server) {
		p := s.pod()
		id := p.launch("c", fmt.Sprintf("while read n; do i=0; while [ $i -lt %d ]; do echo line $n $i; i=$((i+1)); done; done", lines),
			func(cfg *runtime.ContainerConfig) { cfg.Stdin, cfg.StdinOnce = true, true })
		x := s.attach(id, false)
		path := filepath.Join(p.cfg.LogDirectory, "c.log")
		var want []logLine
		for n := range rotations {
			s.say(x.Stdin, fmt.Sprintln(n))
			s.hear(x.Stdout, fmt.Sprintf("line %d 0\n", n)) // it writes now
			if err := os.Rename(path, fmt.Sprintf("%s.%d", path, n)); err != nil {
				t.Fatal(err)
			}
			ask(s, s.ReopenContainerLog, &runtime.ReopenContainerLogRequest{ContainerId: id})
			if _, err := os.Stat(path); err != nil {
				t.Fatalf("after ReopenContainerLog: %v", err)
			}
			for i := range lines {
				want = append(want, logLine{"stdout", "F", fmt.Sprintf("line %d %d", n, i)})
			}
		}
		if err := x.Stdin.Close(); err != nil {
			t.Fatal(err)
		}
		s.hearAll(x.Stdout)
		s.AwaitState(id, stateExited)
		var got []logLine
		for n := range rotations {
			got = append(got, p.log(fmt.Sprintf("c.log.%d", n))...)
		}
		if diff := cmp.Diff(want, append(got, p.log("c.log")...)); diff != "" {
			t.Errorf("-want +got\n%s", diff)
		}
	})
}

// TestLogOfTwo: containers that log to one directory have a log each.
func TestLogOfTwo(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		p := s.pod()
		for _, name := range []string{"a", "b"} {
			s.AwaitState(p.launch(name, "echo I am "+name), stateExited)
		}
		for _, name := range []string{"a", "b"} {
			equal(t, "log of "+name, []logLine{{"stdout", "F", "I am " + name}}, p.log(name+".log"))
		}
	})
}

// TestNoLogDirectory: without a directory nothing is logged, and the container runs.
func TestNoLogDirectory(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		p := s.pod(func(cfg *runtime.PodSandboxConfig) { cfg.LogDirectory = "" })
		id := p.launch("c", "i=0; while [ $i -lt 20000 ]; do echo nobody reads this; i=$((i+1)); done; exec sleep 1000")
		s.expect(id, "until [ \"$(cat /proc/1/comm)\" = sleep ]; do usleep 20000; done; echo done", "done\n")
		if path := s.status(id).LogPath; path != "" {
			t.Errorf("path of the log: %q", path)
		}
	})
}
