package cgroup

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
)

var anticipating atomic.Bool

// Anticipate lets the kernel get ready for a process that will be moved into a group a
// few milliseconds from now, as OCI runtimes do it, and returns when it is.
//
// The first move after a pause waits for an RCU grace period, ten milliseconds or so in
// which nothing happens; those that follow until the next grace period is over do not.
// Begun in time, that wait is over when the runtime, which has to load first, comes to it.
// Where moves never wait (the mount option favordynmods) this does nothing useful, and no
// harm.
//
// The move that begins the wait changes nothing: it is that of this process into the
// group that it is in. If somebody is just moving it elsewhere, he has to do so again.
//
// A call returns at once while there is another. If it fails, the runtime waits.
func Anticipate() {
	if anticipating.CompareAndSwap(false, true) {
		_ = moveNowhere()
		anticipating.Store(false)
	}
}

func moveNowhere() error {
	h, err := currentHost()
	if err != nil {
		return err
	}
	self := os.Getpid()
	paths, err := h.pathsOf(self)
	if err != nil {
		return err
	}
	first := h.hierarchies[0] // the lock is one for all
	name := ""
	if !first.v2 {
		name = strings.TrimPrefix(first.controllers[0], "name=")
	}
	path, ok := paths[name]
	if !ok {
		return fmt.Errorf("process %d is in no group of %s", self, first.dir)
	}
	return writeFile(filepath.Join(first.dir, path, "cgroup.procs"), strconv.Itoa(self))
}
