package cli

import (
	"golang.org/x/term"

	"caisson/internal/progress"
)

// display shows progress on standard error: what is written to standard output is for
// programs. There is none with quiet.
func (a *app) display(quiet bool) *progress.Display {
	if quiet {
		return nil
	}
	out := fileOf(a.sys.Stderr)
	if !isTerminal(out) || a.sys.Env("TERM") == "dumb" {
		return progress.Start(a.sys.Stderr, nil)
	}
	return progress.Start(out, func() (int, int) {
		columns, rows, err := term.GetSize(int(out.Fd()))
		if err != nil {
			return 0, 0
		}
		return columns, rows
	})
}
