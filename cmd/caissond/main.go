// Command caissond is the daemon that runs sandboxes, one per node.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"

	"caisson/internal/daemon"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
	dir, err := os.Getwd()
	if err != nil {
		fmt.Fprintf(os.Stderr, "caissond: working directory: %v\n", err)
		os.Exit(1)
	}
	code := daemon.Main(ctx, daemon.System{Args: os.Args[1:], Dir: dir, Stdout: os.Stdout, Stderr: os.Stderr})
	stop()
	os.Exit(code)
}
