// Command caissond is the daemon that runs sandboxes, one per node.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"runtime"

	"golang.org/x/sys/unix"

	"caisson/internal/daemon"
	"caisson/internal/reap"
)

func init() { runtime.LockOSThread() } // main stays on the first thread, for reap.Orphans

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
	dir, err := os.Getwd()
	if err != nil {
		fmt.Fprintf(os.Stderr, "caissond: working directory: %v\n", err)
		os.Exit(1)
	}
	var code int
	done := make(chan struct{})
	go func() {
		defer close(done)
		code = daemon.Main(ctx, daemon.System{Args: os.Args[1:], Dir: dir, Stdout: os.Stdout, Stderr: os.Stderr})
	}()
	if err := reap.Orphans(done); err != nil {
		fmt.Fprintf(os.Stderr, "caissond: %v\n", err) // it is no reason not to serve
		<-done
	}
	stop()
	os.Exit(code)
}
