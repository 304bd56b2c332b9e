// Package monitor starts a sandbox's monitor process, finds it again after a
// restart of the daemon, and asks it for things.
//
// The monitor (c/, one small C process per sandbox) is the parent and
// subreaper of all that runs in the sandbox: it starts processes, keeps what
// became of them until that is acknowledged, and keeps file descriptors. It
// outlives the daemon. A Conn owns one connection, never the process behind
// it: Close drops the connection and the sandbox lives on, End ends the
// monitor. c/protocol.h describes what goes over the wire.
//
// The binary is embedded: `make monitor` (or `make -C internal/monitor/c`)
// has to be run before this package can be built.
package monitor

import (
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// socketName is the monitor's socket in the sandbox's directory.
const socketName = "monitor.sock"

// Process identifies a child of the monitor. Serial is the monitor's name for
// it, never used twice in one sandbox; Pid and StartTime (clock ticks since
// boot, as in /proc/<pid>/stat) are the host's.
type Process struct {
	Serial    uint64
	Pid       int
	StartTime uint64
}

// Kind tells how a process became the monitor's child.
type Kind uint8

// The kinds of processes.
const (
	Spawned Kind = 1 // by Spawn
	Adopted Kind = 2 // left behind by a runtime spawned with Adopt
	Holder  Kind = 3 // by Hold
)

func (k Kind) String() string {
	switch k {
	case Spawned:
		return "spawned"
	case Adopted:
		return "adopted"
	case Holder:
		return "holder"
	default:
		return "unknown"
	}
}

// Exit is the end of a process.
type Exit struct {
	Process
	Kind     Kind
	Tag      string
	Status   unix.WaitStatus
	ExitedAt time.Time // when the monitor reaped it
	User     time.Duration
	System   time.Duration
	MaxRSS   uint64 // bytes
	// Adopted is what a runtime spawned with Adopt left behind, nil if nothing.
	// Its own Exit comes after this one.
	Adopted *Process

	order uint64
}

// Record is a process the monitor knows. Of a running one only Process, Kind
// and Tag mean something.
type Record struct {
	Exit
	Running bool
}

// Sysctl is one kernel setting.
type Sysctl struct {
	Key   string // path below /proc/sys: "net/ipv4/ip_forward"
	Value string
}

// HoldRequest describes the holder's namespaces. What is not asked for is
// the host's.
type HoldRequest struct {
	User     *os.File // user namespace to join; nil: none
	Net      *os.File // network namespace to join; nil: none
	NewIPC   bool
	NewUTS   bool
	NewPID   bool
	Hostname string   // needs NewUTS; empty: left alone
	Sysctls  []Sysctl // written in order, inside the namespaces; the caller sees to it that they are namespaced
}

// Self is the monitor's own program as SpawnRequest.Args[0], whatever became of its
// file. It does the work of release.c too; one of an earlier version ends with 2.
const Self = "/proc/self/exe"

// SpawnRequest describes a process to start.
type SpawnRequest struct {
	Tag  string   // at most 200 bytes, comes back in records
	Args []string // Args[0] is the absolute path of the program
	Env  []string
	Dir  string // empty: /
	// Files become descriptors 0, 1, 2, ... of the process; nil entries, and
	// those of 0 to 2 that are missing, are /dev/null. They stay the caller's,
	// but are put into blocking mode, as by os/exec.
	Files []*os.File
	// PidFile, if not empty, says that this is an OCI runtime which leaves a
	// process behind and writes its pid there: that process is adopted when
	// the runtime exits with 0. An old file is removed first.
	PidFile string
}
