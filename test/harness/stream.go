package harness

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"testing"
	"time"

	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"
)

// The protocols that kubectl speaks with CRI's streaming server.
const (
	execProtocol    = "v4.channel.k8s.io"
	forwardProtocol = "portforward.k8s.io"
)

// Stream is what the URL of an Exec, an Attach or a PortForward leads to.
type Stream struct {
	t    testing.TB
	conn httpstream.Connection
}

// dialStream opens the URL that CRI answered with.
func dialStream(t testing.TB, address, protocol string) *Stream {
	t.Helper()
	transport, err := spdy.NewRoundTripperWithConfig(spdy.RoundTripperConfig{
		Proxier:    func(*http.Request) (*url.URL, error) { return nil, nil },
		PingPeriod: 5 * time.Second,
	})
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, address, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set(httpstream.HeaderProtocolVersion, protocol)
	resp, err := transport.RoundTrip(req)
	if err != nil {
		t.Fatalf("open %s: %v", address, err)
	}
	defer resp.Body.Close()
	conn, err := transport.NewConnection(resp)
	if err != nil {
		t.Fatalf("upgrade %s: %v", address, err)
	}
	t.Cleanup(func() { _ = conn.Close() }) // closed by the other side, most of the time
	return &Stream{t: t, conn: conn}
}

func (s *Stream) open(header map[string]string) httpstream.Stream {
	s.t.Helper()
	h := http.Header{}
	for key, value := range header {
		h.Set(key, value)
	}
	stream, err := s.conn.CreateStream(h)
	if err != nil {
		s.t.Fatal(err)
	}
	return stream
}

// Session is a process that is attached to by a stream.
type Session struct {
	t      testing.TB
	result httpstream.Stream
	Stdin  httpstream.Stream
	Stdout httpstream.Stream
	Stderr httpstream.Stream // nil with a terminal
}

// Attach opens the URL of an Exec or Attach that asked for stdin, stdout and,
// without a terminal, stderr.
func (h *Host) Attach(address string, terminal bool) *Session {
	h.t.Helper()
	s := dialStream(h.t, address, execProtocol)
	session := &Session{
		t:      h.t,
		result: s.open(map[string]string{"streamType": "error"}),
		Stdin:  s.open(map[string]string{"streamType": "stdin"}),
		Stdout: s.open(map[string]string{"streamType": "stdout"}),
	}
	if terminal {
		resize := s.open(map[string]string{"streamType": "resize"})
		if _, err := io.WriteString(resize, `{"Width":90,"Height":20}`); err != nil {
			h.t.Fatal(err)
		}
	} else {
		session.Stderr = s.open(map[string]string{"streamType": "stderr"})
	}
	return session
}

// Wait returns the exit code of an Exec, which comes in the way kubectl gets it.
func (s *Session) Wait() int {
	s.t.Helper()
	text, err := io.ReadAll(s.result)
	if err != nil {
		s.t.Fatal(err)
	}
	var status struct {
		Status, Message string
		Details         struct {
			Causes []struct{ Reason, Message string }
		}
	}
	if err := json.Unmarshal(text, &status); err != nil {
		s.t.Fatalf("result %q: %v", text, err)
	}
	if status.Status == "Success" {
		return 0
	}
	for _, cause := range status.Details.Causes {
		if code, err := strconv.Atoi(cause.Message); err == nil && cause.Reason == "ExitCode" {
			return code
		}
	}
	s.t.Fatalf("result %q", text)
	return -1
}

// Forward opens the URL of a PortForward and connects to a port in the pod.
func (h *Host) Forward(address string, port int) io.ReadWriteCloser {
	h.t.Helper()
	s := dialStream(h.t, address, forwardProtocol)
	header := func(kind string) map[string]string {
		return map[string]string{"streamType": kind, "port": fmt.Sprint(port), "requestID": "1"}
	}
	if err := s.open(header("error")).Close(); err != nil { // nothing is sent there, only received
		h.t.Fatal(err)
	}
	return s.open(header("data"))
}
