package crisuite

import (
	"encoding/binary"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/websocket"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// webSocket is what the URL of an Exec, an Attach or a PortForward leads to when
// it is opened as kubectl does nowadays: the first byte of each message is the
// channel.
type webSocket struct {
	s    *server
	conn *websocket.Conn
	got  map[byte]string // what came, by channel
}

// The channels of exec and attach.
const (
	stdinChannel byte = iota
	stdoutChannel
	stderrChannel
	resultChannel
	resizeChannel
)

func (s *server) webSocket(url string) *webSocket {
	s.t.Helper()
	cfg, err := websocket.NewConfig(strings.Replace(url, "http:", "ws:", 1), "http://localhost")
	if err != nil {
		s.t.Fatal(err)
	}
	cfg.Protocol = []string{"v4.channel.k8s.io"}
	conn, err := cfg.DialContext(s.Host.Context(time.Minute))
	if err != nil {
		s.t.Fatalf("open %s: %v", url, err)
	}
	s.t.Cleanup(func() { _ = conn.Close() }) // closed by the other side, most of the time
	if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		s.t.Fatal(err)
	}
	return &webSocket{s: s, conn: conn, got: map[byte]string{}}
}

func (w *webSocket) send(channel byte, text string) {
	w.s.t.Helper()
	if err := websocket.Message.Send(w.conn, append([]byte{channel}, text...)); err != nil {
		w.s.t.Fatalf("send: %v", err)
	}
}

// receive reads until done says that enough has come or, with nil, to the end.
func (w *webSocket) receive(done func(got map[byte]string) bool) map[byte]string {
	w.s.t.Helper()
	for done == nil || !done(w.got) {
		var message []byte
		err := websocket.Message.Receive(w.conn, &message)
		if err != nil && done == nil {
			return w.got
		}
		if err != nil || len(message) == 0 {
			w.s.t.Fatalf("after %q: %q, %v", w.got, message, err)
		}
		w.got[message[0]] += string(message[1:])
	}
	return w.got
}

// TestExecWebSocket talks with a program without and with a terminal.
func TestExecWebSocket(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		id := s.pod().sleeper("c")
		resp := ask(s, s.Exec, &runtime.ExecRequest{ContainerId: id, Stdin: true, Stdout: true, Stderr: true,
			Cmd: []string{"sh", "-c", "read line; echo heard $line; echo err >&2; exit 5"}})
		w := s.webSocket(resp.Url)
		w.send(stdinChannel, "you\n")
		got := w.receive(nil)
		if got[stdoutChannel] != "heard you\n" || got[stderrChannel] != "err\n" {
			t.Errorf("got %q", got)
		}
		var result struct {
			Details struct {
				Causes []struct{ Reason, Message string }
			}
		}
		if err := json.Unmarshal([]byte(got[resultChannel]), &result); err != nil || len(result.Details.Causes) != 1 || result.Details.Causes[0].Message != "5" {
			t.Errorf("result %q: %v", got[resultChannel], err)
		}

		resp = ask(s, s.Exec, &runtime.ExecRequest{ContainerId: id, Stdin: true, Stdout: true, Tty: true,
			Cmd: []string{"sh", "-c", "until stty size | grep '^31 99'; do usleep 20000; done; read line"}})
		w = s.webSocket(resp.Url)
		w.send(resizeChannel, `{"Width":99,"Height":31}`)
		w.receive(func(got map[byte]string) bool { return strings.Contains(got[stdoutChannel], "31 99") })
		w.send(stdinChannel, "\n")
		if got := w.receive(nil); !strings.Contains(got[resultChannel], `"Success"`) {
			t.Errorf("result %q", got[resultChannel])
		}
	})
}

// TestAttachWebSocket talks with the first process of a container.
func TestAttachWebSocket(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		id := s.pod().launch("c", "while read line; do echo heard $line; done", func(cfg *runtime.ContainerConfig) { cfg.Stdin = true })
		w := s.webSocket(ask(s, s.Attach, &runtime.AttachRequest{ContainerId: id, Stdin: true, Stdout: true, Stderr: true}).Url)
		w.send(stdinChannel, "you\n")
		w.receive(func(got map[byte]string) bool { return got[stdoutChannel] == "heard you\n" })
		s.stopContainer(id, 0)
		w.receive(nil) // it ends
	})
}

// TestForwardWebSocket forwards two ports over one connection.
func TestForwardWebSocket(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		p := s.pod()
		p.echo(t, 8080, 8081)
		w := s.webSocket(ask(s, s.PortForward, &runtime.PortForwardRequest{PodSandboxId: p.id, Port: []int32{8080, 8081}}).Url)
		port := func(port uint16) string { return string(binary.LittleEndian.AppendUint16(nil, port)) }
		want := map[byte]string{0: port(8080) + "8080 first", 1: port(8080), 2: port(8081) + "8081 second", 3: port(8081)}
		// The other side says which channels are of which port before it takes data.
		w.receive(func(got map[byte]string) bool {
			return len(got[0]) >= 2 && len(got[1]) == 2 && len(got[2]) >= 2 && len(got[3]) == 2
		})
		w.send(0, "first")
		w.send(2, "second")
		equal(t, "by channel", want, w.receive(func(got map[byte]string) bool { return len(got[0]) >= len(want[0]) && len(got[2]) >= len(want[2]) }))
	})
}
