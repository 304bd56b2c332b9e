// Package harness gives integration tests a real daemon with an image in it,
// the clients that users have, and the certainty that nothing is left behind.
//
// The tests need root, the binaries of `make build ctr registry` and Debian's
// containernetworking-plugins; `make test` provides all of them.
package harness

import (
	"bytes"
	"context"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"google.golang.org/grpc"

	"caisson/test/daemon"
	"caisson/test/image"
)

// What clients call the runtime and the sandboxer.
const (
	Runtime   = "io.containerd.caisson.v2"
	Sandboxer = "caisson"
	// Handler is CRI's name of the runtime.
	Handler = "caisson"
	// CRINamespace is the containerd namespace that CRI works in.
	CRINamespace = "k8s.io"
	// Image is the image that Start imports.
	Image = image.DefaultRef
)

// Host is one daemon and a test that uses it. Its methods fail the test.
type Host struct {
	*daemon.Daemon
	t       testing.TB
	conn    *grpc.ClientConn // CRI
	direct  *grpc.ClientConn // the sandboxer's socket
	clients map[string]*containerd.Client
}

// New makes a daemon that does not run yet. When the test ends, the daemon is
// stopped and what it left fails the test.
func New(t testing.TB, opts daemon.Options) *Host {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	// A shell lets what it runs in the background ignore SIGINT, which is inherited: not by
	// what tests start.
	if signal.Ignored(os.Interrupt) {
		signal.Notify(make(chan os.Signal, 1), os.Interrupt)
	}
	d, err := daemon.New(opts)
	if err != nil {
		t.Fatal(err)
	}
	h := &Host{Daemon: d, t: t, clients: map[string]*containerd.Client{}}
	t.Cleanup(h.close)
	return h
}

// Share lets a test use a running daemon that others use, too, and that someone
// else closes.
func Share(t testing.TB, d *daemon.Daemon) *Host {
	h := &Host{Daemon: d, t: t, clients: map[string]*containerd.Client{}}
	t.Cleanup(h.disconnect)
	return h
}

// Start makes a daemon, starts it and imports the image into the namespaces of
// ctr and of CRI.
func Start(t testing.TB, opts daemon.Options) *Host {
	t.Helper()
	h := New(t, opts)
	h.StartDaemon()
	h.Import("", Image)
	return h
}

// StartDaemon starts the daemon, or starts it again.
func (h *Host) StartDaemon() {
	h.t.Helper()
	if err := h.Start(h.Context(time.Minute)); err != nil {
		h.t.Fatal(err)
	}
}

// Crash kills the daemon with SIGKILL.
func (h *Host) Crash() {
	h.t.Helper()
	if err := h.Kill(); err != nil {
		h.t.Fatal(err)
	}
}

func (h *Host) disconnect() {
	for _, c := range h.clients {
		_ = c.Close() // a connection to a daemon that goes away
	}
	for _, conn := range []*grpc.ClientConn{h.conn, h.direct} {
		if conn != nil {
			_ = conn.Close()
		}
	}
}

func (h *Host) close() {
	h.disconnect()
	ctx, cancel := context.WithTimeout(context.Background(), scale(time.Minute))
	defer cancel()
	if h.t.Failed() {
		h.t.Logf("log of caissond:\n%s", h.LogTail(32<<10))
		if h.Stock() {
			h.t.Logf("log of containerd:\n%s", h.ContainerdLogTail(32<<10))
		}
	}
	left, err := h.Close(ctx)
	if err != nil {
		h.t.Errorf("stop: %v", err)
	}
	for _, what := range left {
		h.t.Errorf("left behind: %s", what)
	}
}

// Context ends with the test or after limit, whichever is sooner.
func (h *Host) Context(limit time.Duration) context.Context {
	return Context(h.t, limit)
}

// Context ends with the test or after limit, whichever is sooner.
func Context(t testing.TB, limit time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), scale(limit))
	t.Cleanup(cancel)
	return ctx
}

// Slow is by how much the machine is slower than a real one: CAISSON_TEST_SLOW,
// for emulated ones, or 1.
func Slow() int {
	if factor, err := strconv.Atoi(os.Getenv("CAISSON_TEST_SLOW")); err == nil && factor > 1 {
		return factor
	}
	return 1
}

// scale stretches a time limit on slow machines.
func scale(limit time.Duration) time.Duration { return limit * time.Duration(Slow()) }

// Client is a client of containerd's API in a namespace, the token if empty.
func (h *Host) Client(namespace string) *containerd.Client {
	h.t.Helper()
	if c, ok := h.clients[namespace]; ok {
		return c
	}
	c, err := h.Daemon.Client(namespace)
	if err != nil {
		h.t.Fatal(err)
	}
	h.clients[namespace] = c
	return c
}

// SandboxerConn is a connection to the socket that containerd reaches our
// sandboxer by.
func (h *Host) SandboxerConn() *grpc.ClientConn {
	h.t.Helper()
	if h.direct == nil {
		conn, err := h.Dial(filepath.Join(h.State, "sandboxer.sock"))
		if err != nil {
			h.t.Fatal(err)
		}
		h.direct = conn
	}
	return h.direct
}

// In is a context in the namespace that the token names.
func (h *Host) In(limit time.Duration) context.Context {
	return namespaces.WithNamespace(h.Context(limit), h.Token)
}

// archives of images by name: making one takes a while, and it is always the same.
var archives sync.Map

func archive(t testing.TB, opts image.Options) []byte {
	t.Helper()
	if made, ok := archives.Load(opts.Ref); ok {
		return made.([]byte)
	}
	var buf bytes.Buffer
	if err := image.Write(&buf, opts); err != nil {
		t.Fatal(err)
	}
	archives.Store(opts.Ref, buf.Bytes())
	return buf.Bytes()
}

// Import puts the test image into a namespace and unpacks it.
func (h *Host) Import(namespace, ref string) containerd.Image {
	h.t.Helper()
	if namespace == "" {
		namespace = h.Token
	}
	return h.ImportArchive(namespace, archive(h.t, image.Options{Ref: ref}))
}

// ImportArchive puts the image of an archive into a namespace and unpacks it.
func (h *Host) ImportArchive(namespace string, content []byte) containerd.Image {
	h.t.Helper()
	ctx := namespaces.WithNamespace(h.Context(time.Minute), namespace)
	client := h.Client(namespace)
	images, err := client.Import(ctx, bytes.NewReader(content))
	if err != nil {
		h.t.Fatalf("import image: %v", err)
	}
	img := containerd.NewImage(client, images[0])
	if err := img.Unpack(ctx, ""); err != nil {
		h.t.Fatalf("unpack image: %v", err)
	}
	return img
}
