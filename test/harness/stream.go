package harness

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
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
	// It is closed by the other side, most of the time. After a minute, whoever
	// still reads from it gets an error.
	context.AfterFunc(Context(t, time.Minute), func() { _ = conn.Close() })
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

// Session is a process that is attached to by streams.
type Session struct {
	*Stream
	result httpstream.Stream
	resize httpstream.Stream // nil if it was not asked for, like those below
	Stdin  httpstream.Stream
	Stdout httpstream.Stream
	Stderr httpstream.Stream
}

// Attach opens the URL of an Exec or Attach that asked for stdin, stdout and,
// without a terminal, stderr.
func (h *Host) Attach(address string, terminal bool) *Session {
	h.t.Helper()
	if !terminal {
		return h.Session(address, "stdin", "stdout", "stderr")
	}
	session := h.Session(address, "stdin", "stdout", "resize")
	session.Resize(90, 20)
	return session
}

// Session opens the URL of an Exec or Attach and those streams that it asked for.
func (h *Host) Session(address string, streams ...string) *Session {
	h.t.Helper()
	s := dialStream(h.t, address, execProtocol)
	session := &Session{Stream: s, result: s.open(map[string]string{"streamType": "error"})}
	for name, stream := range map[string]*httpstream.Stream{
		"stdin": &session.Stdin, "stdout": &session.Stdout, "stderr": &session.Stderr, "resize": &session.resize,
	} {
		if slices.Contains(streams, name) {
			*stream = s.open(map[string]string{"streamType": name})
		}
	}
	return session
}

// Resize tells the size of the client's terminal.
func (s *Session) Resize(width, height int) {
	s.t.Helper()
	if _, err := fmt.Fprintf(s.resize, `{"Width":%d,"Height":%d}`, width, height); err != nil {
		s.t.Fatal(err)
	}
}

// Close leaves the process alone, as a client does that goes away.
func (s *Session) Close() {
	_ = s.conn.Close() // the other side closes as soon as the first stream ends
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
	data, _ := h.Forwarder(address).Connect(port)
	return data
}

// Forwarder is what the URL of a PortForward leads to.
type Forwarder struct {
	*Stream
	connections int
}

// Forwarder opens the URL of a PortForward, for any number of connections.
func (h *Host) Forwarder(address string) *Forwarder {
	h.t.Helper()
	return &Forwarder{Stream: dialStream(h.t, address, forwardProtocol)}
}

// Connect connects to a port in the pod. If that fails, failure says why;
// otherwise it is empty and ends with the connection.
func (f *Forwarder) Connect(port int) (data io.ReadWriteCloser, failure io.Reader) {
	f.t.Helper()
	f.connections++
	header := func(kind string) map[string]string {
		return map[string]string{"streamType": kind, "port": fmt.Sprint(port), "requestID": fmt.Sprint(f.connections)}
	}
	errors := f.open(header("error"))
	if err := errors.Close(); err != nil { // nothing is sent there, only received
		f.t.Fatal(err)
	}
	return f.open(header("data")), errors
}
