package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
)

// server is a program that tests start, kill and stop, any number of times.
type server struct {
	name    string
	log     string // the file its output is added to
	running *exec.Cmd
	exited  chan struct{} // closed when running has ended and exitErr is set
	exitErr error
}

// launch starts the process and does not wait for anything.
func (s *server) launch(cmd *exec.Cmd) error {
	if s.running != nil {
		return fmt.Errorf("%s runs already", s.name)
	}
	log, err := os.OpenFile(s.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	// A session of its own, as an init system gives it: a terminal's interrupt
	// reaches the test, which then stops the server.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", s.name, err)
	}
	exited := make(chan struct{})
	s.running, s.exited = cmd, exited
	go func() {
		s.exitErr = cmd.Wait()
		close(exited)
	}()
	return nil
}

// kill ends the server with SIGKILL, as a crash does.
func (s *server) kill() error {
	if s.running == nil {
		return nil
	}
	if err := s.running.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	<-s.exited
	s.running = nil
	return nil
}

// stop ends the server with SIGTERM and expects a clean exit.
func (s *server) stop(ctx context.Context) error {
	if s.running == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, stopLimit)
	defer cancel()
	if err := s.running.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-s.exited:
	case <-ctx.Done():
		return errors.Join(fmt.Errorf("%s does not stop: %w", s.name, ctx.Err()), s.kill())
	}
	s.running = nil
	if s.exitErr != nil {
		return fmt.Errorf("%s: %w", s.name, s.exitErr)
	}
	return nil
}
