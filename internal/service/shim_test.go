package service

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	bootapi "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	taskapi "github.com/containerd/containerd/api/runtime/task/v2"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"caisson/internal/task"
)

// build compiles the shim binary; the sanitizers' build where there is one.
func build(t testing.TB, target string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "containerd-shim-caisson-v2")
	args := []string{"-s", "-C", "../../cmd/containerd-shim-caisson-v2", "OUT=" + path}
	if target != "" {
		args = append(args, target)
	}
	if out, err := exec.Command("make", args...).CombinedOutput(); err != nil {
		t.Fatalf("make: %v\n%s", err, out)
	}
	return path
}

// helper serves shim binaries, and runs one.
type helper struct {
	t      *testing.T
	binary string
	socket string
	env    []string
}

func serveShim(t *testing.T, shim Shim, target string) helper {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("the socket is for root only")
	}
	h := helper{t: t, binary: build(t, target), socket: shortDir(t) + "/shim.sock"}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	l := listen(t, h.socket)
	go func() { done <- ServeShim(ctx, l, shim, "v1.2.3", Observe{}) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return h
}

func (h helper) run(stdin []byte, args ...string) (stdout, stderr string, code int) {
	h.t.Helper()
	cmd := exec.Command(h.binary, args...)
	cmd.Env = append([]string{"CAISSON_SHIM_SOCKET=" + h.socket}, h.env...)
	cmd.Dir = h.t.TempDir()
	cmd.Stdin = bytes.NewReader(stdin)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		h.t.Fatal(err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

func marshal(t *testing.T, m proto.Message) []byte {
	t.Helper()
	data, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func unmarshal(t *testing.T, data string, m proto.Message) {
	t.Helper()
	if err := proto.Unmarshal([]byte(data), m); err != nil {
		t.Fatalf("%q: %v", data, err)
	}
}

func TestShimBinary(t *testing.T) {
	for _, target := range []string{"", "asan"} {
		t.Run("build "+target, func(t *testing.T) {
			fake := &fakeShim{
				address: "unix:///run/caisson/s/0123/task.sock",
				exit:    task.Exit{Pid: 42, Status: 137, At: exited},
				info:    &types.RuntimeInfo{Name: "r", Annotations: map[string]string{"long": strings.Repeat("x", 100_000)}},
			}
			h := serveShim(t, fake, target)
			t.Run("start", func(t *testing.T) { testShimStart(t, h, fake) })
			t.Run("delete", func(t *testing.T) { testShimDelete(t, h, fake) })
			t.Run("info", func(t *testing.T) { testShimInfo(t, h, fake) })
			t.Run("errors", func(t *testing.T) { testShimErrors(t, h, fake) })
		})
	}
}

func testShimStart(t *testing.T, h helper, fake *fakeShim) {
	args := []string{"-namespace", "ns1", "-address", "/run/a.sock", "-publish-binary", "/bin/x", "-id", "c1", "-debug", "start"}
	stdin := marshal(t, &bootapi.BootstrapParams{InstanceID: "c1", Namespace: "ns1", ContainerdVersion: "2.4.2"})
	stdout, stderr, code := h.run(stdin, args...)
	if code != 0 || stderr != "" {
		t.Fatalf("code %d: %s", code, stderr)
	}
	if fake.mu.Lock(); fake.from != "/run/a.sock" {
		t.Errorf("the containerd that asks is at %q", fake.from)
	}
	fake.mu.Unlock()
	var result bootapi.BootstrapResult
	unmarshal(t, stdout, &result)
	want := &bootapi.BootstrapResult{Version: 3, Protocol: "ttrpc", Address: "unix:///run/caisson/s/0123/task.sock"}
	if diff := cmp.Diff(want, &result, protocmp.Transform()); diff != "" {
		t.Fatal(diff)
	}
	if got := fake.last(); got.Namespace != "ns1" || got.ID != "c1" {
		t.Fatalf("asked for %+v", got)
	}
	// It is the working directory.
	if bundle, _ := fake.got(); filepath.Dir(bundle) != filepath.Dir(h.t.TempDir()) {
		t.Fatalf("bundle %q", bundle)
	}

	// An older containerd: options on standard input, or nothing.
	for _, stdin := range [][]byte{nil, marshal(t, &anypb.Any{TypeUrl: "containerd.runc.v1.Options", Value: []byte{1}})} {
		stdout, stderr, code := h.run(stdin, args...)
		var old struct {
			Version           int
			Address, Protocol string
		}
		if err := json.Unmarshal([]byte(stdout), &old); err != nil || code != 0 {
			t.Fatalf("code %d, %q, %s: %v", code, stdout, stderr, err)
		}
		if old.Version != 3 || old.Protocol != "ttrpc" || old.Address != want.Address {
			t.Fatalf("%+v", old)
		}
	}
}

func testShimDelete(t *testing.T, h helper, fake *fakeShim) {
	args := []string{"-namespace", "ns1", "-address", "a", "-publish-binary", "b", "-id", "c1", "-bundle", "/b/c1", "delete"}
	stdout, stderr, code := h.run(nil, args...)
	if code != 0 || stderr != "" {
		t.Fatalf("code %d: %s", code, stderr)
	}
	var resp taskapi.DeleteResponse
	unmarshal(t, stdout, &resp)
	want := &taskapi.DeleteResponse{Pid: 42, ExitStatus: 137, ExitedAt: timestamppb.New(exited)}
	if diff := cmp.Diff(want, &resp, protocmp.Transform()); diff != "" {
		t.Fatal(diff)
	}
	if bundle, _ := fake.got(); bundle != "/b/c1" {
		t.Fatalf("bundle %q", bundle)
	}
}

func testShimInfo(t *testing.T, h helper, fake *fakeShim) {
	options := &anypb.Any{TypeUrl: "containerd.runc.v1.Options", Value: []byte("abc")}
	stdout, stderr, code := h.run(marshal(t, options), "-info")
	if code != 0 || stderr != "" {
		t.Fatalf("code %d: %s", code, stderr)
	}
	var info types.RuntimeInfo
	unmarshal(t, stdout, &info)
	if diff := cmp.Diff(fake.info, &info, protocmp.Transform()); diff != "" {
		t.Fatal(diff)
	}
	_, got := fake.got()
	if diff := cmp.Diff(options, got, protocmp.Transform()); diff != "" {
		t.Fatal(diff)
	}
	_, _, code = h.run(nil, "-info")
	if _, got := fake.got(); code != 0 || got != nil {
		t.Fatalf("without options: code %d, %v", code, got)
	}
	if out, _, code := h.run(nil, "-v"); code != 0 || !strings.Contains(out, "v1.2.3") {
		t.Fatalf("-v: code %d, %q", code, out)
	}
}

func testShimErrors(t *testing.T, h helper, fake *fakeShim) {
	fails := func(want string, stdin []byte, args ...string) {
		t.Helper()
		stdout, stderr, code := h.run(stdin, args...)
		if code != 1 || stdout != "" || !strings.Contains(stderr, want) {
			t.Errorf("%q: code %d, %q, %q; want %q", args, code, stdout, stderr, want)
		}
	}
	fails("unknown action", nil)
	fails("unknown action", nil, "-namespace", "n", "-id", "x", "restart")
	fails("not defined", nil, "-nonsense", "start")
	fails("-id is missing", nil, "-namespace", "n", "start")
	fails("namespace", nil, "-id", "x", "start")
	fails("namespace", nil, "-namespace", "a/b", "-id", "x", "delete")
	fails("runtime options", []byte("\xff\xff\xff"), "-info")
	fails("arguments", nil, strings.Split(strings.Repeat("a ", maxShimArgs+1), " ")...)
	fails("longer than", bytes.Repeat([]byte("x"), 2*maxShimBody), "-info")
	fake.fail(fmt.Errorf("no room: %w", errdefs.ErrResourceExhausted))
	fails("no room", nil, "-namespace", "n", "-id", "x", "start")
	fails("no room", nil, "-namespace", "n", "-id", "x", "delete")
	fake.fail(nil)
	info := fake.info
	fake.set(func() { fake.info = &types.RuntimeInfo{Name: strings.Repeat("n", maxShimBody+1)} })
	fails("the limit is", nil, "-info")
	fake.set(func() { fake.info = info })

	h.socket = filepath.Join(t.TempDir(), "nobody.sock")
	fails("caissond does not answer at", nil, "-info")
	h.socket = "/" + strings.Repeat("s", 200)
	fails("longer than a socket", nil, "-info")
	testShimStrangers(t, h)
	testShimStarts(t, h)
}

// testShimStarts lets the binary start programs that are no daemons; the
// integration tests let it start a real one.
func testShimStarts(t *testing.T, h helper) {
	state := shortDir(t)
	h.socket = state + "/shim.sock"
	h.env = []string{"CAISSON_SHIM_CONFIG=/etc/c.toml", "PATH=relative:", "NOTIFY_SOCKET=/n", "GOMAXPROCS=2"}
	fails := func(want string, args ...string) {
		t.Helper()
		if _, stderr, code := h.run(nil, args...); code != 1 || !strings.Contains(stderr, want) {
			t.Errorf("%q: code %d, %q; want %q", args, code, stderr, want)
		}
	}
	fails("neither beside", "-info")
	program := "#!/bin/sh\necho \"$@\"; echo \"$NOTIFY_SOCKET$GOMAXPROCS\"; pwd; exit 1\n"
	if err := os.WriteFile(filepath.Join(filepath.Dir(h.binary), "caissond"), []byte(program), 0o700); err != nil {
		t.Fatal(err)
	}
	fails("does not answer at", "-v") // is not worth a daemon
	fails("says why", "-namespace", "n", "-address", "/c.sock", "-id", "x", "start")
	log, err := os.ReadFile(state + "/caissond.log")
	if want := "--engine none --keep-connections=false --state " + state + " --config /etc/c.toml --containerd-address /c.sock\n\n/\n"; err != nil || string(log) != want {
		t.Errorf("log %q, %v; want %q", log, err, want)
	}
}

// testShimStrangers puts something else than caissond behind the socket.
func testShimStrangers(t *testing.T, h helper) {
	for reply, want := range map[string]string{
		"":                                     "closed the connection",
		"HTTP/1.1":                             "another version",
		"CSR1\x00\x00\x00\x00\xff\xff\xff\xff": "longer than",
		"CSR1\x00\x00\x00\x00\x00\x00\x00\x09part": "closed the connection",
	} {
		h.socket = shortDir(t) + "/s"
		l, err := net.Listen("unix", h.socket)
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		go func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					done <- nil // closed below
					return
				}
				_, err = readShimRequest(conn)
				_, werr := io.WriteString(conn, reply)
				if err := errors.Join(err, werr, conn.Close()); err != nil {
					done <- err
					return
				}
			}
		}()
		_, stderr, code := h.run(nil, "-info")
		if code != 1 || !strings.Contains(stderr, want) {
			t.Errorf("%q: code %d, %q", reply, code, stderr)
		}
		if err := errors.Join(l.Close(), <-done); err != nil {
			t.Error(err)
		}
	}
}

