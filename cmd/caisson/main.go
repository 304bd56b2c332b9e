// Command caisson runs containers in sandboxes, as a client of caissond.
package main

import (
	"context"
	"os"

	"caisson/internal/cli"
)

func main() {
	os.Exit(cli.Main(context.Background(), cli.System{
		Args:    os.Args[1:],
		Env:     os.Getenv,
		Getwd:   os.Getwd,
		TempDir: os.TempDir(),
		Stdin:   os.Stdin,
		Stdout:  os.Stdout,
		Stderr:  os.Stderr,
	}))
}
