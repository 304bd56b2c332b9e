package cli

import (
	"context"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/streaming"
	streamproxy "github.com/containerd/containerd/v2/core/streaming/proxy"
	transfers "github.com/containerd/containerd/v2/core/transfer"
	"github.com/containerd/containerd/v2/core/transfer/proxy"
	"github.com/containerd/containerd/v2/core/transfer/registry"
	"github.com/containerd/typeurl/v2"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"caisson/internal/progress"
)

// transfer lets the daemon carry an image from src to dst. When it returns, the daemon
// has ended the work, also if ctx was cancelled; and all progress is shown.
func (c *client) transfer(ctx context.Context, src, dst any, d *progress.Display) error {
	streamCtx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	s := &streams{StreamCreator: streamproxy.NewStreamCreator(c.conn()), ctx: streamCtx}
	err := proxy.NewTransferrer(c.conn(), s).Transfer(ctx, src, dst, transfers.WithProgress(func(p transfers.Progress) { showTransfer(d, p) }))
	if s.quiet != nil {
		select {
		case <-s.quiet:
		case <-time.After(cleanupTimeout): // a daemon that hangs
			cancel()
			<-s.quiet
		}
	}
	return err
}

// streams make those of one transfer. They live on when its call is cancelled, and so
// tell when the daemon is done: it closes the one for progress last.
type streams struct {
	streaming.StreamCreator
	ctx   context.Context
	quiet chan struct{} // closed when the stream for progress has ended; nil without one
}

func (s *streams) Create(_ context.Context, id string) (streaming.Stream, error) {
	stream, err := s.StreamCreator.Create(s.ctx, id)
	if err != nil || !strings.HasPrefix(id, "progress-") {
		return stream, err
	}
	s.quiet = make(chan struct{})
	return endingStream{stream, sync.OnceFunc(func() { close(s.quiet) })}, nil
}

// endingStream tells when nothing more is read from it.
type endingStream struct {
	streaming.Stream
	end func()
}

func (s endingStream) Recv() (typeurl.Any, error) {
	message, err := s.Stream.Recv()
	if err != nil {
		s.end()
	}
	return message, err
}

// showTransfer translates what containerd tells of a transfer. What has no descriptor is a
// sentence about all of it.
func showTransfer(d *progress.Display, p transfers.Progress) {
	if p.Desc == nil {
		return
	}
	state, ok := steps[p.Event]
	if !ok {
		return
	}
	state.Done, state.Total = p.Progress, max(p.Total, p.Desc.Size)
	d.Set(p.Desc.Digest.String(), blobName(*p.Desc), state)
}

var steps = map[string]progress.State{
	"waiting":        {Step: "waiting", Idle: true},
	"downloading":    {Step: "downloading"},
	"uploading":      {Step: "uploading"},
	"complete":       {Step: "done", Ended: true},
	"already exists": {Step: "exists", Ended: true},
	"extracting":     {Step: "unpacking"},
	"extracted":      {Step: "unpacked", Ended: true},
}

// blobName is what a blob is, and 12 digits of which.
func blobName(desc ocispec.Descriptor) string {
	kind := "blob"
	switch {
	case images.IsIndexType(desc.MediaType):
		kind = "index"
	case images.IsManifestType(desc.MediaType):
		kind = "manifest"
	case images.IsConfigType(desc.MediaType):
		kind = "config"
	case images.IsLayerType(desc.MediaType):
		kind = "layer"
	}
	_, digits, _ := strings.Cut(printable(desc.Digest.String()), ":")
	return kind + " " + digits[:min(len(digits), 12)]
}

// talk is what a transfer with a registry needs besides the image.
type talk struct {
	registry *registry.OCIRegistry
	display  *progress.Display
}

// talk runs a transfer with the registry of an image: with the user's credentials, and
// shown unless quiet.
func (c *client) talk(ctx context.Context, name string, f registryFlags, quiet bool, do func(context.Context, talk) error) error {
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	creds, err := c.app.credentials(fail)
	if err != nil {
		return err
	}
	reg, err := f.open(ctx, name, creds)
	if err != nil {
		return err
	}
	d := c.app.display(quiet)
	defer d.Close()
	if err := do(ctx, talk{reg, d}); err != nil {
		if cause := context.Cause(ctx); cause != nil {
			return cause // why the transfer was ended
		}
		return err
	}
	return nil
}
