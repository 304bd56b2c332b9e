package faults

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
	"testing"

	"caisson/test/apart"
)

var (
	all    = flag.Bool("all", false, "run all cases, and print the table")
	only   = flag.String("only", "", "run only the cases whose name has `text` in it")
	logDir = flag.String("logs", "", "`directory` for the daemons' logs of cases that fail")
)

// untilSignal ends when the program is told to: the worlds must end before it.
var untilSignal context.Context

func TestMain(m *testing.M) {
	flag.Parse()
	if os.Getuid() != 0 || flag.Lookup("test.list").Value.String() != "" {
		os.Exit(m.Run())
	}
	var stop func()
	untilSignal, stop = signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code, err := apartly(untilSignal, m)
	stop()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		code = exit.ExitCode()
	} else if err != nil {
		fmt.Fprintln(os.Stderr, "faults: FAILED:", err)
		code = max(code, 1)
	}
	os.Exit(code)
}

func apartly(ctx context.Context, m *testing.M) (code int, err error) {
	if inside, err := apart.Run(ctx); !inside || err != nil {
		return 0, err
	}
	return m.Run(), nil
}
