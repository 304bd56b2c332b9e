package integration

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	bootapi "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"caisson/test/harness"
)

// BenchmarkShim runs our shim binary and containerd-shim-runc-v2 in turns, as
// containerd 2.4 runs them, and reports the median of each command in
// milliseconds. The delete is that of a task that is gone already: containerd
// 2.4 has it in each StopContainer.
//
//	go test -run '^$' -bench Shim -benchtime 200x ./test/integration
func BenchmarkShim(b *testing.B) {
	h := harness.Start(b, stock)
	binaries := map[string]string{"caisson": "containerd-shim-caisson-v2", "runc": "containerd-shim-runc-v2"}
	for name, program := range binaries {
		path, err := h.Binary(program)
		if err != nil {
			b.Fatal(err)
		}
		binaries[name] = path
	}
	times := map[string][]time.Duration{}
	n := 0
	for b.Loop() {
		n++
		for _, name := range []string{"caisson", "runc"} {
			s := newShimRun(b, h, binaries[name], fmt.Sprintf("bench%s%d", name, n))
			for _, step := range []struct {
				action string
				run    func()
			}{
				{"info", func() { s.exec("", "-info") }},
				{"start", func() { s.exec(s.params(), "start") }},
				{"", s.end},
				{"", func() { s.exec("", "delete") }}, // of what start has left
				{"delete", func() { s.exec("", "delete") }},
			} {
				begin := time.Now()
				step.run()
				if step.action != "" {
					times[name+"-"+step.action] = append(times[name+"-"+step.action], time.Since(begin))
				}
			}
			if err := s.log.Close(); err != nil {
				b.Error(err)
			}
			if err := os.RemoveAll(s.bundle); err != nil {
				b.Error(err)
			}
		}
	}
	for what, all := range times {
		slices.Sort(all)
		b.ReportMetric(float64(all[len(all)/2].Microseconds())/1000, what+"-ms")
	}
	b.ReportMetric(0, "ns/op") // of both together: says nothing
}

// shimRun is one task's bundle, and a shim binary that is run for it.
type shimRun struct {
	b              *testing.B
	h              *harness.Host
	binary, bundle string
	id             string
	log            *os.File
}

func newShimRun(b *testing.B, h *harness.Host, binary, id string) *shimRun {
	b.Helper()
	s := &shimRun{b: b, h: h, binary: binary, id: id, bundle: filepath.Join(h.Dir, "bundle", id)}
	if err := os.MkdirAll(s.bundle, 0o711); err != nil {
		b.Fatal(err)
	}
	for file, content := range map[string]string{
		"config.json":  `{"ociVersion": "1.0.2"}`,
		"options.json": fmt.Sprintf(`{"root": %q}`, filepath.Join(h.Dir, "runc")), // where runc looks for the task
	} {
		if err := os.WriteFile(filepath.Join(s.bundle, file), []byte(content), 0o600); err != nil {
			b.Fatal(err)
		}
	}
	fifo := filepath.Join(s.bundle, "log")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		b.Fatal(err)
	}
	var err error
	if s.log, err = os.OpenFile(fifo, os.O_RDWR|unix.O_NONBLOCK, 0); err != nil {
		b.Fatal(err)
	}
	return s
}

func (s *shimRun) params() string {
	data, err := proto.Marshal(&bootapi.BootstrapParams{
		InstanceID: s.id, Namespace: s.h.Token, ContainerdGrpcAddress: s.h.Address,
		ContainerdTtrpcAddress: s.h.Address + ".ttrpc", ContainerdVersion: "2.4.2", SocketDir: proto.String(filepath.Join(s.h.Dir, "s")),
	})
	if err != nil {
		s.b.Fatal(err)
	}
	return string(data)
}

func (s *shimRun) exec(stdin, action string) {
	args := []string{"-namespace", s.h.Token, "-address", s.h.Address, "-publish-binary", "", "-id", s.id, "-bundle", s.bundle, action}
	if action == "-info" {
		args = []string{action}
	}
	cmd := exec.Command(s.binary, args...)
	cmd.Dir = s.bundle
	cmd.Env = append(os.Environ(), "GOMAXPROCS=2", "MAX_SHIM_VERSION=2", "TTRPC_ADDRESS="+s.h.Address+".ttrpc",
		"GRPC_ADDRESS="+s.h.Address, "NAMESPACE="+s.h.Token, "CAISSON_SHIM_SOCKET="+s.h.State+"/shim.sock")
	cmd.Stdin = strings.NewReader(stdin)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil || stdout.Len() == 0 {
		s.b.Fatalf("%s: %v, printed %q and %q", cmd, err, &stdout, &stderr)
	}
}

// end kills the shim process that start has left, if any.
func (s *shimRun) end() {
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		s.b.Fatal(err)
	}
	for _, file := range files {
		line, err := os.ReadFile(file)
		if err != nil || !bytes.Contains(line, []byte("-id\x00"+s.id+"\x00")) {
			continue // another's, or it ended
		}
		var pid int
		if _, err := fmt.Sscanf(file, "/proc/%d/", &pid); err != nil {
			s.b.Fatal(err)
		}
		process := pidfd(s.b, pid)
		kill(s.b, pid)
		awaitEnd(s.b, s.h, process)
	}
}
