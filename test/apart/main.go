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

	"caisson/internal/reap"
)

// Main is the TestMain of a package whose tests share servers: it runs the tests in
// namespaces of their own, between begin and what that returns, which is called even
// if begin failed, unless it is nil. SIGINT and SIGTERM fail the run, and end its
// servers as well: with Processes by killing these, and tests that fail then clear up as
// they do otherwise. Without root the tests run alone: each says what it lacks.
func Main(m *testing.M, begin func(ctx context.Context) (end func(ctx context.Context, failed bool) error, err error), options ...Option) {
	flag.Parse()
	if os.Getuid() != 0 || flag.Lookup("test.list").Value.String() != "" {
		os.Exit(m.Run())
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code, err := run(ctx, m, begin, options)
	stop()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		code = exit.ExitCode()
	} else if err != nil {
		fmt.Fprintf(os.Stderr, "%s: FAILED: %v\n", filepath.Base(os.Args[0]), err)
		code = max(code, 1)
	}
	os.Exit(code)
}

func run(ctx context.Context, m *testing.M, begin func(context.Context) (func(context.Context, bool) error, error), options []Option) (code int, err error) {
	if inside, err := Run(ctx, options...); !inside || err != nil {
		return 0, err
	}
	end, err := begin(ctx)
	if err == nil {
		code, err = runTests(ctx, m)
	}
	if end != nil {
		err = errors.Join(err, end(context.WithoutCancel(ctx), code != 0))
	}
	return code, err
}

// runTests returns when the tests have ended, or when ctx does: then they fail with
// their servers.
func runTests(ctx context.Context, m *testing.M) (code int, err error) {
	ended := make(chan int, 1)
	if !first() {
		go func() { ended <- m.Run() }()
		select {
		case code := <-ended:
			return code, nil
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		ended <- m.Run()
	}()
	defer context.AfterFunc(ctx, func() { _ = KillOthers() })() // this is the first process
	err = reap.Orphans(done)
	return <-ended, errors.Join(err, ctx.Err())
}
