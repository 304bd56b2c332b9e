// Package distribution runs Debian's docker-registry, which script/registry puts into
// build/, on a port of its own, for tests of pull and push.
package distribution

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"syscall"
	"time"
)

// The one user of a registry with Basic authentication.
const (
	User     = "dev"
	Password = "secret"

	hashed = "$2a$04$EhwduHcBaTVbALRmoJWcROrYHxNTESWz0p9ozfF2CR9KQ6ZRjt19y" // bcrypt of Password
)

// Registry is one that runs.
type Registry struct {
	Host string // 127.0.0.1:PORT

	cmd  *exec.Cmd
	read chan struct{} // closed at the end of its log
}

const config = `version: 0.1
log: {level: info, formatter: text}
storage:
  filesystem: {rootdirectory: %q}
  delete: {enabled: true}
http: {addr: "127.0.0.1:0", secret: "of the test"}
auth:
%s`

// Basic is the authentication with User and Password. It writes a file into dir.
func Basic(dir string) (string, error) {
	path := filepath.Join(dir, "htpasswd")
	if err := os.WriteFile(path, []byte(User+":"+hashed+"\n"), 0o600); err != nil {
		return "", err
	}
	return fmt.Sprintf("  htpasswd: {realm: test, path: %q}\n", path), nil
}

var listening = regexp.MustCompile(`listening on (127\.0\.0\.1:[0-9]+)`)

// Start starts the program with its files in dir. Auth is the part of its
// configuration of that name, by Basic or of a Tokens.
func Start(ctx context.Context, program, dir, auth string) (*Registry, error) {
	path := filepath.Join(dir, "config.yml")
	if err := os.WriteFile(path, fmt.Appendf(nil, config, filepath.Join(dir, "storage"), auth), 0o600); err != nil {
		return nil, err
	}
	r := &Registry{cmd: exec.Command(program, "serve", path), read: make(chan struct{})}
	log, err := r.cmd.StderrPipe()
	if err != nil {
		return nil, err
	}
	if err := r.cmd.Start(); err != nil {
		return nil, fmt.Errorf("docker-registry: %w", err)
	}
	host := make(chan string, 1)
	go func() {
		defer close(r.read)
		text := ""
		for lines := bufio.NewScanner(log); lines.Scan(); {
			if m := listening.FindStringSubmatch(lines.Text()); m != nil {
				host <- m[1]
				_, _ = io.Copy(io.Discard, log) // what it says of requests
				return
			}
			text += lines.Text() + "\n"
		}
		host <- ""
		fmt.Fprint(os.Stderr, text)
	}()
	select {
	case r.Host = <-host:
		if r.Host == "" {
			return nil, errors.Join(errors.New("docker-registry: it ended at once"), r.Close())
		}
		return r, nil
	case <-ctx.Done():
		return nil, errors.Join(fmt.Errorf("docker-registry: %w", ctx.Err()), r.Close())
	}
}

// Close ends it.
func (r *Registry) Close() error {
	if err := r.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	kill := time.AfterFunc(5*time.Second, func() { _ = r.cmd.Process.Kill() })
	defer kill.Stop()
	<-r.read         // before Wait, which closes the pipe
	_ = r.cmd.Wait() // it knows no orderly end
	return nil
}
