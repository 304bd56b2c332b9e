package service

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	bootapi "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	taskapi "github.com/containerd/containerd/api/runtime/task/v2"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"caisson/internal/task"
)

// Shim answers for the binary containerd-shim-caisson-v2, which containerd
// starts where it would start a shim. The namespace is in the context.
type Shim interface {
	// Endpoint makes sure that a task with this id, which has no sandbox, can
	// be created, and returns where its Task service is served over ttrpc:
	// unix:///path. Both go when the bundle is removed.
	Endpoint(ctx context.Context, id, bundle string) (address string, err error)
	// Cleanup ends the task with this id, if it still runs, and frees what it
	// holds; containerd calls it whenever it lost the connection of a task,
	// after each orderly deletion too, so a task that is not there is no error.
	Cleanup(ctx context.Context, id, bundle string) (task.Exit, error)
	// Containerd is told the gRPC address of the containerd that started the
	// binary, before anything else is asked on its behalf.
	Containerd(address string)
	// RuntimeInfo describes the OCI runtime; options may be nil.
	RuntimeInfo(ctx context.Context, options *anypb.Any) (*types.RuntimeInfo, error)
}

const (
	// shimProtocol is the version of the Task service and of its streams that
	// containerd is told: 3 means that sandboxes are supported.
	shimProtocol  = 3
	shimTransport = "ttrpc"
	// shimReadTimeout is how long a client may take to send its request, and to
	// take its reply: both are a few KiB on a local socket.
	shimReadTimeout = 10 * time.Second
)

// ServeShim answers shim binaries on l until ctx ends, and then returns nil; it
// closes l. version is what the binary's -v prints.
func ServeShim(ctx context.Context, l net.Listener, shim Shim, version string, observe Observe) error {
	conns := track(l)
	stop := context.AfterFunc(ctx, func() { _ = l.Close() }) // ends Accept
	defer stop()
	var wg sync.WaitGroup
	defer wg.Wait()
	defer conns.closeConns()
	for {
		conn, err := conns.Accept()
		if ctx.Err() != nil {
			return nil
		}
		var temporary interface{ Temporary() bool }
		if errors.As(err, &temporary) && temporary.Temporary() {
			select {
			case <-ctx.Done():
			case <-time.After(50 * time.Millisecond): // out of descriptors: others will be closed
			}
			continue
		}
		if err != nil {
			return fmt.Errorf("serve %s: %w", l.Addr(), err)
		}
		wg.Go(func() {
			defer conn.Close() //nolint:errcheck // the reply was written, or could not be
			if err := answerShim(ctx, conn, shim, version, observe); err != nil {
				log.G(ctx).WithError(err).Warn("a shim binary was not answered")
			}
		})
	}
}

func answerShim(ctx context.Context, conn net.Conn, shim Shim, version string, observe Observe) error {
	if err := conn.SetDeadline(time.Now().Add(shimReadTimeout)); err != nil {
		return err
	}
	req, err := readShimRequest(conn)
	if errors.Is(err, io.EOF) {
		return nil // Somebody looked whether we are there.
	}
	var reply shimReply
	if err != nil {
		reply = failed(err)
	} else {
		reply = runShim(ctx, shim, version, observe, req)
	}
	if err := conn.SetDeadline(time.Now().Add(shimReadTimeout)); err != nil {
		return err
	}
	return writeShimReply(conn, reply)
}

// shimCommand is the binary's command line, in the form containerd uses.
type shimCommand struct {
	namespace, id, bundle, action, address string
	info, version                          bool
}

