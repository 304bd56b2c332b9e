package daemon

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"time"

	namespaceapi "github.com/containerd/containerd/api/services/namespaces/v1"
	api "github.com/containerd/containerd/api/services/sandbox/v1"
	"github.com/containerd/containerd/v2/core/sandbox/proxy"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	sd "github.com/coreos/go-systemd/v22/daemon"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"caisson/internal/config"
	"caisson/internal/undo"
)

// startWatchdog lets systemd know, if the unit has WatchdogSec, that the daemon still
// does what its clients ask for. When that was not told for so long, systemd ends the
// daemon and starts another, which takes the sandboxes over.
func startWatchdog(ctx context.Context, steps *undo.Stack, cfg config.Config) error {
	limit, err := sd.SdWatchdogEnabled(false)
	if err != nil {
		return fmt.Errorf("watchdog of systemd: %v: %w", err, errdefs.ErrInvalidArgument)
	}
	if limit == 0 {
		return nil
	}
	wctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	var done sync.WaitGroup
	done.Go(func() {
		watchdog(wctx, limit/3, func(ctx context.Context) error { return answers(ctx, cfg) },
			func() { notify(ctx, sd.SdNotifyWatchdog) })
	})
	steps.Add("watchdog", func(context.Context) error {
		cancel()
		done.Wait()
		return nil
	})
	return nil
}

// watchdog tells after each question that was answered in time, until ctx ends.
func watchdog(ctx context.Context, every time.Duration, ask func(context.Context) error, tell func()) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		limited, cancel := context.WithTimeout(ctx, every)
		err := ask(limited)
		cancel()
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			log.G(ctx).WithError(err).Error("the daemon does not answer itself; systemd's watchdog is not told that all is well")
		default:
			tell()
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// nobody is a namespace and a sandbox that no client has.
const nobody = "caisson.watchdog"

// answers asks what a client would, on the way it comes: through the sockets' files,
// over connections of their own, down to the controller's lock and the databases. It
// finds fault with nothing that a restart would not mend.
func answers(ctx context.Context, cfg config.Config) error {
	ctx = namespaces.WithNamespace(ctx, nobody)
	err := call(filepath.Join(cfg.State, sandboxerSocket), func(conn grpc.ClientConnInterface) error {
		_, err := proxy.NewSandboxController(api.NewControllerClient(conn), "caisson").Status(ctx, nobody, false)
		if errdefs.IsNotFound(err) {
			_, err = proxy.NewSandboxStore(api.NewStoreClient(conn)).List(ctx)
		}
		return err
	})
	if err == nil && cfg.Engine == config.EngineEmbedded {
		err = call(cfg.Address, func(conn grpc.ClientConnInterface) error {
			_, err := namespaceapi.NewNamespacesClient(conn).List(ctx, &namespaceapi.ListNamespacesRequest{})
			return err
		})
	}
	return err
}

func call(socket string, do func(grpc.ClientConnInterface) error) error {
	conn, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return fmt.Errorf("dial %s: %w", socket, err)
	}
	if err := errors.Join(do(conn), conn.Close()); err != nil {
		return fmt.Errorf("ask %s: %w", socket, err)
	}
	return nil
}