// A request that is cut off, or garbage, is answered and harms nobody.
func TestShimServerRefusesGarbage(t *testing.T) {
	h := serveShim(t, &fakeShim{}, "")
	for _, request := range []string{"GET / HTTP/1.1\r\n\r\n", "CSQ1\xff\xff\xff\xff", "CSQ1\x00\x00\x00\x04\x00\x00\x00\x01", "CSQ"} {
		conn, err := net.Dial("unix", h.socket)
		if err != nil {
			t.Fatal(err)
		}
		_, werr := io.WriteString(conn, request)
		if err := errors.Join(werr, conn.(*net.UnixConn).CloseWrite()); err != nil {
			t.Fatal(err)
		}
		reply, err := io.ReadAll(conn)
		// The kernel resets a connection that is closed with bytes unread.
		if err != nil && !errors.Is(err, syscall.ECONNRESET) {
			t.Fatal(err)
		}
		if !bytes.HasPrefix(reply, []byte("CSR1\x00\x00\x00\x01")) {
			t.Errorf("%q was answered with %q", request, reply)
		}
		_ = conn.Close() // the server has closed its end
	}
	if _, _, code := h.run(nil, "-v"); code != 0 {
		t.Error("the server does not answer any more")
	}
}

func encodeRequest(req shimRequest) []byte {
	var body []byte
	add := func(s []byte) {
		body = binary.BigEndian.AppendUint32(body, uint32(len(s)))
		body = append(body, s...)
	}
	body = binary.BigEndian.AppendUint32(body, uint32(len(req.args)))
	for _, a := range req.args {
		add([]byte(a))
	}
	add([]byte(req.dir))
	add(req.stdin)
	return append(binary.BigEndian.AppendUint32([]byte(shimRequestMagic), uint32(len(body))), body...)
}

