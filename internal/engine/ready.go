package engine

import (
	"context"
	"errors"
	"fmt"

	introspection "github.com/containerd/containerd/api/services/introspection/v1"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// ready waits until every plugin that announced work at its start has done it,
// then asks the API itself whether what the product needs was loaded. A plugin
// that did not load for want of something on the machine is logged only.
func (e *Engine) ready(ctx context.Context, address string) error {
	done := make(chan struct{})
	go func() {
		e.srv.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-ctx.Done():
		return fmt.Errorf("wait for readiness: %w", context.Cause(ctx))
	}

	conn, err := grpc.NewClient("unix:"+address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return fmt.Errorf("dial %s: %w", address, err)
	}
	defer conn.Close() //nolint:errcheck // nothing is lost
	list, err := introspection.NewIntrospectionClient(conn).Plugins(ctx, &introspection.PluginsRequest{}, grpc.WaitForReady(true))
	if err != nil {
		return fmt.Errorf("list plugins: %w", err)
	}
	hasCRI, err := checkPlugins(ctx, list.GetPlugins())
	if err != nil || !hasCRI {
		return err
	}
	if _, err := cri.NewRuntimeServiceClient(conn).Version(ctx, &cri.VersionRequest{}); err != nil {
		return fmt.Errorf("CRI does not answer: %w", err)
	}
	return nil
}

func checkPlugins(ctx context.Context, loaded []*introspection.Plugin) (hasCRI bool, err error) {
	sandboxer := errors.New("it was not loaded")
	for _, p := range loaded {
		id := p.GetType() + "." + p.GetID()
		status := p.GetInitErr()
		switch {
		case status == nil:
			if id == pluginCRI {
				hasCRI = true
			}
			if id == pluginSandboxer {
				sandboxer = nil
			}
		case id == pluginSandboxer:
			sandboxer = errors.New(status.GetMessage())
		case id == pluginCRI:
			log.G(ctx).WithField("reason", status.GetMessage()).Error("CRI is not served: its plugin did not load")
		case codes.Code(status.GetCode()) != codes.Unimplemented: // Unimplemented: skipped on purpose
			log.G(ctx).WithFields(log.Fields{"plugin": id, "reason": status.GetMessage()}).Debug("a plugin is not available on this machine")
		}
	}
	if sandboxer != nil {
		return false, fmt.Errorf("sandboxer plugin %s: %v: %w", pluginSandboxer, sandboxer, errdefs.ErrUnavailable)
	}
	return hasCRI, nil
}
