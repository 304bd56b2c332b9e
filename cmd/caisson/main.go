// Command caisson runs containers in sandboxes, as a client of caissond.
package main

import (
	"context"
	"os"

	"caisson/internal/cli"
)

func main() {
	executable, _ := os.Executable() // without it there is still PATH
	os.Exit(cli.Main(context.Background(), cli.System{
		Args:       os.Args[1:],
		Env:        os.Getenv,
		Getwd:      os.Getwd,
		TempDir:    os.TempDir(),
		Executable: executable,
		Stdin:      os.Stdin,
		Stdout:     os.Stdout,
		Stderr:     os.Stderr,
	}))
}
