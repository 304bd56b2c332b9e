package daemon

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"time"

	"github.com/containerd/log"
	"golang.org/x/sys/unix"

	"caisson/internal/undo"
)

const (
	// maxStacks bounds one dump of all goroutines' stacks, in bytes.
	maxStacks = 32 << 20
	// keepStacks is how many dumps are kept; the state directory is in memory.
	keepStacks = 5
	// stacksPattern are the names of dumps, in the order of their time.
	stacksPattern = "goroutine-stacks-*.log"
)

// stacks are those of all goroutines, cut off at maxStacks.
func stacks() []byte {
	for size := 1 << 20; ; size *= 2 {
		buf := make([]byte, size)
		if n := runtime.Stack(buf, true); n < size || size >= maxStacks {
			return buf[:n]
		}
	}
}

// dumpOnSignal writes the stacks to a file whenever SIGUSR1 comes, as Docker and
// containerd do.
func dumpOnSignal(ctx context.Context, steps *undo.Stack, state string) {
	signals, done := make(chan os.Signal, 1), make(chan struct{})
	signal.Notify(signals, unix.SIGUSR1)
	go func() {
		defer close(done)
		for range signals {
			path, err := writeStacks(state, time.Now())
			if err != nil {
				log.G(ctx).WithError(err).Error("stacks of goroutines are not written")
				continue
			}
			log.G(ctx).WithField("path", path).Info("stacks of goroutines written")
		}
	}()
	steps.Add("dump on SIGUSR1", func(context.Context) error {
		signal.Stop(signals)
		close(signals)
		<-done
		return nil
	})
}

func writeStacks(dir string, now time.Time) (path string, err error) {
	old, err := filepath.Glob(filepath.Join(dir, stacksPattern))
	if err != nil {
		return "", fmt.Errorf("old dumps: %w", err)
	}
	slices.Sort(old)
	for _, path := range old[:max(0, len(old)-keepStacks+1)] {
		if err := os.Remove(path); err != nil {
			return "", err
		}
	}
	path = filepath.Join(dir, fmt.Sprintf("goroutine-stacks-%s.log", now.UTC().Format("20060102T150405.000000000Z")))
	temp := path + ".new" // so that a dump that is there is whole
	if err := os.WriteFile(temp, stacks(), 0o600); err != nil {
		return "", err
	}
	return path, os.Rename(temp, path)
}