func parseShim(req shimRequest) (shimCommand, error) {
	var c shimCommand
	flags := flag.NewFlagSet("containerd-shim-caisson-v2", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	flags.StringVar(&c.namespace, "namespace", "", "")
	flags.StringVar(&c.id, "id", "", "")
	flags.StringVar(&c.bundle, "bundle", "", "")
	flags.StringVar(&c.address, "address", "", "")
	flags.BoolVar(&c.info, "info", false, "")
	flags.BoolVar(&c.version, "v", false, "")
	for _, ignored := range []string{"publish-binary", "socket", "debug-socket"} {
		flags.String(ignored, "", "")
	}
	flags.Bool("debug", false, "")
	if len(req.args) == 0 {
		return c, fmt.Errorf("no command line: %w", errdefs.ErrInvalidArgument)
	}
	if err := flags.Parse(req.args[1:]); err != nil {
		return c, fmt.Errorf("%v: %w", err, errdefs.ErrInvalidArgument)
	}
	c.action = flags.Arg(0)
	if c.bundle == "" {
		c.bundle = req.dir
	}
	return c, nil
}

func runShim(ctx context.Context, shim Shim, version string, observe Observe, req shimRequest) shimReply {
	begin := time.Now()
	c, err := parseShim(req)
	if err != nil {
		return failed(err)
	}
	if c.address != "" {
		shim.Containerd(c.address)
	}
	var out []byte
	method := c.action
	switch {
	case c.version:
		method = "version"
		out = fmt.Appendf(nil, "containerd-shim-caisson-v2 %s\n", version)
	case c.info:
		method = "info"
		out, err = shimInfo(ctx, shim, req.stdin)
	case c.action == "start":
		out, err = shimStart(ctx, shim, c, req.stdin)
	case c.action == "delete":
		out, err = shimDelete(ctx, shim, c)
	default:
		method = "unknown"
		err = fmt.Errorf("unknown action %q; this program is started by containerd, with start, delete or -info: %w", c.action, errdefs.ErrInvalidArgument)
	}
	observe.answered("/caisson.Shim/"+method, begin, err)
	if err != nil {
		return failed(err)
	}
	return shimReply{stdout: out}
}

func failed(err error) shimReply {
	return shimReply{code: 1, stderr: []byte("containerd-shim-caisson-v2: " + err.Error() + "\n")}
}

func (c shimCommand) context(ctx context.Context) (context.Context, error) {
	if c.id == "" {
		return ctx, fmt.Errorf("%s: -id is missing: %w", c.action, errdefs.ErrInvalidArgument)
	}
	ctx = namespaces.WithNamespace(ctx, c.namespace)
	_, err := namespaceOf(ctx)
	return ctx, err
}

func shimInfo(ctx context.Context, shim Shim, stdin []byte) ([]byte, error) {
	var options *anypb.Any
	if len(stdin) > 0 {
		options = &anypb.Any{}
		if err := proto.Unmarshal(stdin, options); err != nil {
			return nil, fmt.Errorf("runtime options: %v: %w", err, errdefs.ErrInvalidArgument)
		}
	}
	info, err := shim.RuntimeInfo(ctx, options)
	if err != nil {
		return nil, err
	}
	return proto.Marshal(info)
}

func shimStart(ctx context.Context, shim Shim, c shimCommand, stdin []byte) ([]byte, error) {
	ctx, err := c.context(ctx)
	if err != nil {
		return nil, err
	}
	address, err := shim.Endpoint(ctx, c.id, c.bundle)
	if err != nil {
		return nil, err
	}
	// containerd before 2.3 sends runtime options, and understands JSON only.
	var params bootapi.BootstrapParams
	if err := proto.Unmarshal(stdin, &params); err != nil || params.GetInstanceID() != c.id {
		return json.Marshal(map[string]any{"version": shimProtocol, "address": address, "protocol": shimTransport})
	}
	return proto.Marshal(&bootapi.BootstrapResult{Version: shimProtocol, Address: address, Protocol: shimTransport})
}

func shimDelete(ctx context.Context, shim Shim, c shimCommand) ([]byte, error) {
	ctx, err := c.context(ctx)
	if err != nil {
		return nil, err
	}
	exit, err := shim.Cleanup(ctx, c.id, c.bundle)
	if err != nil {
		return nil, err
	}
	return proto.Marshal(&taskapi.DeleteResponse{
		Pid: uint32(exit.Pid), ExitStatus: exit.Status, ExitedAt: timestamppb.New(exit.At),
	})
}

// writeShimReply sends a reply; what is too long for the protocol becomes an error.
func writeShimReply(w io.Writer, r shimReply) error {
	var buf bytes.Buffer
	if err := r.encode(&buf); err != nil {
		buf.Reset()
		if err := failed(err).encode(&buf); err != nil {
			return err
		}
	}
	_, err := w.Write(buf.Bytes())
	return err
}
