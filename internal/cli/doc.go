// Package cli is the command line `caisson`: a plain client of containerd's API
// on caissond's socket. It keeps no state of its own but the log files of
// detached containers and the volumes of applied sandboxes, and adds no policy:
// what a command does in several steps undoes itself when one of them fails, and
// removing may be repeated.
//
// A container's sandbox, log file and the rest that commands need to find again
// are labels of the container's record (labels.go). `run` and `exec` end with
// the exit code of the process, or with 125, 126 or 127 (exit.go).
package cli
