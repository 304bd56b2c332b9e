package crisuite

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestExecSync runs programs in a container and waits for them.
func TestExecSync(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		p := s.pod()
		id := p.launch("c", "exec sleep 1000", func(cfg *runtime.ContainerConfig) {
			cfg.Envs = []*runtime.KeyValue{{Key: "GREETING", Value: []byte("hello")}}
			cfg.WorkingDir = "/tmp"
		})
		big := letters(100000)
		for _, test := range []struct {
			command []string
			want    *runtime.ExecSyncResponse
		}{
			{[]string{"true"}, &runtime.ExecSyncResponse{}},
			{[]string{"false"}, &runtime.ExecSyncResponse{ExitCode: 1}},
			{[]string{"echo", "a  b", "*"}, &runtime.ExecSyncResponse{Stdout: []byte("a  b *\n")}},
			{[]string{"sh", "-c", "echo out; echo err >&2; exit 42"}, &runtime.ExecSyncResponse{Stdout: []byte("out\n"), Stderr: []byte("err\n"), ExitCode: 42}},
			{[]string{"sh", "-c", "kill -KILL $$"}, &runtime.ExecSyncResponse{ExitCode: 137}},
			{[]string{"sh", "-c", "echo $GREETING $PWD"}, &runtime.ExecSyncResponse{Stdout: []byte("hello /tmp\n")}},
			{[]string{"sh", "-c", `printf '\000\377\n'`}, &runtime.ExecSyncResponse{Stdout: []byte("\x00\xff\n")}},
			{[]string{"cat"}, &runtime.ExecSyncResponse{}}, // its stdin is empty
			{[]string{"sh", "-c", "echo \"$0\" >&2", big}, &runtime.ExecSyncResponse{Stderr: []byte(big + "\n")}},
		} {
			got := ask(s, s.ExecSync, &runtime.ExecSyncRequest{ContainerId: id, Cmd: test.command, Timeout: 30})
			equal(t, fmt.Sprintf("%.60q", test.command), test.want, got)
		}
		if code := refuse(s, s.ExecSync, &runtime.ExecSyncRequest{ContainerId: id}); code == codes.Unavailable {
			t.Errorf("without a command: %s", code)
		}
		s.expect(id, "echo alive", "alive\n")
	})
}

// TestExecSyncLarge: megabytes arrive whole, up to 16 MiB.
func TestExecSyncLarge(t *testing.T) {
	const size = 6 << 20
	each(t, func(t *testing.T, s *server) {
		id := s.pod().sleeper("c")
		got := s.exec(id, "sh", "-c", fmt.Sprintf("dd if=/dev/zero bs=1M count=%d 2>/dev/null | tr '\\0' x", size>>20))
		if len(got.Stdout) != size || strings.Trim(string(got.Stdout), "x") != "" || got.ExitCode != 0 {
			t.Errorf("%d bytes, exit code %d, stderr %q", len(got.Stdout), got.ExitCode, got.Stderr)
		}
	})
}

// TestExecSyncTimeout: the program is killed, and says so in its code.
func TestExecSyncTimeout(t *testing.T) {
	compare(t, func(t *testing.T, s *server) codes.Code {
		id := s.pod().sleeper("c")
		start := time.Now()
		code := refuse(s, s.ExecSync, &runtime.ExecSyncRequest{ContainerId: id, Cmd: []string{"sleep", "4321"}, Timeout: 1})
		if took := time.Since(start); took < time.Second || took > 20*time.Second {
			t.Errorf("ended after %s", took)
		}
		s.expect(id, "ps | grep '[s]leep 4321'; echo alive", "alive\n")
		return code
	})
}

// TestExecSyncLeftBehind: what a program leaves running neither delays the answer
// nor is killed.
func TestExecSyncLeftBehind(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		id := s.pod().sleeper("c")
		s.expect(id, "sleep 1234 >/dev/null 2>&1 & echo started", "started\n")
		s.expect(id, "ps | grep -c '[s]leep'", "2\n")
	})
}
