package apart

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"testing"
)

// Main is the TestMain of a package whose tests share servers: it runs the tests in
// namespaces of their own, between begin and what that returns, which is called even
// if begin failed, unless it is nil. SIGINT and SIGTERM fail the run, and end its
// servers as well. Without root the tests run alone: each says what it lacks.
func Main(m *testing.M, begin func(ctx context.Context) (end func(ctx context.Context, failed bool) error, err error)) {
	flag.Parse()
	if os.Getuid() != 0 || flag.Lookup("test.list").Value.String() != "" {
		os.Exit(m.Run())
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code, err := run(ctx, m, begin)
	stop()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		code = exit.ExitCode()
	} else if err != nil {
		fmt.Fprintf(os.Stderr, "%s: FAILED: %v\n", filepath.Base(os.Args[0]), err)
		code = max(code, 1)
	}
	os.Exit(code)
}

func run(ctx context.Context, m *testing.M, begin func(context.Context) (func(context.Context, bool) error, error)) (code int, err error) {
	if inside, err := Run(ctx); !inside || err != nil {
		return 0, err
	}
	end, err := begin(ctx)
	if err == nil {
		ended := make(chan int, 1)
		go func() { ended <- m.Run() }()
		select {
		case code = <-ended:
		case <-ctx.Done():
			err = ctx.Err() // the tests fail with their servers
		}
	}
	if end != nil {
		err = errors.Join(err, end(context.WithoutCancel(ctx), code != 0))
	}
	return code, err
}
