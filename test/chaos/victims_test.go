package chaos

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"caisson/test/harness"
)

// victim is a process that may be killed, and the pod or container it is of.
type victim struct {
	pid  int
	what string
	id   string
	init bool // it is the runtime's, and becomes the container's process
}

// victims finds the processes of the pods and containers that were answered for, in
// the order of their IDs.
func (c *chaos) victims(what string) (found []victim) {
	known := c.book.known()
	paths, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		c.t.Error(err)
	}
	for _, path := range paths {
		line, err := os.ReadFile(path)
		if err != nil || len(line) == 0 {
			continue // it has ended, or is none of ours
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		if err != nil {
			continue
		}
		if v := c.judge(pid, strings.Split(strings.TrimRight(string(line), "\x00"), "\x00")); v.what == what && known[v.id] {
			found = append(found, v)
		}
	}
	slices.SortFunc(found, func(a, b victim) int { return strings.Compare(a.id, b.id) })
	return found
}

// judge says what a process is to the daemon.
func (c *chaos) judge(pid int, args []string) victim {
	program := filepath.Base(args[0])
	for _, what := range []string{"monitor", "holder"} {
		if program == "caisson-"+what && len(args) > 1 {
			return victim{pid: pid, what: what, id: strings.TrimPrefix(args[1], harness.CRINamespace+"/")}
		}
	}
	last := args[len(args)-1]
	if program == "runc" && strings.Contains(strings.Join(args, " "), c.h.State+"/") {
		return victim{pid: pid, what: "runtime", id: last}
	}
	group, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	_, below, ours := bytes.Cut(group, []byte("/"+c.h.Token+"/"))
	if err != nil || !ours {
		return victim{}
	}
	name, _, _ := bytes.Cut(below, []byte("\n"))
	v := victim{pid: pid, what: "exec", id: filepath.Base(string(name))}
	if program == "runc" {
		v.what, v.init = "runtime", first(pid)
	} else if first(pid) {
		v.what = "process"
	}
	return v
}

// first says whether a process is the first one of its PID namespace.
func first(pid int) bool {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(text)) {
		if pids := strings.Fields(line); pids[0] == "NSpid:" {
			return len(pids) > 2 && pids[len(pids)-1] == "1"
		}
	}
	return false
}

// killOne kills one process of a kind, if there is one.
func killOne(what string) func(*chaos, *rand.Rand) error {
	return func(c *chaos, r *rand.Rand) error {
		found := c.victims(what)
		if len(found) == 0 {
			return nil
		}
		v := found[r.IntN(len(found))]
		fd, err := unix.PidfdOpen(v.pid, 0)
		if err == unix.ESRCH {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%s %d: pidfd: %w", what, v.pid, err)
		}
		defer unix.Close(fd)
		// Now that the process has a descriptor: it may be another one by that number.
		if !slices.Contains(c.victims(what), v) {
			return nil
		}
		c.book.kill(v.id, what, v.init)
		if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && err != unix.ESRCH {
			return fmt.Errorf("%s %d: kill: %w", what, v.pid, err)
		}
		return nil
	}
}
