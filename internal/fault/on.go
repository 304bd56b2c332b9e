//go:build faults

package fault

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// The files in the directory. While there is an order, each point that is
// reached adds its name to the trace. An order is three words: a point's name, at
// which of its hits since the order was given, and the fault: "kill" or an errno;
// with a "+" behind it all later hits fail too. Other words trace only. When the
// fault happens, the order is renamed to done; one for all later hits stays as
// well, and goes on until it is taken away.
const (
	envDir    = "CAISSON_FAULTS"
	orderFile = "order"
	traceFile = "trace"
	doneFile  = "done"
)

// On tells that there are faults. What the daemon would do by itself some time after a
// call then belongs to the call, so that its points are reached each time.
const On = true

// Point is where the daemon may be killed.
func Point(name string) { _ = at(name) }

// Fail is where the daemon may be killed, or the operation that follows may fail
// with one of the errors.
func Fail(name string, _ ...syscall.Errno) error { return at(name) }

var (
	mu      sync.Mutex // guards the fields below; who is being killed keeps it
	current string     // the order that hits counts for
	hits    int
)

func at(name string) error {
	dir := os.Getenv(envDir)
	if dir == "" {
		return nil
	}
	mu.Lock()
	defer mu.Unlock()
	text, err := os.ReadFile(filepath.Join(dir, orderFile))
	if errors.Is(err, os.ErrNotExist) {
		current = ""
		return nil
	}
	must(err)
	if string(text) != current {
		current, hits = string(text), 0
	}
	must(trace(filepath.Join(dir, traceFile), name))
	words := strings.Fields(current)
	if len(words) != 3 || words[0] != name {
		return nil
	}
	hits++
	when, err := strconv.Atoi(words[1])
	must(err)
	fault, lasting := strings.CutSuffix(words[2], "+")
	if hits < when || hits > when && !lasting {
		return nil
	}
	return do(dir, name, fault, lasting)
}

func do(dir, name, fault string, lasting bool) error {
	done := filepath.Join(dir, doneFile)
	if lasting {
		must(os.WriteFile(done, []byte(current), 0o600))
	} else {
		must(os.Rename(filepath.Join(dir, orderFile), done))
	}
	if fault == "kill" {
		must(unix.Kill(unix.Getpid(), unix.SIGKILL))
		select {} // until it arrives
	}
	for errno := range syscall.Errno(200) {
		if unix.ErrnoName(errno) == fault {
			return fmt.Errorf("fault point %s: %w", name, errno)
		}
	}
	panic("fault: no errno is called " + fault)
}

func trace(path, name string) error {
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteString(name + "\n")
	return errors.Join(err, f.Close())
}

// must ends a daemon that cannot obey: its test would prove nothing.
func must(err error) {
	if err != nil {
		panic("fault: " + err.Error())
	}
}
