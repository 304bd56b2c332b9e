//go:build !faults

package fault

import "syscall"

// On tells that there are faults.
const On = false

// Point is where the daemon may be killed.
func Point(string) {}

// Fail is where the daemon may be killed, or the operation that follows may fail
// with one of the errors.
func Fail(string, ...syscall.Errno) error { return nil }
