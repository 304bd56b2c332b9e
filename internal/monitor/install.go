package monitor

import (
	"bytes"
	"crypto/sha256"
	_ "embed" // for the monitor's binary
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"caisson/internal/fault"
)

// If the next line does not compile, the monitor has not been built yet: run `make monitor`.
//
//go:embed caisson-monitor
var program []byte

// Install writes the embedded monitor into dir, under a name that holds its
// hash, and returns its path. Running monitors keep their own version.
func Install(dir string) (path string, err error) {
	sum := sha256.Sum256(program)
	path = filepath.Join(dir, "caisson-monitor-"+hex.EncodeToString(sum[:8]))
	if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, program) {
		if err := os.Chmod(path, 0o755); err != nil {
			return "", fmt.Errorf("monitor: install: %w", err)
		}
		return path, nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("monitor: install: %w", err)
	}
	if err := removeUnfinished(dir); err != nil {
		return "", fmt.Errorf("monitor: install: %w", err)
	}
	// A process forked while the file is open for writing would keep it so,
	// and running it would fail with ETXTBSY.
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	if err := fault.Fail("monitor:install", unix.ENOSPC, unix.EMFILE); err != nil {
		return "", fmt.Errorf("monitor: install: %w", err)
	}
	tmp, err := os.CreateTemp(dir, tempPattern)
	if err != nil {
		return "", fmt.Errorf("monitor: install: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(tmp.Name()))
		}
	}()
	_, err = tmp.Write(program)
	err = errors.Join(err, tmp.Chmod(0o755), tmp.Sync(), tmp.Close())
	if err != nil {
		return "", fmt.Errorf("monitor: install: %w", err)
	}
	fault.Point("monitor:install:rename")
	if err = os.Rename(tmp.Name(), path); err != nil {
		return "", fmt.Errorf("monitor: install: %w", err)
	}
	return path, nil
}

const tempPattern = ".caisson-monitor-*"

// removeUnfinished removes what a daemon that was killed had begun to install.
func removeUnfinished(dir string) error {
	paths, err := filepath.Glob(filepath.Join(dir, tempPattern))
	for _, path := range paths {
		err = errors.Join(err, os.Remove(path))
	}
	return err
}
