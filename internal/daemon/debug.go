package daemon

import (
	"context"
	"errors"
	"net/http"
	"net/http/pprof"
	"path/filepath"
	"time"

	"github.com/containerd/log"

	"caisson/internal/config"
	"caisson/internal/service"
	"caisson/internal/undo"
)

// debugSocket serves Go's profiles to root. It is there without being asked
// for: a daemon that hangs is not helped by a setting that wants a restart.
const debugSocket = "debug.sock"

// serveDebug opens the socket before anything is taken over, so that a start
// that hangs can be looked at, too.
func serveDebug(ctx context.Context, steps *undo.Stack, cfg config.Config) error {
	l, err := service.Listen(filepath.Join(cfg.State, debugSocket))
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/debug/pprof/", pprof.Index) // and each profile by its name
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: time.Minute}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			log.G(ctx).WithError(err).Error("profiles are not served any more")
		}
	}()
	steps.Add("profiles", func(context.Context) error {
		err := srv.Close()
		<-done
		return err
	})
	return nil
}
