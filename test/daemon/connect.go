package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"syscall"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// dialOptions reconnect fast: the daemon is killed and started all the time.
func dialOptions() []grpc.DialOption {
	return []grpc.DialOption{
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 20 * time.Millisecond, Multiplier: 1.5, MaxDelay: 200 * time.Millisecond},
			MinConnectTimeout: 5 * time.Second,
		}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(16<<20), grpc.MaxCallSendMsgSize(16<<20)),
	}
}

// Conn is a new connection to the daemon's gRPC socket. It is made when it is
// first used.
func (d *Daemon) Conn() (*grpc.ClientConn, error) {
	return d.Dial(d.Address)
}

// Dial is a new connection to another socket of the daemon.
func (d *Daemon) Dial(path string) (*grpc.ClientConn, error) {
	return grpc.NewClient("unix://"+path, dialOptions()...)
}

// Client is a new client of containerd's API, for the namespace given by the
// token if none is named.
func (d *Daemon) Client(namespace string) (*containerd.Client, error) {
	if namespace == "" {
		namespace = d.Token
	}
	return containerd.New(d.Address, containerd.WithDefaultNamespace(namespace), containerd.WithExtraDialOpts(dialOptions()))
}

// ready waits until the server with the engine answers CRI, which is served after
// everything else.
func (d *Daemon) ready(ctx context.Context, s *server) error {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	exited := s.exited // of this launch
	go func() {
		select {
		case <-exited:
			cancel()
		case <-ctx.Done():
		}
	}()
	conn, err := d.Conn()
	if err != nil {
		return err
	}
	defer conn.Close()
	var failed error
	cri := runtime.NewRuntimeServiceClient(conn)
	err = Poll(ctx, startLimit, func() error {
		_, err := cri.Version(ctx, &runtime.VersionRequest{}, grpc.WaitForReady(true))
		if status.Code(err) == codes.Unavailable {
			return err // the socket is served before CRI has found its pods again
		}
		failed = err
		return nil
	})
	select {
	case <-s.exited:
		return fmt.Errorf("%s ended while it started (%w):\n%s", s.name, errorOr(s.exitErr, "exit code 0"), tail(s.log, 2000))
	default:
	}
	if err = errors.Join(err, failed); err != nil {
		return fmt.Errorf("%s does not answer: %w", s.name, err)
	}
	return nil
}

func errorOr(err error, text string) error {
	if err != nil {
		return err
	}
	return errors.New(text)
}

// LogTail is the last max bytes of the daemon's log.
func (d *Daemon) LogTail(max int64) string { return tail(d.caissond.log, max) }

// ContainerdLogTail is the same for the containerd beside it.
func (d *Daemon) ContainerdLogTail(max int64) string { return tail(d.containerd.log, max) }

func tail(path string, max int64) string {
	f, err := os.Open(path)
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	if size, err := f.Seek(0, io.SeekEnd); err == nil {
		_, err = f.Seek(size-min(size, max), io.SeekStart)
		if err != nil {
			return err.Error()
		}
	}
	text, err := io.ReadAll(f)
	if err != nil {
		return err.Error()
	}
	return string(text)
}

// Command is a client program, ctr or caisson, that talks to this daemon. It
// gets SIGTERM when ctx ends, and is killed if that does not help.
func (d *Daemon) Command(ctx context.Context, name string, args ...string) (*exec.Cmd, error) {
	path, err := d.Binary(name)
	if err != nil {
		return nil, err
	}
	global := []string{"--address", d.Address, "--namespace", d.Token}
	if name == "caisson" {
		global = append(global, "--root", d.Root)
	}
	cmd := exec.CommandContext(ctx, path, slices.Concat(global, args)...)
	cmd.Dir = d.Dir
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 5 * time.Second
	return cmd, nil
}