// FuzzShimRequest holds that what decodes encodes to the same bytes, and that
// no request makes the daemon's side panic.
func FuzzShimRequest(f *testing.F) {
	f.Add(encodeRequest(shimRequest{args: []string{"shim", "-namespace", "n", "-id", "i", "start"}, dir: "/b", stdin: []byte("x")}))
	f.Add(encodeRequest(shimRequest{args: []string{"shim", "-info"}}))
	f.Add(encodeRequest(shimRequest{}))
	f.Add([]byte(nil))
	f.Add([]byte("CSQ1\x00\x00\x00\x08\x00\x00\x00\x01\xff\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, data []byte) {
		req, err := readShimRequest(bytes.NewReader(data))
		if err == io.EOF && len(data) == 0 { // who looks whether a daemon is there sends nothing
			return
		}
		if err != nil {
			if !errdefs.IsInvalidArgument(err) && !errdefs.IsResourceExhausted(err) {
				t.Fatalf("unclassified: %v", err)
			}
			return
		}
		if again := encodeRequest(req); !bytes.HasPrefix(data, again) {
			t.Fatalf("%q became %q", data, again)
		}
		shim := &fakeShim{address: "unix:///s", info: &types.RuntimeInfo{}}
		if reply := runShim(context.Background(), shim, "v", Observe{}, req); reply.code > 1 {
			t.Fatalf("code %d", reply.code)
		}
	})
}
